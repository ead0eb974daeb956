"""What the simulated devices report: the counts that a real agent would send, for many devices at once.

Rules of this file:
    * Only counts leave a device; they are made by `monitoring.counting`, as a real agent makes them.
    * A report waits on its device until the device is online; it then comes late, with its own slot and sequence number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.monitoring.counting import Predictions, Senders, group, late_labels, telemetry
from fedretrain.monitoring.reports import LabelReports, Reports, join

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.monitoring.bins import Bins
    from sim.lifetime.personal_log import PersonalLog
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
        self,
        which: slice | Ids,
        outputs: Outputs,
        version: NDArray[np.int32],
        slot: int,
        now: float,
        told: PersonalLog | None = None,
    ) -> Reports:
        """Telemetry of the rows of one slot: one report for each device that has some, with what it has to tell."""
        rows = self._rows
        devices, owner = np.unique(rows.device[which], return_inverse=True)
        num = len(devices)
        served = np.zeros(num, dtype=np.int64)
        served[owner] = version[which]
        predictions = Predictions(
            outputs.label[which].astype(np.int64),
            outputs.confidence[which],
            outputs.entropy[which],
            self._latency(served, slot)[owner],
        )
        x = rows.x[which].reshape(len(owner), -1)
        senders = Senders(devices, np.full(num, slot, dtype=np.int64), served)
        sent_at = now + self._offset_s
        counted = telemetry(senders, owner, x, predictions, self._bins, self._num_outputs, sent_at)
        return counted if told is None else replace(counted, **told.take(devices)._asdict())

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
        rows = self._rows
        which = which[outputs.label[which] >= 0]
        slot = ((rows.event_at[which] + self._offset_s) // self._slot_s).astype(np.int64)
        senders, owner = group(rows.device[which], slot, version[which].astype(np.int64))
        made = late_labels(
            senders,
            owner,
            rows.y[which].astype(np.int64),
            outputs.label[which].astype(np.int64),
            outputs.confidence[which],
            rows.label_at[which] - rows.event_at[which],
            self._num_outputs,
            now + self._offset_s,
        )
        return replace(made, sequence_K=tick * _VERSIONS + senders.version_K % _VERSIONS)

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
