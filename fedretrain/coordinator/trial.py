"""What two arms of a trial measured, from the counts that devices sent: one summary per device.

Rules of this file:
    * Arms are compared as they were ordered: a device that refused the candidate stays in the treated arm, whatever it served.
    * In shadow the candidate's scores are counts of their own; the comparison is paired on the devices that have both.
    * Both arms are measured over the same slots, those that began after the stage did; a device's own record from before
      ends where the rollout begins.
    * Devices that are kept out are in no arm.

Shapes: D devices, K devices of an arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS
from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from fedretrain.monitoring.store import FleetStore
    from fedretrain.monitoring.windows import Served

_MIDDLES = (np.arange(NUM_CONFIDENCE_BINS) + 0.5) / NUM_CONFIDENCE_BINS


@dataclass(frozen=True)
class Arms:
    """Who is compared.

    Attributes:
        treated_D: ``[D]`` devices that shall run, or in shadow score, the candidate.
        counted_D: ``[D]`` devices that are not kept out.
        shadow: Whether the candidate is only scored.
    """

    treated_D: NDArray[np.bool_]
    counted_D: NDArray[np.bool_]
    shadow: bool


@dataclass(frozen=True)
class Span:
    """Slots ``[first, end)``.

    Attributes:
        first: The first.
        end: The one after the last.
    """

    first: int
    end: int


def measure(
    metrics: Iterable[str],
    arms: Arms,
    served: FleetStore,
    shadowed: FleetStore,
    stage: Span,
    before: Span,
    candidate: int,
) -> list[MetricEvidence]:
    """Evidence for each metric: ``accuracy``, ``confidence``, or a KPI by its name.

    Args:
        metrics: Their names.
        arms: Who is compared.
        served: Counts of what devices served.
        shadowed: Counts of what they only scored.
        stage: Slots of the stage.
        before: Slots before the rollout.
        candidate: Its version.
    """
    now_ = _Sums(_versions(served, stage))
    then = _Sums(_versions(served, before))
    scored = _Sums([one for version, one in _window(shadowed, stage) if version == candidate])
    treated = np.flatnonzero(arms.treated_D & arms.counted_D)
    others = treated if arms.shadow else np.flatnonzero(~arms.treated_D & arms.counted_D)
    found = []
    for metric in metrics:
        mine = (scored if arms.shadow else now_).of(metric, len(arms.treated_D))
        theirs = now_.of(metric, len(arms.treated_D))
        known = then.of(metric, len(arms.treated_D))
        found.append(
            MetricEvidence(
                metric, _arm(treated, mine, known), _arm(others, theirs, known), paired=arms.shadow
            )
        )
    return found


@dataclass(frozen=True)
class _Sums:
    """Several versions' counts, to be added by device."""

    parts: Sequence[Served]

    def of(self, metric: str, num_devices: int) -> NDArray[np.float64]:
        """``[D, 2]`` (total, weight) of a metric."""
        total_D2 = np.zeros((num_devices, 2))
        for one in self.parts:
            if metric == "accuracy":
                total_D2 += np.stack([one.correct_D, one.labelled_D], axis=1)
            elif metric == "confidence":
                total_D2 += np.stack([one.confidence_DB @ _MIDDLES, one.confidence_DB.sum(axis=1)], axis=1)
            elif metric == "rmse":
                total_D2 += one.error_D2
            elif metric in one.kpis_D2:
                total_D2 += one.kpis_D2[metric]
        return total_D2


def _arm(
    device_K: NDArray[np.int64], total_D2: NDArray[np.float64], before_D2: NDArray[np.float64]
) -> DeviceMeans:
    """A row for each device of an arm."""
    return DeviceMeans(device_K, _mean(total_D2)[device_K], total_D2[device_K, 1], _mean(before_D2)[device_K])


def _mean(total_D2: NDArray[np.float64]) -> NDArray[np.float64]:
    weight_D = total_D2[:, 1]
    return np.where(weight_D > 0, total_D2[:, 0] / np.where(weight_D > 0, weight_D, 1.0), np.nan)


def _window(store: FleetStore, span: Span) -> list[tuple[int, Served]]:
    if span.end <= span.first:
        return []
    return list(store.window(span.end, span.end - span.first).served.items())


def _versions(store: FleetStore, span: Span) -> list[Served]:
    return [served for _, served in _window(store, span)]
