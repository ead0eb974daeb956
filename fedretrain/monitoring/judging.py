"""One view through the eyes of each recipe: what it says, before anything is counted.

Rules of this file:
    * Too little of anything is UNKNOWN.
    * A limit is passed only if the whole interval is beyond it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedretrain.core.errors import DataError
from fedretrain.monitoring.alerts import Told, WindowJudged
from fedretrain.monitoring.guardrails import KpiEpoch, guardrail, look
from fedretrain.monitoring.kpi import Better, SprtDecision
from fedretrain.monitoring.locate import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.monitoring.alerts import KpiLook
    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.monitoring.kpi import DeviceSprt, Kpi
    from fedretrain.monitoring.view import FleetView


def window_judged(
    policy: MonitoringPolicy,
    view: FleetView,
    baseline: Baseline,
    *,
    counted: bool,
    locatable: bool,
    epochs: Mapping[str, KpiEpoch],
) -> WindowJudged:
    """What a window says to each recipe that looks at windows of its length.

    Args:
        policy: Limits, and which recipe looks at which window.
        view: The window.
        baseline: The champion's record.
        counted: It overlaps no counted window.
        locatable: It overlaps no window in which outliers were looked for.
        epochs: Sequential tests so far.
    """
    length_s, serving, where = view.window_s, view.serving, view.where
    inputs = length_s in policy.drift.windows_s
    decay = serving.decay if serving is not None and length_s == policy.confidence_window_s else None
    judged = locatable and length_s == policy.place.window_s and where.scope is not Scope.UNKNOWN
    known = [(name, float(psi)) for name, psi in zip(view.features, view.psi_F, strict=True)]
    guarded = length_s == policy.kpi_rules.window_s
    looks = _looks(policy, view, baseline, epochs) if guarded and counted else ()
    tests = [(name, float(p)) for name, p in zip(view.features, view.p_F, strict=True)]
    return WindowJudged(
        at=view.at,
        version=view.version,
        window_s=length_s,
        counted=counted,
        features=_features(view) if inputs else (),
        published=tuple(name for name, psi in known if psi > policy.drift.psi) if inputs else (),
        psi=tuple((name, psi) for name, psi in known if not math.isnan(psi)),
        p=tuple((name, p) for name, p in tests if not math.isnan(p)),
        confidence=None if decay is None else (decay.share, decay.p_value, decay.num_devices),
        confidence_exceeded=decay is not None and decay.exceeded,
        kpis=_kpis(policy, view, baseline, looks) if guarded else (),
        looks=looks,
        accuracy=_accuracy(policy, view, baseline) if length_s == policy.accuracy.window_s else Told.UNKNOWN,
        pace=_pace(policy, view) if length_s == policy.pace_window_s else Told.UNKNOWN,
        devices_judged=judged,
        outliers=where.devices if judged else (),
        outlier_features=where.features if judged else (),
        outlier_p=where.p_devices if judged else (),
        evidence=_evidence(view),
    )


def kpi_bound(kpi: Kpi, baseline: Baseline) -> float:
    """A guardrail's limit in the KPI's unit; NaN if it is relative and the champion was not measured."""
    measured = baseline.kpis.get(kpi.name)
    try:
        return kpi.bound(None if measured is None else measured.value)
    except DataError:
        return math.nan


def score_bound(policy: MonitoringPolicy, baseline: Baseline) -> float:
    """Accuracy below which, or RMSE above which, the champion got worse; NaN without labels in the baseline."""
    if not math.isnan(baseline.rmse):
        return baseline.rmse * (1.0 + policy.accuracy.margin)
    return baseline.accuracy - policy.accuracy.margin


def _features(view: FleetView) -> tuple[tuple[str, Told], ...]:
    told = []
    for name, known, shifted in zip(view.features, view.known_F, view.shifted_F, strict=True):
        told.append((name, Told.UNKNOWN if not known else Told.BAD if shifted else Told.QUIET))
    return tuple(told)


_DECIDED = {
    SprtDecision.REJECT: Told.BAD,
    SprtDecision.ACCEPT: Told.QUIET,
    SprtDecision.UNDECIDED: Told.UNKNOWN,
}


def _looks(
    policy: MonitoringPolicy, view: FleetView, baseline: Baseline, epochs: Mapping[str, KpiEpoch]
) -> tuple[KpiLook, ...]:
    """The sequential tests that can be made, after this window."""
    found = []
    for kpi in policy.kpis:
        test = sequential_test(policy, kpi, baseline)
        pair_D2 = None if view.serving is None else view.serving.kpis_D2.get(kpi.name)
        if test is None or pair_D2 is None:
            continue
        one = look(
            test,
            epochs.get(kpi.name, KpiEpoch()),
            pair_D2,
            baseline.kpi_records[kpi.name].least_weight,
            kpi=kpi.name,
            longest=policy.kpi_rules.max_windows,
            seed=baseline.version,
        )
        found += [] if one is None else [one]
    return tuple(found)


def sequential_test(policy: MonitoringPolicy, kpi: Kpi, baseline: Baseline) -> DeviceSprt | None:
    """A KPI's sequential test against this champion; None where the interval holds its limit."""
    record = baseline.kpi_records.get(kpi.name)
    if not kpi.sequential or record is None:
        return None
    try:
        return guardrail(kpi, record, policy.kpi_rules)
    except DataError:
        return None


