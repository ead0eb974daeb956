"""What normal looked like when the champion was released: shipped with it, never updated.

Rules of this file:
    * Made from slots that the champion itself served, so that its own predictions, confidence and labels are in it.
    * Inputs, and how soon labels come, are no work of a champion: a promotion need not replace that part (`with_inputs_of`).
    * A null for each window that is judged; a window longer than half of the baseline has none, and its views are
      inconclusive.
    * Counts, not samples: a baseline can be shipped where its data may not.

Shapes: G groups, D devices, F features, C cells, M classes, B confidence bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.monitoring.guardrails import KpiRecord, kpi_record
from fedretrain.monitoring.labels import ArrivalCurve, arrival_curve, macro_f1
from fedretrain.monitoring.locate import MIN_WINDOWS, DeviceRecord, make_record
from fedretrain.monitoring.null import EmpiricalNull, fit_null
from fedretrain.monitoring.ratios import Ratio, ratio
from fedretrain.monitoring.reports import DELAY_EDGES_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fedretrain.monitoring.bins import Bins
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.monitoring.store import FleetStore
    from fedretrain.monitoring.windows import Served


@dataclass(frozen=True)
class Baseline:
    """A champion's record.

    Attributes:
        version: The champion.
        bins: Its bins.
        features_GFC: int64 sensor rows by group.
        nulls: Empirical null of the features by the window's length in slots.
        output_nulls: Likewise of the predictions (one feature of M cells).
        outputs_M: int64 predictions by class or bin.
        confidence_B: int64 predictions by confidence.
        accuracy: Labelled accuracy; NaN for a regression or without labels.
        macro_f1: Likewise.
        rmse: Root mean squared error; NaN for a classification or without labels.
        calibration_B2: int64 (labelled, correct) by confidence.
        arrival: How soon labels came; None without predictions.
        kpi_records: KPIs with a sequential test, in windows as long as those that are judged.
        arrivals_D: The same for each device ``[D, B]``, by whole chunks, whatever version served; None without any.
        kpis: KPIs with their spread over devices.
        record: How devices were; None if there were too few windows.
    """

    version: int
    bins: Bins
    features_GFC: NDArray[np.int64]
    nulls: Mapping[int, EmpiricalNull]
    output_nulls: Mapping[int, EmpiricalNull]
    outputs_M: NDArray[np.int64]
    confidence_B: NDArray[np.int64]
    accuracy: float
    macro_f1: float
    rmse: float
    calibration_B2: NDArray[np.int64]
    arrival: ArrivalCurve | None
    kpis: Mapping[str, Ratio]
    record: DeviceRecord | None
    arrivals_D: ArrivalCurve | None = None
    kpi_records: Mapping[str, KpiRecord] = field(default_factory=dict)

    @property
    def features_FC(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """The fleet's sensor rows."""
        total: NDArray[np.int64] = self.features_GFC.sum(axis=0)
        return total

    def with_inputs_of(self, other: Baseline) -> Baseline:
        """What this champion did, beside the inputs, devices and arrival of labels of another record.

        Raises:
            DataError: If the other counts on other bins: a changed feature schema makes every baseline new.
        """
        if other.bins.digest != self.bins.digest:
            raise DataError(
                "the baselines have different bins", where="bins", fix="make both with the champion's bins"
            )
        return replace(
            self,
            features_GFC=other.features_GFC,
            nulls=other.nulls,
            record=other.record,
            arrivals_D=other.arrivals_D,
        )

    def with_room(self, num_devices: int) -> Baseline:
        """The same for a fleet of as many devices or more, whose numbers are as they were."""
        record, arrivals_D = self.record, self.arrivals_D
        return replace(
            self,
            record=None if record is None else record.with_room(num_devices),
            arrivals_D=None if arrivals_D is None else arrivals_D.with_room(num_devices),
        )


def slots_of(length_s: float, slot_s: float) -> int:
    """A duration in slots, at least 1."""
    return max(1, round(length_s / slot_s))


