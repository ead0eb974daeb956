"""From what monitors see to what retraining may look at.

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

if TYPE_CHECKING:
    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.recipes import MonitorState
    from fedretrain.monitoring.view import FleetView


_SCOPES = {
    Scope.DEVICE: DriftScope.DEVICE,
    Scope.CLUSTER: DriftScope.CLUSTER,
    Scope.FLEET: DriftScope.FLEET,
}


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
        personal_gain: Personal minus global score; None if not known.
        refused_base_fraction: Share of devices that stayed with an older base.
        can_personalize: Whether devices hold a personal state.
    """

    num_labels: int
    num_devices: int
    num_pool_rows: int = 0
    labels_leave_devices: bool = False
    remaining_epsilon: float | None = None
    campaign_epsilon: float = 0.0
    filter_allows: bool | None = None
    personal_gain: float | None = None
    refused_base_fraction: float | None = None
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
        personal_gain=facts.personal_gain,
        refused_base_fraction=facts.refused_base_fraction,
        can_personalize=facts.can_personalize,
        remaining_epsilon=facts.remaining_epsilon,
        campaign_epsilon=facts.campaign_epsilon,
        filter_allows=facts.filter_allows,
    )


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