def _kpis(
    policy: MonitoringPolicy, view: FleetView, baseline: Baseline, looks: tuple[KpiLook, ...]
) -> tuple[tuple[str, Told], ...]:
    """Each guarded KPI against its limit."""
    told, decided = [], {one.kpi: _DECIDED[one.decision] for one in looks}
    for kpi in policy.kpis:
        found = None if view.serving is None else view.serving.kpis.get(kpi.name)
        bound = math.nan if kpi.limit is None else kpi_bound(kpi, baseline)
        if kpi.limit is None:
            continue
        if sequential_test(policy, kpi, baseline) is not None:
            told.append((kpi.name, decided.get(kpi.name, Told.UNKNOWN)))
            continue
        if found is None or math.isnan(bound) or found.num_devices < policy.kpi_rules.min_devices:
            told.append((kpi.name, Told.UNKNOWN))
            continue
        bad = found.low > bound if kpi.better is Better.LOWER else found.high < bound
        told.append((kpi.name, Told.BAD if bad else Told.QUIET))
    return tuple(told)


def _accuracy(policy: MonitoringPolicy, view: FleetView, baseline: Baseline) -> Told:
    """Labels against the baseline."""
    serving, rules, bound = view.serving, policy.accuracy, score_bound(policy, baseline)
    if serving is None or math.isnan(bound) or serving.num_labelled_devices < rules.min_devices:
        return Told.UNKNOWN
    if not serving.completeness >= rules.min_completeness:
        return Told.UNKNOWN
    if not math.isnan(baseline.rmse):
        return Told.BAD if serving.rmse_low > bound else Told.QUIET
    return Told.BAD if serving.accuracy_high < bound else Told.QUIET


def _pace(policy: MonitoringPolicy, view: FleetView) -> Told:
    """How soon labels come, against the baseline."""
    found, rules = view.pace, policy.pace
    if math.isnan(found.p_value) or found.num_devices < rules.min_devices:
        return Told.UNKNOWN
    changed = found.p_value <= rules.alpha and abs(found.surplus) >= rules.surplus
    return Told.BAD if changed else Told.QUIET


def _evidence(view: FleetView) -> tuple[tuple[str, float], ...]:
    found = [("num_rows", float(view.num_rows)), ("num_devices", float(view.num_devices))]
    if view.serving is not None:
        names = ("output_psi", "output_p", "accuracy", "rmse", "completeness", "estimated_accuracy")
        found += [(name, float(getattr(view.serving, name))) for name in names]
    found += [("label_surplus", view.pace.surplus), ("label_pace_p", view.pace.p_value)]
    return tuple((name, value) for name, value in found if not math.isnan(value))
