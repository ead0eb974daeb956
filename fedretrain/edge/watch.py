"""The health of the served version, watched: what was counted goes through the fold (`health`) sample by sample.

Rules of this file:
    * A version's latency record is its own first predictions here, at the pace of service; until there are enough, only the
      absolute limit is kept.
    * Memory is this process's own: what it wrote. Pages of libraries come and go with what they do, and are no leak.
    * Where an agent hosts several models nobody can say whose memory it is, so it is not read there.
    * Nothing is done about a breach here: it is returned.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.edge.health import HealthState, LocalRollback, apply, decide
from fedretrain.edge.health_limits import MIN_TRIAL, p99_of
from fedretrain.edge.vitals import SAMPLE_S, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.edge.health_limits import HealthLimits, HealthRecord


class HealthWatch:
    """Watches one version. The caller sees to it that one thread at a time calls it.

    Args:
        limits: When a model is not well.
        version: Which version serves.
        record: What well looks like.
        now: Monotonic seconds.
        memory: Bytes of memory of this process's own; None: memory is not judged.
    """

    def __init__(
        self,
        limits: HealthLimits,
        version: str,
        record: HealthRecord,
        now: float,
        memory: Callable[[], int] | None = None,
    ) -> None:
        self._limits, self._memory = limits, memory
        self._state = HealthState(version, record, began_at=now)
        self._recorder = self._new_recorder()
        self._begun_at = now
        self._trial: list[float] = []
        self.num_served = 0

    @property
    def record(self) -> HealthRecord:
        """What well looks like for the version that is watched."""
        return self._state.record

    @property
    def next_record(self) -> HealthRecord:
        """For the version that follows this one."""
        return self._state.next_record(None)

    def prediction(self, latency_s: float, num: int, *, failed: bool) -> None:
        """Count predictions, each of which took so long."""
        for _ in range(num):
            self._recorder.prediction(latency_s, failed=failed)
        if failed:
            return
        self.num_served += num
        if self.record.latency_p99_s is None and len(self._trial) < MIN_TRIAL:
            self._trial += [latency_s] * min(num, MIN_TRIAL - len(self._trial))

    def label(self, *, correct: bool) -> None:
        """Count a label that came for a prediction of this version."""
        self._recorder.label(correct=correct)

    def sanity(self, num_failed: int) -> None:
        """Count sanity vectors that failed."""
        self._recorder.sanity(num_failed)

    def look(self, now: float) -> LocalRollback | None:
        """Judge what was counted, once a sample is due; a breach, if there is one.

        Args:
            now: Monotonic seconds.
        """
        if self._memory is not None:
            self._recorder.memory(self._memory())
        if now - self._begun_at < SAMPLE_S:
            return None
        sample, self._begun_at = self._recorder.take(), now
        breach = None
        for event in decide(self._limits, self._state, sample, now):
            self._state = apply(self._state, event)
            if isinstance(event, LocalRollback):
                breach = event
        if len(self._trial) == MIN_TRIAL:
            record = replace(self.record, latency_p99_s=p99_of(self._trial))
            self._state, self._trial = replace(self._state, record=record), []
            self._recorder = self._new_recorder()
        return breach

    def _new_recorder(self) -> Recorder:
        over_s = self._limits.latency_p99_s
        return Recorder(self._limits.slow_s(self.record), math.inf if over_s is None else over_s)


def own_bytes() -> int:
    """Resident memory of this process that is no file's: what it has written."""
    resident, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")