def make_baseline(
    store: FleetStore,
    first_slot: int,
    end_slot: int,
    policy: MonitoringPolicy,
    *,
    version: int,
    now: float,
    season_S: NDArray[np.int64] | None = None,
) -> Baseline:
    """The record of the slots ``[first_slot, end_slot)``.

    Args:
        store: Where they are kept still.
        first_slot: The first.
        end_slot: The slot after the last.
        policy: Its windows get a null each.
        version: The champion; predictions and labels are those it made.
        now: The instant, seconds: how old the slots are, for the label arrival curve.
        season_S: ``[S]`` the season of each slot, where windows are to be judged by their own season's.

    Raises:
        DataError: If a slot is not kept any more or there is not a sensor row.
    """
    features_SFC, outputs_SM = store.slots(first_slot, end_slot)
    if not features_SFC.any():
        raise DataError(
            "no device reported in the baseline", where="baseline", fix="wait, or take other slots"
        )
    counts = store.window(end_slot, end_slot - first_slot)
    nulls, output_nulls = {}, {}
    for window in policy.windows:
        slots = slots_of(window.length_s, store.slot_s)
        stride = slots_of(window.stride_s, store.slot_s)
        if 2 * slots <= end_slot - first_slot:
            nulls[slots] = fit_null(features_SFC, slots, stride, season_S)
            output_nulls[slots] = fit_null(outputs_SM[:, None, :], slots, stride, season_S)
    served = counts.served.get(version)
    accuracy, f1, rmse = (math.nan,) * 3 if served is None else _scores(served)
    size = store.columns.num_outputs
    return Baseline(
        version=version,
        bins=store.bins,
        features_GFC=counts.features_GFC,
        nulls=nulls,
        output_nulls=output_nulls,
        outputs_M=np.zeros(size, np.int64) if served is None else served.outputs_GM.sum(axis=0),
        confidence_B=np.zeros(10, np.int64) if served is None else served.confidence_GB.sum(axis=0),
        accuracy=accuracy,
        macro_f1=f1,
        rmse=rmse,
        calibration_B2=np.zeros((10, 2), np.int64) if served is None else served.calibration_GB2.sum(axis=0),
        arrival=None if served is None else _arrival(store, first_slot, end_slot, version, now),
        kpis={}
        if served is None
        else {name: ratio(pair, policy.kpi_rules.confidence) for name, pair in served.kpis_D2.items()},
        record=_record(store, first_slot, end_slot, policy),
        arrivals_D=device_arrivals(store, first_slot, end_slot, now),
        kpi_records=_kpi_records(store, first_slot, end_slot, policy, version),
    )


def _scores(served: Served) -> tuple[float, float, float]:
    """Accuracy, macro-F1 and RMSE; NaN where there are no such labels."""
    labelled, errors_2 = int(served.labelled_D.sum()), served.error_D2.sum(axis=0)
    if errors_2[1] > 0:
        return math.nan, math.nan, math.sqrt(errors_2[0] / errors_2[1])
    if not labelled:
        return (math.nan,) * 3
    return (
        int(served.correct_D.sum()) / labelled,
        float(macro_f1(served.confusion_GMM.sum(axis=0))),
        math.nan,
    )


def _arrival(store: FleetStore, first_slot: int, end_slot: int, version: int, now: float) -> ArrivalCurve:
    delays_SB, predicted_S = store.label_slots(first_slot, end_slot, version)
    age_S = now - (np.arange(first_slot, end_slot) + 1) * store.slot_s
    return arrival_curve(delays_SB, predicted_S, age_S, DELAY_EDGES_S)


def device_arrivals(store: FleetStore, first_slot: int, end_slot: int, now: float) -> ArrivalCurve | None:
    """How soon labels came to each device ``[D, B]``, by the whole chunks in ``[first_slot, end_slot)``; None without any.

    Args:
        store: What the fleet sent.
        first_slot: The first.
        end_slot: The slot after the last.
        now: The instant, seconds, that the age of predictions is counted to.
    """
    delays_DPB, predicted_DP, ends_P = store.label_chunks(first_slot, end_slot)
    if not predicted_DP.any():
        return None
    return arrival_curve(delays_DPB, predicted_DP, now - ends_P * store.slot_s, DELAY_EDGES_S)


def _kpi_records(
    store: FleetStore, first_slot: int, end_slot: int, policy: MonitoringPolicy, version: int
) -> dict[str, KpiRecord]:
    """The KPIs that a sequential test will judge, by the last whole windows of the baseline."""
    names = [kpi.name for kpi in policy.kpis if kpi.sequential and kpi.name in store.columns.kpis]
    length = slots_of(policy.kpi_rules.window_s, store.slot_s)
    starts = range(end_slot - length, first_slot - 1, -length)
    if not names or not starts:
        return {}
    windows = [store.kpi_window(start, start + length, version) for start in starts]
    found = {
        name: kpi_record(np.stack([w[name] for w in windows]), policy.kpi_rules.exposure_fraction)
        for name in names
    }
    return {name: record for name, record in found.items() if record is not None}


def _record(
    store: FleetStore, first_slot: int, end_slot: int, policy: MonitoringPolicy
) -> DeviceRecord | None:
    """How devices were, by windows of whole chunks inside the baseline."""
    chunk = store.horizon.chunk_slots
    length = -(-slots_of(policy.place.window_s, store.slot_s) // chunk) * chunk
    starts = range(-(-first_slot // chunk) * chunk, end_slot - length + 1, length)
    if len(starts) < MIN_WINDOWS:
        return None
    windows = [store.devices(start + length, length).features_DFC for start in starts]
    return make_record(windows, length, policy.place.min_rows)
