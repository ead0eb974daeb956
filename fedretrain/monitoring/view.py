"""How a window becomes a view: counts against the champion's baseline.

Rules of this file:
    * What is not known is NaN or None, and the verdict is INCONCLUSIVE. Silence is never "fine".
    * A divergence comes with its p-value under the champion's own empirical null.
    * What labels say is by the time of the *prediction*, with how complete it is; what is estimated says so in its name.
    * Intervals take the device as the unit.

Shapes: G groups, D devices, F features, C cells, M classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.monitoring.baseline import device_arrivals, slots_of
from fedretrain.monitoring.calibration import fit_calibration
from fedretrain.monitoring.cardinality import estimate
from fedretrain.monitoring.config import NullKind
from fedretrain.monitoring.discovery import benjamini_hochberg, benjamini_yekutieli
from fedretrain.monitoring.divergence import psi
from fedretrain.monitoring.fleet_view import FleetView, ServingView, ViewVerdict
from fedretrain.monitoring.intervals import device_share
from fedretrain.monitoring.labels import CurveDrift, curve_drift, expected_completeness, macro_f1
from fedretrain.monitoring.locate import DriftPlace, Scope, locate
from fedretrain.monitoring.null import p_value, pooled_p_value
from fedretrain.monitoring.personal import personal_view
from fedretrain.monitoring.predictions import low_share, output_skew, quantile_bounds
from fedretrain.monitoring.quality import missing_fraction, violation_fraction
from fedretrain.monitoring.ratios import ratio
from fedretrain.monitoring.reports import LATENCY_EDGES_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.config import DriftRules, MonitoringPolicy
    from fedretrain.monitoring.null import EmpiricalNull
    from fedretrain.monitoring.refusal import Refusal
    from fedretrain.monitoring.store import FleetStore
    from fedretrain.monitoring.windows import Served, WindowCounts

__all__ = ["FleetView", "ServingView", "ViewVerdict", "judge_psi", "view"]


def view(
    store: FleetStore,
    baseline: Baseline,
    end_slot: int,
    policy: MonitoringPolicy,
    *,
    window_s: float | None = None,
    now: float | None = None,
    season: int | None = None,
    refusals: Mapping[Refusal, int] | None = None,
) -> FleetView:
    """What the window that ends before `end_slot` says.

    Args:
        store: What the fleet sent.
        baseline: The champion's record.
        end_slot: The slot after the window's last.
        policy: What to look at.
        window_s: The window's length; the policy's first if left out.
        now: The instant, for how complete labels should be; the window's end if left out.
        season: The season that the window is judged by, if the baseline has seasons.
        refusals: Rows refused so far.

    Raises:
        DataError: If the store counts on other bins than the baseline.
    """
    if store.bins.digest != baseline.bins.digest:
        raise DataError(
            "store and baseline have different bins", where="bins", fix="make a store per champion"
        )
    window_s = policy.windows[0].length_s if window_s is None else window_s
    slots = slots_of(window_s, store.slot_s)
    counts = store.window(end_slot, slots)
    inputs = _inputs(counts, baseline, slots, policy.drift, season)
    served = counts.served.get(baseline.version)
    at = end_slot * store.slot_s
    serving = None
    if served is not None:
        age_s = (at if now is None else now) - (at - window_s / 2)
        serving = _serving(served, baseline, slots, policy, store.slot_s, age_s, season)
    features_FC = counts.features_FC
    return FleetView(
        at=at,
        window_s=window_s,
        version=baseline.version,
        features=baseline.bins.names,
        verdict=inputs.verdict,
        num_rows=counts.num_rows,
        num_devices=int(counts.reported_D.sum()),
        psi_F=inputs.psi_F,
        p_F=inputs.p_F,
        known_F=inputs.known_F,
        significant_F=inputs.significant_F,
        shifted_F=inputs.shifted_F,
        psi_GF=_psi_of_groups(baseline, counts),
        missing_F=missing_fraction(features_FC),
        violations_F=violation_fraction(counts.violations_GF.sum(axis=0), features_FC),
        distinct_F=_distinct(counts),
        serving=serving,
        where=_place(store, baseline, end_slot, slots, policy),
        refusals=dict(refusals or {}),
        personal=personal_view(store.personal(end_slot, slots), policy.accuracy.confidence),
        pace=_pace(store, baseline, end_slot, slots, policy, at if now is None else now),
    )


def _psi_of_groups(baseline: Baseline, counts: WindowCounts) -> NDArray[np.float64]:
    """``[G, F]`` each group against its own baseline; NaN where groups were added since, and numbers are others'."""
    before, after = baseline.features_GFC, counts.features_GFC
    if len(before) != len(after):
        return np.full(after.shape[:2], np.nan)
    return psi(before, after)


