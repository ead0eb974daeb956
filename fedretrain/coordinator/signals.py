"""From what monitors see to what retraining and safety limits may look at.

Rules of this file:
    * What a window cannot say stays unknown (None): it neither fires a trigger nor proves that all is well.
    * A fall is against the champion's own baseline; its bounds come from the window's interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.monitoring.locate import Scope
from fedretrain.retraining.signals import DriftScope, Signals
from fedretrain.rollout.safety import Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.state import MonitorState
    from fedretrain.monitoring.view import FleetView


_SCOPES = {
    Scope.DEVICE: DriftScope.DEVICE,
    Scope.CLUSTER: DriftScope.CLUSTER,
    Scope.FLEET: DriftScope.FLEET,
}

FIGURES = (
    "psi_max",
    "missing_fraction",
    "violation_fraction",
    "output_psi",
    "low_confidence_fraction",
    "latency_p99_s",
    "accuracy",
    "macro_f1",
    "rmse",
    "personal_gap",
    "personal_distance",
    "refused_fraction",
)
"""What a window is read for beside its KPIs: the names that a safety limit may use."""


@dataclass(frozen=True)
class Facts:
    """What monitors do not know.

    Attributes:
        num_labels: Labels that came back since the fleet began.
        num_devices: Of the fleet.
        num_pool_rows: Labelled rows of the server-held pool; 0 without one.
        labels_leave_devices: Whether labels may be sent to the server.
        remaining_epsilon: What the promise has left; None without one.
        campaign_epsilon: What a campaign would cost.
        filter_allows: The filter's own answer; None where it was not asked.
        can_personalize: Whether devices hold a personal state.
    """

    num_labels: int
    num_devices: int
    num_pool_rows: int = 0
    labels_leave_devices: bool = False
    remaining_epsilon: float | None = None
    campaign_epsilon: float = 0.0
    filter_allows: bool | None = None
    can_personalize: bool = True


def signals_of(
    inputs: FleetView, labels: FleetView, baseline: Baseline, monitor: MonitorState, facts: Facts
) -> Signals:
    """The signals of a moment.

    Args:
        inputs: The newest view of the window by which inputs are judged.
        labels: The newest view of the window by which labels are judged.
        baseline: The champion's.
        monitor: What the recipes hold for true.
        facts: The rest.
    """
    served, labelled = inputs.serving, labels.serving
    personal = labels.personal or inputs.personal
    beyond = inputs.psi_F[inputs.significant_F & np.isfinite(inputs.psi_F)]
    judged = bool(inputs.known_F.any())
    drop, low, high = _fall(baseline, labels)
    return Signals(
        psi_max=(float(beyond.max()) if len(beyond) else 0.0) if judged else None,
        drifted_feature_fraction=float(inputs.significant_F.mean()) if judged else None,
        drift_confirmed=monitor.drifted,
        drift_scope=_SCOPES.get(inputs.where.scope, DriftScope.NONE),
        output_psi=None if served is None else served.output_psi,
        low_confidence_fraction=None if served is None else served.low_confidence_fraction,
        confidence_decayed=monitor.decay.decayed,
        score_drop=drop,
        score_drop_low=low,
        score_drop_high=high,
        estimated_score_drop=(None if served is None else baseline.accuracy - served.estimated_accuracy),
        kpi_breached=bool(monitor.breached),
        telemetry_fraction=inputs.num_devices / max(facts.num_devices, 1),
        label_completeness=None if labelled is None else labelled.completeness,
        num_labels=facts.num_labels,
        num_pool_rows=facts.num_pool_rows,
        labels_leave_devices=facts.labels_leave_devices,
        personal_gain=None if personal is None else _known(personal.gap),
        refused_base_fraction=None if personal is None else _known(personal.refused_fraction),
        can_personalize=facts.can_personalize,
        remaining_epsilon=facts.remaining_epsilon,
        campaign_epsilon=facts.campaign_epsilon,
        filter_allows=facts.filter_allows,
    )


def readings_of(view: FleetView) -> tuple[Reading, ...]:
    """What a window says to safety limits: `FIGURES` and the KPIs. What it does not know is NaN, or not there.

    Args:
        view: The window.
    """
    served, reported = view.serving, view.num_devices
    beyond = view.psi_F[view.significant_F & np.isfinite(view.psi_F)]
    psi_max = (float(beyond.max()) if len(beyond) else 0.0) if view.known_F.any() else math.nan
    found = [
        Reading("psi_max", psi_max, reported),
        Reading("missing_fraction", _worst(view.missing_F), reported),
        Reading("violation_fraction", _worst(view.violations_F), reported),
    ]
    if view.personal is not None:
        personal = view.personal
        found += [
            Reading("personal_gap", personal.gap, personal.num_devices),
            Reading("personal_distance", personal.distance[0], personal.num_devices),
            Reading("refused_fraction", personal.refused_fraction, personal.num_asked),
        ]
    if served is None:
        return tuple(found)
    labelled = served.num_labelled_devices
    found += [
        Reading("output_psi", served.output_psi, reported),
        Reading("low_confidence_fraction", served.low_confidence_fraction, served.decay.num_devices),
        Reading("latency_p99_s", served.latency_s[2], reported),
        Reading("accuracy", served.accuracy, labelled),
        Reading("macro_f1", served.macro_f1, labelled),
        Reading("rmse", served.rmse, labelled),
    ]
    found += [Reading(name, kpi.value, kpi.num_devices) for name, kpi in served.kpis.items()]
    return tuple(found)


def _known(value: float) -> float | None:
    """None for what is not a number."""
    return None if math.isnan(value) else value


def _worst(share_F: NDArray[np.float64]) -> float:
    """The largest known share; NaN where none is known."""
    known = share_F[np.isfinite(share_F)]
    return float(known.max()) if len(known) else math.nan


def _fall(baseline: Baseline, labels: FleetView) -> tuple[float | None, float | None, float | None]:
    """How far the labelled score has fallen: estimate, at least, at most. Regression: as a share of the RMSE."""
    served = labels.serving
    if served is None:
        return None, None, None
    if math.isfinite(baseline.accuracy):
        return (
            baseline.accuracy - served.accuracy,
            baseline.accuracy - served.accuracy_high,
            baseline.accuracy - served.accuracy_low,
        )
    if math.isfinite(baseline.rmse) and baseline.rmse > 0:
        return (
            served.rmse / baseline.rmse - 1.0,
            served.rmse_low / baseline.rmse - 1.0,
            served.rmse_high / baseline.rmse - 1.0,
        )
    return None, None, None
