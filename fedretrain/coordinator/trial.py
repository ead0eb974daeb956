"""What two arms of a trial measured, from the counts that devices sent: one summary per device.

Rules of this file:
    * Arms are compared as they were ordered: a device that refused the candidate stays in the treated arm, whatever it served.
    * In shadow the candidate's scores are counts of their own; the comparison is paired on the devices that have both.
    * Both arms are measured over the same slots, those that began after the stage did; a device's own record from before
      ends where the rollout begins.
    * Devices that are kept out are in no arm.
    * Slots count that began after a stage did and are over: a slot that two stages share is nobody's.

Shapes: D devices, K devices of an arm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S
from fedretrain.monitoring.reports import LATENCY_KPI, LOG_LOSS_STEP, NUM_CONFIDENCE_BINS
from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence
from fedretrain.rollout.power import pre_period

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from fedretrain.coordinator.watching import Clockwork
    from fedretrain.monitoring.store import FleetStore
    from fedretrain.monitoring.windows import Served
    from fedretrain.rollout.power import PrePeriod
    from fedretrain.rollout.state import RolloutState

PRE_PERIOD_S = 14 * DAY_S
"""How far back a device's own record goes that gates adjust by."""

_LEAST_MEASURED = 3  # devices, below which a spread says nothing
_REPORTED_AS = {"latency": LATENCY_KPI}
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


@dataclass(frozen=True)
class Trial:
    """A fleet's counts, as a rollout is judged by them.

    Attributes:
        served: Counts of what devices served.
        shadowed: Counts of what they only scored.
        clockwork: How time is cut.
    """

    served: FleetStore
    shadowed: FleetStore
    clockwork: Clockwork

    def span(self, start_at: float, now: float) -> Span:
        """The slots that began after an instant and are over."""
        start = (start_at + self.clockwork.offset_s) / self.clockwork.slot_s
        return Span(math.ceil(start - 1e-9), self.clockwork.end_slot(now))

    def measure(
        self, metrics: Iterable[str], arms: Arms, rollout: RolloutState, start_at: float, now: float
    ) -> list[MetricEvidence]:
        """Evidence for each metric since a stage of a rollout began."""
        stage, begun = self.span(start_at, now), rollout.created_at
        candidate = rollout.plan.candidate
        return measure(metrics, arms, self.served, self.shadowed, stage, self._record(begun), candidate)

    def pre_period(
        self, metric: str, span_s: float, now: float, counted_D: NDArray[np.bool_]
    ) -> PrePeriod | None:
        """How a metric spread between the devices that count ``[D]`` over the last `span_s`.

        None where fewer than three of them were measured in that window and before it.
        """
        arm, nothing = np.flatnonzero(counted_D), np.full((len(counted_D), 2), 0.0)
        earlier, window = (
            _arm(arm, _Sums(_versions(self.served, span)).of(metric, len(counted_D)), nothing)
            for span in (self._record(now - span_s), self.span(now - span_s, now))
        )
        both = np.intersect1d(earlier.measured().device_K, window.measured().device_K)
        return pre_period(earlier, window, span_s) if len(both) >= _LEAST_MEASURED else None

    def _record(self, end_at: float) -> Span:
        """Slots before an instant, as far back as devices' own records go and are kept."""
        before = self.span(end_at - PRE_PERIOD_S, end_at)
        return Span(max(before.first, self.served.oldest_slot), before.end)


def measure(
    metrics: Iterable[str],
    arms: Arms,
    served: FleetStore,
    shadowed: FleetStore,
    stage: Span,
    before: Span,
    candidate: int,
) -> list[MetricEvidence]:
    """Evidence for each metric: ``accuracy``, ``confidence``, ``latency``, ``log_loss`` (of confidence against labels), ``rmse``, or a KPI by its name.

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
            elif metric == "log_loss" and one.log_loss_D2.size:
                total_D2 += one.log_loss_D2 * np.array([LOG_LOSS_STEP, 1.0])
            elif metric == "rmse":
                total_D2 += one.error_D2
            elif (kpi := _REPORTED_AS.get(metric, metric)) in one.kpis_D2:
                total_D2 += one.kpis_D2[kpi]
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