@dataclass(frozen=True)
class _Inputs:
    psi_F: NDArray[np.float64]
    p_F: NDArray[np.float64]
    known_F: NDArray[np.bool_]
    significant_F: NDArray[np.bool_]
    shifted_F: NDArray[np.bool_]
    verdict: ViewVerdict


def _inputs(
    counts: WindowCounts, baseline: Baseline, slots: int, rules: DriftRules, season: int | None
) -> _Inputs:
    """The features against the baseline and its null."""
    num_features = len(baseline.bins.names)
    psi_F = np.full(num_features, np.nan)
    if counts.num_rows >= rules.min_rows and counts.num_kept == slots:
        psi_F = psi(baseline.features_FC, counts.features_FC)
    null = baseline.nulls.get(slots)
    if null is None:
        nothing_F = np.zeros(num_features, dtype=bool)
        return _Inputs(
            psi_F, np.full(num_features, np.nan), nothing_F, nothing_F, nothing_F, ViewVerdict.INCONCLUSIVE
        )
    p_F, least_p = judge_psi(null, psi_F, rules, season)
    control = benjamini_yekutieli if rules.any_dependence else benjamini_hochberg
    significant_F = control(p_F, rules.alpha)
    shifted_F = significant_F & (psi_F > rules.psi)
    # A feature that drifts alone must be able to pass; else "not significant" only says that the null is too small.
    can_tell = control(np.array([least_p] + [1.0] * (num_features - 1)), rules.alpha)[0]
    known_F = ~np.isnan(p_F) & (can_tell | shifted_F | (psi_F <= rules.psi))
    verdict = ViewVerdict.SHIFTED if shifted_F.any() else ViewVerdict.INCONCLUSIVE
    if not shifted_F.any() and known_F.all():
        verdict = ViewVerdict.UNCHANGED
    return _Inputs(psi_F, p_F, known_F, significant_F, shifted_F, verdict)


def judge_psi(
    null: EmpiricalNull, psi_F: NDArray[np.float64], rules: DriftRules, season: int | None = None
) -> tuple[NDArray[np.float64], float]:
    """``[F]`` p-values by the null that the rules ask for, and the smallest that it can give."""
    windows, features = null.of_season(season).shape
    own = 1.0 / (windows + 1)
    pooled = rules.null is NullKind.POOLED or (rules.null is NullKind.AUTO and own * features > rules.alpha)
    if pooled:
        return pooled_p_value(null, psi_F, season), 1.0 / (windows * features + 1)
    return p_value(null, psi_F, season), own


