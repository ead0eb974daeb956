"""What one version served and which labels came back, by slot: a part of the store.

Rules of this file:
    * By group everything lies side by side in one row of integers (`Columns` says where), so that a batch is one addition.
    * By device only what a rate with the device as its unit needs. Real numbers are kept as pairs of integers
      (`rings.to_whole`), each of the two apart: wholes and weights are small, fractions are not.

Shapes: K rows, S slots (ring), G groups, D devices, W columns, N counts by device, Q pairs of integers by device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.monitoring.narrow import NarrowRing
from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS, NUM_DELAY_BINS, NUM_LATENCY_BINS
from fedretrain.monitoring.rings import ByKey, from_whole, sum_pieces, to_whole
from fedretrain.monitoring.windows import Served

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from fedretrain.monitoring.reports import LabelReports, Reports
    from fedretrain.monitoring.rings import Horizon

_PREDICTIONS, _LABELLED, _CORRECT = range(3)
_CONFIDENCE = slice(3, 3 + NUM_CONFIDENCE_BINS)


@dataclass(frozen=True)
class Columns:
    """Where each quantity lies in a row.

    Attributes:
        num_outputs: M.
        classification: Confusion counts are kept, not squared errors.
        kpis: Names of the KPIs.
    """

    num_outputs: int
    classification: bool
    kpis: tuple[str, ...]

    @cached_property
    def telemetry(self) -> dict[str, slice]:
        """Columns of telemetry."""
        sizes = {
            "outputs": self.num_outputs,
            "confidence": NUM_CONFIDENCE_BINS,
            "entropy": NUM_CONFIDENCE_BINS,
            "latency": NUM_LATENCY_BINS,
        }
        return _lay_out(sizes)

    @cached_property
    def labels(self) -> dict[str, slice]:
        """Columns of labels."""
        sizes = {
            "confusion": self.num_outputs**2 if self.classification else 0,
            "calibration": 2 * NUM_CONFIDENCE_BINS,
            "delay": NUM_DELAY_BINS,
        }
        return _lay_out(sizes)


def _lay_out(sizes: dict[str, int]) -> dict[str, slice]:
    places, at = {}, 0
    for name, size in sizes.items():
        places[name] = slice(at, at + size)
        at += size
    return places


def _width(places: dict[str, slice]) -> int:
    return max(int(place.stop) for place in places.values())


class VersionRing:
    """One version's sums over the kept slots. Mutable.

    Args:
        columns: Where each quantity lies.
        horizon: Which slots are kept.
        group_D: ``[D]`` the group of each device, 0 .. G - 1.
    """

    def __init__(self, columns: Columns, horizon: Horizon, group_D: NDArray[np.int64]) -> None:
        self.columns, self.newest_slot, self._group_D = columns, -1, group_D
        num_slots = horizon.num_slots
        num_groups = int(group_D.max()) + 2  # the last: rows that are not the fleet's
        self._telemetry_SGW = np.zeros((num_slots, num_groups, _width(columns.telemetry)), dtype=np.int64)
        self._labels_SGW = np.zeros((num_slots, num_groups, _width(columns.labels)), dtype=np.int64)

        def by_device(width: int) -> NarrowRing:
            return NarrowRing(num_slots, horizon.chunk_slots, len(group_D), width)

        self._counts = by_device(_CONFIDENCE.stop)
        self._losses = [by_device(1) for _ in range(2 if columns.classification else 0)]
        self._kpis = [by_device(1) for _ in range(4 * len(columns.kpis))]
        self._errors = [by_device(1) for _ in range(0 if columns.classification else 4)]

    @property
    def _by_device(self) -> tuple[NarrowRing, ...]:
        return self._counts, *self._losses, *self._kpis, *self._errors

    @property
    def num_bytes(self) -> int:
        """What is kept of devices, in memory."""
        return sum(ring.num_bytes for ring in self._by_device)

    def content(self) -> Iterator[bytes]:
        """Everything that is kept: equal rings, and only those, give the same bytes."""
        yield self._telemetry_SGW.tobytes()
        yield self._labels_SGW.tobytes()
        for number, ring in enumerate(self._by_device):
            yield b"by device %d" % number
            yield from ring.content()

    def clear(self, at: slice) -> None:
        """Forget a chunk of the ring."""
        self._telemetry_SGW[at], self._labels_SGW[at] = 0, 0
        for ring in self._by_device:
            ring.clear(at)

    def outputs(self, at: slice) -> NDArray[np.int64]:
        """``[S, M]`` the fleet's predictions by output, of some slots of the ring."""
        total: NDArray[np.int64] = self._telemetry_SGW[at, :-1, self.columns.telemetry["outputs"]].sum(axis=1)
        return total

    def predictions(self, at: slice) -> NDArray[np.int64]:
        """``[D]`` predictions of each device, over some slots of the ring."""
        return self._counts.sum([at])[:, _PREDICTIONS]

    def kpis(self, pieces: list[slice], out: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """``[D, 2]`` (total, weight) of each KPI by device, over some slots of the ring; nothing of the devices that are left out."""
        whole_DQ = _without(self._kpis, pieces, out, len(self._group_D))
        value_DN2 = from_whole(whole_DQ.reshape(len(whole_DQ), -1, 2, 2))
        return {name: value_DN2[:, i] for i, name in enumerate(self.columns.kpis)}

    def delays(self, at: slice) -> NDArray[np.int64]:
        """``[S, B]`` the fleet's labels by delay, of some slots of the ring."""
        total: NDArray[np.int64] = self._labels_SGW[at, :-1, self.columns.labels["delay"]].sum(axis=1)
        return total

    def unlabelled(self, slot_K: NDArray[np.int64], device_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[K]`` predictions without a label."""
        counts_KN = self._counts.at(slot_K, device_K)
        return counts_KN[:, _PREDICTIONS] - counts_KN[:, _LABELLED]

    def add(self, rows: Reports, group_K: NDArray[np.int64]) -> None:
        """Count telemetry of this version, each row in its group."""
        by_group, by_device = self._keys(rows, group_K)
        packed = [rows.outputs_KM, rows.confidence_KB, rows.entropy_KB, rows.latency_KL]
        by_group.add_to(_rows(self._telemetry_SGW), np.concatenate(packed, axis=1))
        counts_KN = np.zeros((len(rows), _CONFIDENCE.stop), dtype=np.int32)
        counts_KN[:, _PREDICTIONS], counts_KN[:, _CONFIDENCE] = rows.num_predictions, rows.confidence_KB
        self._counts.add(by_device, counts_KN)
        if rows.kpis:
            nothing = np.zeros((len(rows), 2))
            named = [to_whole(rows.kpis.get(name, nothing)).reshape(-1, 4) for name in self.columns.kpis]
            _add(self._kpis, by_device, np.concatenate(named, axis=1))

    def add_labels(self, rows: LabelReports, group_K: NDArray[np.int64]) -> None:
        """Count labels of this version's predictions, each row in its group."""
        by_group, by_device = self._keys(rows, group_K)
        packed = [rows.calibration_KB2.reshape(len(rows), -1), rows.delay_KD]
        if rows.confusion_KMM is not None and self.columns.classification:
            packed.insert(0, rows.confusion_KMM.reshape(len(rows), -1))
        by_group.add_to(_rows(self._labels_SGW), np.concatenate(packed, axis=1))
        counts_KN = np.zeros((len(rows), _CONFIDENCE.stop), dtype=np.int32)
        counts_KN[:, _LABELLED], counts_KN[:, _CORRECT] = rows.num_labelled, rows.num_correct
        self._counts.add(by_device, counts_KN)
        if rows.log_loss_K is not None:
            counted_K = rows.calibration_KB2[:, :, 0].sum(axis=1, dtype=np.int64)
            _add(self._losses, by_device, np.stack([rows.log_loss_K, counted_K], axis=1))
        if rows.error_K2 is not None and not self.columns.classification:
            _add(self._errors, by_device, to_whole(rows.error_K2).reshape(-1, 4))

    def window(self, pieces: list[slice], out: NDArray[np.int64]) -> Served:
        """Sums over some slots of the ring; by device, nothing of those that are left out."""
        telemetry_GW, labels_GW = (
            sum_pieces(self._telemetry_SGW, pieces)[:-1],
            sum_pieces(self._labels_SGW, pieces)[:-1],
        )
        devices, columns = len(self._group_D), self.columns
        counts_DN = _without([self._counts], pieces, out, devices)
        kpis_D2 = self.kpis(pieces, out)
        error_D2 = np.zeros((len(counts_DN), 2))
        if not columns.classification:
            error_D2 = from_whole(_without(self._errors, pieces, out, devices).reshape(-1, 2, 2))
        groups, size = len(telemetry_GW), columns.num_outputs
        confusion_GMM = np.zeros((groups, size, size), dtype=np.int64)
        if columns.classification:
            confusion_GMM = labels_GW[:, columns.labels["confusion"]].reshape(groups, size, size)
        return Served(
            outputs_GM=telemetry_GW[:, columns.telemetry["outputs"]],
            confidence_GB=telemetry_GW[:, columns.telemetry["confidence"]],
            entropy_GB=telemetry_GW[:, columns.telemetry["entropy"]],
            latency_GL=telemetry_GW[:, columns.telemetry["latency"]],
            confusion_GMM=confusion_GMM,
            calibration_GB2=labels_GW[:, columns.labels["calibration"]].reshape(groups, -1, 2),
            delay_GD=labels_GW[:, columns.labels["delay"]],
            error_G2=self._by_group(error_D2, groups),
            kpis_G2={name: self._by_group(value, groups) for name, value in kpis_D2.items()},
            predictions_D=counts_DN[:, _PREDICTIONS],
            confidence_DB=counts_DN[:, _CONFIDENCE],
            labelled_D=counts_DN[:, _LABELLED],
            correct_D=counts_DN[:, _CORRECT],
            log_loss_D2=_without(self._losses, pieces, out, devices),
            error_D2=error_D2,
            kpis_D2=kpis_D2,
        )

    def _keys(self, rows: Reports | LabelReports, group_K: NDArray[np.int64]) -> tuple[ByKey, ByKey]:
        """The rows by (slot, group) and by (slot, device)."""
        at_K = rows.slot_K % len(self._telemetry_SGW)
        groups, devices = self._telemetry_SGW.shape[1], len(self._group_D)
        return ByKey.of(at_K * groups + group_K), ByKey.of(at_K * devices + rows.device_K)

    def _by_group(self, value_D2: NDArray[np.float64], num_groups: int) -> NDArray[np.float64]:
        total_G2 = np.zeros((num_groups, 2))
        np.add.at(total_G2, self._group_D, value_D2)
        return total_G2


def _without(
    rings: Sequence[NarrowRing], pieces: list[slice], out: NDArray[np.int64], num_devices: int
) -> NDArray[np.int64]:
    """``[D, N]`` sums by device over some slots of rings side by side, 0 for the devices that are left out."""
    nothing = np.zeros((num_devices, 0), dtype=np.int64)
    total_DN = np.concatenate([nothing, *(ring.sum(pieces) for ring in rings)], axis=1)
    total_DN[out] = 0
    return total_DN


def _add(rings: Sequence[NarrowRing], keys: ByKey, rows_KQ: NDArray[np.integer]) -> None:
    """Add each column to the ring that is its own."""
    for column, ring in enumerate(rings):
        ring.add(keys, rows_KQ[:, column : column + 1])


def _rows(array: NDArray[Any]) -> NDArray[Any]:
    """Slots and owners as rows; a view."""
    return array.reshape(array.shape[0] * array.shape[1], array.shape[2])
