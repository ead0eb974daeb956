"""What the fleet sent, kept as sums: the one mutable accumulator of monitoring.

Rules of this file:
    * A row counts exactly once, however often it comes, and late rows correct their own slot. The order of arrival
      changes no bit: everything kept is an integer sum, a maximum or a sorted set.
    * A row is known by its device, its slot and its sequence number. A resend is the same row, so it names the same
      slot; what was counted is remembered with the slot and forgotten with it, when nothing so old is taken any more.
    * By group and version each slot is kept. By device each slot keeps a few sums, features are kept in coarser
      chunks: ``7 days x 24 h x 1,000 devices x 8 x 13`` cells would take 70 MB, 10,000 devices of 128 features 9 GB. Sums by device
      are as narrow as they may be (`narrow`).
    * Rows of devices that are kept out are a group of their own, the last, which nobody is told of (`aside`).
    * Nothing is judged here: `refusal.refuse` says beforehand what may be added.

Shapes: K rows, S slots (ring), P chunks (ring), G groups, D devices, F features, C cells, R registers.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.monitoring.aside import absent, left_out
from fedretrain.monitoring.device_chunks import DeviceChunks
from fedretrain.monitoring.narrow import NarrowRing
from fedretrain.monitoring.refusal import Known
from fedretrain.monitoring.reports import NUM_DELAY_BINS, LabelReports, Reports
from fedretrain.monitoring.rings import CHUNK_SLOTS, ByKey, kept_horizon, sum_pieces
from fedretrain.monitoring.serving import Columns, VersionRing
from fedretrain.monitoring.windows import DeviceCounts, PersonalCounts, WindowCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from fedretrain.monitoring.aside import KeptOut
    from fedretrain.monitoring.bins import Bins

RowsT = TypeVar("RowsT", Reports, LabelReports)
_SEEN = ("telemetry", "labels")


class FleetStore:
    """Counts of a fleet over the last slots. Mutable: `add` and `add_labels` change it in place.

    Args:
        num_devices: D.
        group_D: ``[D]`` the group (type or site) of each device, 0 .. G - 1.
        bins: The bins of the champion.
        slot_s: Length of a slot.
        keep_slots: Slots kept at least; rounded up to whole chunks and one more.
        num_outputs: M: classes, or baseline bins of a regression's output.
        classification: Labels come as confusion counts; otherwise as squared errors.
        kpis: Names of the KPIs that rows may carry.
        chunk_slots: Slots in a chunk of the features by device.
        num_registers: R of the HyperLogLog registers; 0 keeps none.

    Raises:
        ConfigError: If the groups do not fit or a number is impossible.
    """

    def __init__(
        self,
        num_devices: int,
        group_D: NDArray[np.int64],
        bins: Bins,
        slot_s: float,
        keep_slots: int = 360,
        *,
        num_outputs: int,
        classification: bool = True,
        kpis: tuple[str, ...] = (),
        chunk_slots: int = CHUNK_SLOTS,
        num_registers: int = 0,
    ) -> None:
        group_D = np.asarray(group_D, dtype=np.int64)
        if group_D.shape != (num_devices,) or num_devices < 1 or group_D.min() < 0:
            raise ConfigError("each device needs a group of 0 or more", where="group_D")
        if slot_s <= 0 or keep_slots < 1 or chunk_slots < 1 or num_outputs < 1:
            raise ConfigError("slots, chunks and outputs are positive", where="store")
        self.num_devices, self.group_D, self.num_groups = num_devices, group_D, int(group_D.max()) + 1
        self.bins, self.slot_s = bins, slot_s
        self.columns = Columns(num_outputs, classification, kpis)
        self.horizon = kept_horizon(keep_slots, chunk_slots)
        slots, chunks = self.horizon.num_slots, self.horizon.num_chunks
        cells, groups = (bins.num_features, bins.num_cells), self.num_groups + 1
        self._features_SGFC = np.zeros((slots, groups, *cells), dtype=np.int64)
        self._violations_SGF = np.zeros((slots, groups, cells[0]), dtype=np.int64)
        self._features = NarrowRing(chunks, 1, num_devices, cells[0] * cells[1])  # by chunk
        self._distinct_PGFR = np.zeros((chunks, groups, cells[0], num_registers), dtype=np.uint8)
        self._by_device = DeviceChunks(self.horizon, num_devices)
        self._versions: dict[int, VersionRing] = {}
        self._stays: tuple[KeptOut, ...] = ()
        self._seen: dict[str, dict[int, NDArray[np.int64]]] = {kind: {} for kind in _SEEN}

    @property
    def oldest_slot(self) -> int:
        """The oldest slot that still takes data."""
        return self.horizon.oldest_slot

    @property
    def newest_slot(self) -> int:
        """The newest slot with data; -1 if there is none."""
        return self.horizon.newest_slot

    def known(self, versions: Iterable[int], tolerance_s: float = 300.0) -> Known:
        """What rows may refer to, for `refuse`, given the released `versions`."""
        return Known(
            self.bins.digest,
            self.num_devices,
            frozenset(versions),
            (self.bins.num_features, self.bins.num_cells, self.columns.num_outputs),
            self.columns.classification,
            self.columns.kpis,
            self.slot_s,
            self,
            tolerance_s,
        )

    def keep_out(self, stays: tuple[KeptOut, ...]) -> None:
        """From now on the rows of these stays are not the fleet's; those that were counted already stay where they are."""
        self._stays = stays

    def _group(self, rows: Reports | LabelReports) -> NDArray[np.int64]:
        """``[K]`` the group that each row is counted in."""
        out_K = left_out(self._stays, rows.device_K, rows.slot_K)
        return np.where(out_K, self.num_groups, self.group_D[rows.device_K])

    # ---- counting

    def add(self, reports: Reports) -> int:
        """Count the telemetry rows that are new; how many were.

        Raises:
            DataError: If the rows were counted on other bins.
        """
        if len(reports) and reports.bins != self.bins.digest:
            raise DataError("the rows were counted on other bins", where="bins", fix="refuse them first")
        rows = self._take_new("telemetry", reports)
        if not len(rows):
            return 0
        group_K, at_K = self._group(rows), rows.slot_K % self.horizon.num_slots
        by_group = ByKey.of(at_K * (self.num_groups + 1) + group_K)
        by_group.add_to(_flat(self._features_SGFC, 2), rows.features_KFC.reshape(len(rows), -1))
        by_group.add_to(_flat(self._violations_SGF, 2), rows.violations_KF)
        chunk_K = rows.slot_K // self.horizon.chunk_slots % self.horizon.num_chunks
        by_device = ByKey.of(chunk_K * self.num_devices + rows.device_K)
        self._features.add(by_device, rows.features_KFC.reshape(len(rows), -1))
        if rows.distinct_KFR is not None and self._distinct_PGFR.size:
            by_chunk = ByKey.of(chunk_K * (self.num_groups + 1) + group_K)
            by_chunk.raise_to(_flat(self._distinct_PGFR, 2), rows.distinct_KFR.reshape(len(rows), -1))
        self._by_device.add(rows)
        for version, part in _by_version(rows):
            self._ring(version, part).add(part, self._group(part))
        return len(rows)

    def add_labels(self, labels: LabelReports) -> int:
        """Count the label rows that are new, in the slot of their predictions; how many were."""
        rows = self._take_new("labels", labels)
        self._by_device.add_labels(rows)
        for version, part in _by_version(rows):
            self._ring(version, part).add_labels(part, self._group(part))
        return len(rows)

    def fresh(
        self, kind: str, device_K: NDArray[np.int64], slot_K: NDArray[np.int64], sequence_K: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """``[K]`` True for the first row of its (device, slot, sequence) that was not counted yet."""
        fresh_K = np.zeros(len(device_K), dtype=bool)
        for slot, index, keys in _by_slot(slot_K, _key(device_K, sequence_K)):
            new = np.ones(len(keys), dtype=bool)
            np.not_equal(keys[1:], keys[:-1], out=new[1:])
            seen = self._seen[kind].get(slot)
            if seen is not None:
                new &= seen[np.minimum(seen.searchsorted(keys), len(seen) - 1)] != keys
            fresh_K[index[new]] = True
        return fresh_K

    def room(
        self, device_K: NDArray[np.int64], slot_K: NDArray[np.int64], version_K: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """``[K]`` predictions without a label of each (device, slot, version)."""
        room_K = np.zeros(len(device_K), dtype=np.int64)
        kept_K = (slot_K >= self.oldest_slot) & (slot_K <= self.newest_slot)
        for version, ring in self._versions.items():
            mine_K = kept_K & (version_K == version)
            room_K[mine_K] = ring.unlabelled(slot_K[mine_K], device_K[mine_K])
        return room_K

    def _take_new(self, kind: str, rows: RowsT) -> RowsT:
        """The rows that are new and not too late, noted as seen."""
        if not len(rows):
            return rows
        self._advance(int(rows.slot_K.max()))
        new_K = rows.slot_K >= self.oldest_slot
        new_K[new_K] = self.fresh(kind, rows.device_K[new_K], rows.slot_K[new_K], rows.sequence_K[new_K])
        if not new_K.all():
            rows = rows.take(new_K)
        for slot, _, keys in _by_slot(rows.slot_K, _key(rows.device_K, rows.sequence_K)):
            seen = self._seen[kind].get(slot)
            if seen is not None:
                keys = np.concatenate([seen, keys])  # noqa: PLW2901 - two ascending runs: the sort only merges
                keys.sort(kind="stable")
            self._seen[kind][slot] = keys
        return rows

    def _advance(self, slot: int) -> None:
        """Make room for `slot`: chunks that fall out of the ring are forgotten."""
        over = self.horizon.advance(slot)
        if not over:
            return
        for chunk in over:
            at = slice(chunk * self.horizon.chunk_slots, (chunk + 1) * self.horizon.chunk_slots)
            self._features_SGFC[at], self._violations_SGF[at] = 0, 0
            self._distinct_PGFR[chunk] = 0
            self._features.clear(slice(chunk, chunk + 1))
            self._by_device.clear(chunk)
            for ring in self._versions.values():
                ring.clear(at)
        self._versions = {v: r for v, r in self._versions.items() if r.newest_slot >= self.oldest_slot}
        for kind, seen in self._seen.items():
            self._seen[kind] = {at: keys for at, keys in seen.items() if at >= self.oldest_slot}

    def _ring(self, version: int, rows: Reports | LabelReports) -> VersionRing:
        ring = self._versions.get(version)
        if ring is None:
            ring = VersionRing(self.columns, self.horizon, self.group_D)
            self._versions[version] = ring
        ring.newest_slot = max(ring.newest_slot, int(rows.slot_K.max()))
        return ring

    # ---- asking

    def window(self, end_slot: int, num_slots: int) -> WindowCounts:
        """The counts of the slots ``[end_slot - num_slots, end_slot)``; slots that are over or to come count nothing."""
        first = end_slot - num_slots
        pieces, out = list(self.horizon.pieces(first, end_slot)), absent(self._stays, first, end_slot)
        served = {v: ring.window(pieces, out) for v, ring in sorted(self._versions.items())}
        served = {v: counts for v, counts in served.items() if counts.predictions_D.any()}
        reported_D = np.zeros(self.num_devices, dtype=bool)
        for counts in served.values():
            reported_D |= counts.predictions_D > 0
        return WindowCounts(
            first,
            end_slot,
            end_slot - max(first, min(self.oldest_slot, end_slot)),
            sum_pieces(self._features_SGFC, pieces)[: self.num_groups],
            sum_pieces(self._violations_SGF, pieces)[: self.num_groups],
            reported_D,
            served,
            self._registers(first, end_slot),
        )

    def devices(self, end_slot: int, num_slots: int) -> DeviceCounts:
        """Features by device over every chunk that the window ``[end_slot - num_slots, end_slot)`` touches."""
        chunk = self.horizon.chunk_slots
        first, end = (end_slot - num_slots) // chunk, -(-end_slot // chunk)
        rings = [slice(at, at + 1) for at in self._chunks(first, end)]
        total_DFC = self._features.sum(rings).reshape(self.num_devices, *self._features_SGFC.shape[2:])
        return DeviceCounts(first * chunk, end * chunk, total_DFC)

    def personal(self, end_slot: int, num_slots: int) -> PersonalCounts:
        """What devices said of their personal models, over every chunk that the window touches."""
        chunk = self.horizon.chunk_slots
        first, end = (end_slot - num_slots) // chunk, -(-end_slot // chunk)
        out = absent(self._stays, first * chunk, end * chunk)
        return self._by_device.personal(self._chunks(first, end), out)

    def slots(self, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The fleet's features ``[S, F, C]`` and predictions by output ``[S, M]`` of each slot of ``[first, end)``.

        Raises:
            DataError: If a slot is not kept any more.
        """
        if first < self.oldest_slot:
            raise DataError(f"slot {first} is not kept", where="first", fix="raise keep_slots")
        pieces = list(self.horizon.pieces(first, end))
        features = np.zeros((end - first, *self._features_SGFC.shape[2:]), dtype=np.int64)
        outputs = np.zeros((end - first, self.columns.num_outputs), dtype=np.int64)
        at = 0
        for piece in pieces:
            length = piece.stop - piece.start
            features[at : at + length] = self._features_SGFC[piece, : self.num_groups].sum(axis=1)
            for ring in self._versions.values():
                outputs[at : at + length] += ring.outputs(piece)
            at += length
        return features, outputs

    def label_slots(self, first: int, end: int, version: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One version's labels by delay ``[S, B]`` and predictions ``[S]`` of each slot of ``[first, end)``."""
        delays = np.zeros((end - first, NUM_DELAY_BINS), dtype=np.int64)
        predictions = np.zeros(end - first, dtype=np.int64)
        ring = self._versions.get(version)
        at = max(first, self.oldest_slot) - first
        for piece in self.horizon.pieces(first, end) if ring else ():
            assert ring is not None
            length = piece.stop - piece.start
            delays[at : at + length] = ring.delays(piece)
            predictions[at : at + length] = ring.outputs(piece).sum(axis=1)
            at += length
        return delays, predictions

    def kpi_window(self, first: int, end: int, version: int) -> dict[str, NDArray[np.float64]]:
        """``[D, 2]`` (total, weight) of each KPI under one version, over the kept slots of ``[first, end)``."""
        ring = self._versions.get(version)
        if ring is None:
            return {name: np.zeros((self.num_devices, 2)) for name in self.columns.kpis}
        return ring.kpis(list(self.horizon.pieces(first, end)), absent(self._stays, first, end))

    def label_chunks(
        self, first: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Labels by device, chunk and delay ``[D, P, B]``, predictions ``[D, P]`` and the slot after each chunk ``[P]``.

        Of the kept chunks that lie wholly in the slots ``[first, end)``, whatever version served.
        """
        chunk = self.horizon.chunk_slots
        rings = self._chunks(-(-first // chunk), end // chunk)
        last = min(end // chunk, self.newest_slot // chunk + 1)
        ends_P = np.arange(last - len(rings) + 1, last + 1, dtype=np.int64) * chunk
        predicted_DP = np.zeros((self.num_devices, len(rings)), dtype=np.int64)
        for ring in self._versions.values():
            for at, place in enumerate(rings):
                predicted_DP[:, at] += ring.predictions(slice(place * chunk, (place + 1) * chunk))
        delays_DPB, out = self._by_device.delays(rings), absent(self._stays, first, end)
        delays_DPB[out], predicted_DP[out] = 0, 0
        return delays_DPB, predicted_DP, ends_P

    def digest(self) -> str:
        """SHA-256 of everything that is kept: equal stores, and only those, share it."""
        content = hashlib.sha256(repr((self.newest_slot, self.bins.digest)).encode())
        arrays: list[NDArray[Any]] = [self._features_SGFC, self._violations_SGF, self._distinct_PGFR]
        for array in (*arrays, *self._by_device.arrays()):
            content.update(array.tobytes())
        for part in self._features.content():
            content.update(part)
        for version, ring in sorted(self._versions.items()):
            content.update(repr((version, ring.newest_slot)).encode())
            for part in ring.content():
                content.update(part)
        for kind in _SEEN:
            for slot, keys in sorted(self._seen[kind].items()):
                content.update(repr((kind, slot, len(keys))).encode())
                content.update(keys.tobytes())
        return content.hexdigest()

    @property
    def num_bytes(self) -> int:
        """What is kept of devices, in memory: nearly all of it."""
        kept = self._features.num_bytes + sum(ring.num_bytes for ring in self._versions.values())
        kept += sum(array.nbytes for array in self._by_device.arrays())
        return kept + sum(keys.nbytes for seen in self._seen.values() for keys in seen.values())

    def _chunks(self, first: int, end: int) -> list[int]:
        """Ring positions of the kept chunks of ``[first, end)``."""
        chunk = self.horizon.chunk_slots
        first = max(first, self.oldest_slot // chunk)
        end = min(end, self.newest_slot // chunk + 1)
        return [index % self.horizon.num_chunks for index in range(first, end)]

    def _registers(self, first_slot: int, end_slot: int) -> NDArray[np.uint8]:
        chunk = self.horizon.chunk_slots
        rings = self._chunks(first_slot // chunk, -(-end_slot // chunk))
        top_GFR: NDArray[np.uint8] = self._distinct_PGFR[rings].max(axis=0, initial=0)
        return top_GFR[: self.num_groups]


def _flat(array: NDArray[Any], axes: int) -> NDArray[Any]:
    """The first `axes` axes as rows, the rest as columns; a view."""
    return array.reshape(int(np.prod(array.shape[:axes])), -1)


def _key(device_K: NDArray[np.int64], sequence_K: NDArray[np.int64]) -> NDArray[np.int64]:
    return (device_K << 32) | sequence_K


def _by_slot(
    slot_K: NDArray[np.int64], key_K: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Each slot, where its rows are, and their keys, ascending; of equal keys the first row comes first."""
    if not len(slot_K):
        return
    order = np.lexsort((key_K, slot_K))
    slots, keys = slot_K[order], key_K[order]
    bounds = [0, *(np.flatnonzero(slots[1:] != slots[:-1]) + 1).tolist(), len(slots)]
    for first, end in itertools.pairwise(bounds):
        yield int(slots[first]), order[first:end], keys[first:end]


def _by_version(rows: RowsT) -> list[tuple[int, RowsT]]:
    """The rows of each version."""
    versions = np.unique(rows.version_K).tolist()
    if len(versions) == 1:
        return [(versions[0], rows)]
    return [(version, rows.take(rows.version_K == version)) for version in versions]