def _serving(
    served: Served,
    baseline: Baseline,
    slots: int,
    policy: MonitoringPolicy,
    slot_s: float,
    age_s: float,
    season: int | None,
) -> ServingView:
    """The champion's predictions and labels."""
    outputs_M, confidence_B = served.outputs_GM.sum(axis=0), served.confidence_GB.sum(axis=0)
    predictions = int(served.predictions_D.sum())
    output_psi = float(output_skew(baseline.outputs_M, outputs_M))
    null = baseline.output_nulls.get(slots)
    output_p = math.nan if null is None else float(p_value(null, np.array([output_psi]), season)[0])
    calibration_B2 = served.calibration_GB2.sum(axis=0)
    right = device_share(served.correct_D, served.labelled_D, policy.accuracy.confidence)
    measured = served.confusion_GMM.any()
    error = ratio(served.error_D2, policy.accuracy.confidence)
    expected = math.nan
    if baseline.arrival is not None:
        expected = float(expected_completeness(baseline.arrival, np.array([predictions]), np.array([age_s])))
    sequential = [kpi.name for kpi in policy.kpis if kpi.sequential]
    judged = slots == slots_of(policy.kpi_rules.window_s, slot_s)
    latency_L = served.latency_GL.sum(axis=0)
    quantiles = [float(quantile_bounds(latency_L, LATENCY_EDGES_S, q).high) for q in (0.5, 0.95, 0.99)]
    return ServingView(
        num_predictions=predictions,
        output_psi=output_psi,
        output_p=output_p,
        low_confidence_fraction=float(low_share(confidence_B, policy.confidence.below)),
        decay=policy.confidence.judge(served.confidence_DB),
        latency_s=(quantiles[0], quantiles[1], quantiles[2]),
        completeness=int(served.labelled_D.sum()) / predictions if predictions else math.nan,
        expected_completeness=expected,
        accuracy=float(right.estimate) if measured else math.nan,
        accuracy_low=float(right.low) if measured else math.nan,
        accuracy_high=float(right.high) if measured else math.nan,
        macro_f1=float(macro_f1(served.confusion_GMM.sum(axis=0))),
        rmse=math.sqrt(error.value),
        rmse_low=math.sqrt(max(error.low, 0.0)),
        rmse_high=math.sqrt(error.high),
        num_labelled_devices=int((served.labelled_D > 0).sum()),
        estimated_accuracy=_estimated(baseline, confidence_B, calibration_B2),
        kpis={name: ratio(pair, policy.kpi_rules.confidence) for name, pair in served.kpis_D2.items()},
        kpis_D2={name: served.kpis_D2[name] for name in sequential if judged and name in served.kpis_D2},
    )


def _estimated(
    baseline: Baseline, confidence_B: NDArray[np.int64], calibration_B2: NDArray[np.int64]
) -> float:
    """Accuracy estimated from confidence and whatever labels came; NaN where the baseline had none."""
    if not baseline.calibration_B2.any() or not confidence_B.any():
        return math.nan
    # One lying device can label more predictions of a bin than there were: its labels then say nothing here.
    labels_B2 = None if (calibration_B2[:, 0] > confidence_B).any() else calibration_B2
    return float(fit_calibration(baseline.calibration_B2).estimated_accuracy(confidence_B, labels_B2))


def _distinct(counts: WindowCounts) -> NDArray[np.float64]:
    if not counts.distinct_GFR.shape[2]:
        return np.full(counts.distinct_GFR.shape[1], np.nan)
    return estimate(counts.distinct_GFR.max(axis=0))


def _pace(
    store: FleetStore, baseline: Baseline, end_slot: int, slots: int, policy: MonitoringPolicy, now: float
) -> CurveDrift:
    """How soon labels come, if this is the window for it and it ends with a chunk; nothing is told otherwise."""
    mine = slots == slots_of(policy.pace_window_s, store.slot_s)
    if baseline.arrivals_D is None or not mine or end_slot % store.horizon.chunk_slots:
        return CurveDrift()
    after = device_arrivals(store, end_slot - slots, end_slot, now)
    return CurveDrift() if after is None else curve_drift(baseline.arrivals_D, after)


def _place(
    store: FleetStore, baseline: Baseline, end_slot: int, slots: int, policy: MonitoringPolicy
) -> DriftPlace:
    """Where drift lives, if this is the window for it and it ends with a chunk; UNKNOWN otherwise."""
    record = baseline.record
    mine = slots == slots_of(policy.place.window_s, store.slot_s)
    if record is None or not mine or end_slot % store.horizon.chunk_slots:
        return DriftPlace(Scope.UNKNOWN)
    features_DFC = store.devices(end_slot, record.window_slots).features_DFC
    return locate(record, features_DFC, store.group_D, baseline.bins.names, policy.place)
