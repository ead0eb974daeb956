"""What the simulated devices report: the counts that a real agent would send, for many devices at once.

Rules of this file:
    * Only counts leave a device; they are made with the library's own bins, by the same code for any fleet.
    * A report waits on its device until the device is online; it then comes late, with its own slot and sequence number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.monitoring.histogram import cells_of, out_of_range
from fedretrain.monitoring.reports import (
    NUM_CONFIDENCE_BINS,
    NUM_DELAY_BINS,
    NUM_LATENCY_BINS,
    LabelReports,
    Reports,
    delay_bin,
    join,
    latency_bin,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.monitoring.bins import Bins
    from sim.lifetime.rows import LifeRows
    from sim.lifetime.serving import Outputs

    Ids = NDArray[np.int64]

_VERSIONS = 64  # a device's rows of one slot are numbered by version and tick
_LATENCY_SIGMA = 0.3


class Reporter:
    """Makes the reports of a fleet.

    Args:
        rows: Every row of the life.
        bins: Pinned bins of the flattened model inputs.
        num_outputs: M.
        slot_s: The telemetry's slot.
        offset_s: Slots are counted from so long before the life begins.
        seed: Of the latencies.
        latency_of: Median latency in seconds of a version.
    """

    def __init__(
        self,
        rows: LifeRows,
        bins: Bins,
        num_outputs: int,
        slot_s: float,
        offset_s: float,
        seed: int,
        latency_of: Callable[[int], float],
    ) -> None:
        self._rows, self._bins, self._num_outputs = rows, bins, num_outputs
        self._slot_s, self._offset_s = slot_s, offset_s
        self._seed, self._latency_of = seed, latency_of
        self._waiting: list[Reports] = []

    def report(
        self, which: slice, outputs: Outputs, version: NDArray[np.int32], slot: int, now: float
    ) -> Reports:
        """Telemetry of the rows of one slot: one report for each device that has some."""
        rows, bins = self._rows, self._bins
        devices, owner = np.unique(rows.device[which], return_inverse=True)
        num, features, cells = len(devices), bins.num_features, bins.num_cells
        x = rows.x[which].reshape(len(owner), -1)
        label = outputs.label[which].astype(np.int64)
        served = np.zeros(num, dtype=np.int64)
        served[owner] = version[which]
        flat = (owner[:, None] * features + np.arange(features)) * cells + cells_of(bins, x)
        counted = np.bincount(flat.ravel(), minlength=num * features * cells)
        outside = out_of_range(bins, x)
        violations = np.zeros((num, features), dtype=np.int32)
        if outside.any():
            np.add.at(violations, owner, outside.astype(np.int32))
        known = label >= 0
        latency = self._latency(served, slot)[owner]
        return Reports(
            device_K=devices,
            slot_K=np.full(num, slot, dtype=np.int64),
            version_K=served,
            sequence_K=np.zeros(num, dtype=np.int64),
            sent_at_K=np.full(num, now + self._offset_s),
            bins=bins.digest,
            features_KFC=counted.reshape(num, features, cells).astype(np.int32),
            violations_KF=violations,
            outputs_KM=_count(owner[known], label[known], num, self._num_outputs),
            confidence_KB=_count(
                owner[known], _tenth(outputs.confidence[which])[known], num, NUM_CONFIDENCE_BINS
            ),
            entropy_KB=_count(owner[known], _tenth(outputs.entropy[which])[known], num, NUM_CONFIDENCE_BINS),
            latency_KL=_count(owner[known], latency_bin(latency)[known], num, NUM_LATENCY_BINS),
        )

    def _latency(self, served: Ids, slot: int) -> NDArray[np.float64]:
        """``[K]`` seconds: a lognormal around the version's median."""
        seeds = rng.seeds_for(self._seed, slot, np.arange(len(served)), "latency")
        spread = np.exp(_LATENCY_SIGMA * rng.normals(seeds, 1)[:, 0])
        median = {version: self._latency_of(version) for version in np.unique(served).tolist()}
        return np.array([median[version] for version in served.tolist()]) * spread

    def labels(
        self, which: Ids, outputs: Outputs, version: NDArray[np.int32], tick: int, now: float
    ) -> LabelReports:
        """Labels that arrived: one report for each device, slot of the prediction and version."""
        rows, num_outputs = self._rows, self._num_outputs
        which = which[outputs.label[which] >= 0]
        device, served = rows.device[which], version[which].astype(np.int64)
        slot = ((rows.event_at[which] + self._offset_s) // self._slot_s).astype(np.int64)
        key = (slot * _VERSIONS + served % _VERSIONS) * (int(device.max(initial=0)) + 1) + device
        _, first, owner = np.unique(key, return_index=True, return_inverse=True)
        num, label = len(first), outputs.label[which].astype(np.int64)
        truth = rows.y[which].astype(np.int64)
        confusion = _count(owner, truth * num_outputs + label, num, num_outputs * num_outputs)
        tenth = _tenth(outputs.confidence[which])
        right = label == truth
        calibration = np.stack(
            [
                _count(owner, tenth, num, NUM_CONFIDENCE_BINS),
                _count(owner[right], tenth[right], num, NUM_CONFIDENCE_BINS),
            ],
            axis=2,
        )
        delay = delay_bin(rows.label_at[which] - rows.event_at[which])
        return LabelReports(
            device_K=device[first],
            slot_K=slot[first],
            version_K=served[first],
            sequence_K=tick * _VERSIONS + served[first] % _VERSIONS,
            sent_at_K=np.full(num, now + self._offset_s),
            confusion_KMM=confusion.reshape(num, num_outputs, num_outputs),
            error_K2=None,
            calibration_KB2=calibration,
            delay_KD=_count(owner, delay, num, NUM_DELAY_BINS),
        )

    def deliver(self, made: Reports | None, online: NDArray[np.bool_]) -> Reports | None:
        """What arrives now: the reports, new and waiting, of the devices that are online."""
        arriving: list[Reports] = []
        waiting: list[Reports] = []
        for batch in [*self._waiting, *([made] if made is not None else [])]:
            there = online[batch.device_K]
            if there.any():
                arriving.append(batch if there.all() else batch.take(there))
            if not there.all():
                waiting.append(batch.take(~there))
        # Many small batches would be looked at again at each tick.
        self._waiting = [join(waiting)] if len(waiting) > 1 else waiting
        return join(arriving) if arriving else None


def _count(owner: Ids, cell: Ids, num: int, cells: int) -> NDArray[np.int32]:
    """``[num, cells]`` how often each owner has each cell."""
    return np.bincount(owner * cells + cell, minlength=num * cells).reshape(num, cells).astype(np.int32)


def _tenth(share: NDArray[np.float32]) -> Ids:
    """The bin of ten of each number in [0, 1]."""
    return np.minimum((share * NUM_CONFIDENCE_BINS).astype(np.int64), NUM_CONFIDENCE_BINS - 1)
