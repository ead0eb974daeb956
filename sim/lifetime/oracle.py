"""What only the simulator knows: how good every prediction was, whom a bad model served, what was injected.

Rules of this file:
    * A step is a day, or a tick where ticks are longer. A device is *badly served* in a step if its accuracy over the last
      `_TRAILING` steps lies more than the margin below its own record from the first steps of its life.
    * Nothing here is shown to monitors, triggers or gates.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S
from sim.lifetime.records import TruthRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sim.lifetime.config import LifetimeConfig
    from sim.lifetime.rows import LifeRows
    from sim.lifetime.serving import Outputs
    from sim.sensors.events import DriftEvent

_TRAILING = (
    3  # steps over which a device's accuracy is taken: 72 hourly rows have a standard error of 4 points
)
_RECORD = 7  # first steps of a life that make a device's own record
_LEAST_ROWS = 8  # fewer rows in the trailing steps say nothing about a device


class Tally:
    """Right and wrong predictions by device and step.

    Args:
        num_devices: D.
        config: Of the life.
    """

    def __init__(self, num_devices: int, config: LifetimeConfig) -> None:
        self.step_s = max(config.tick_s, DAY_S)
        steps = int(np.ceil(config.duration_s / self.step_s))
        self.rows_DS = np.zeros((num_devices, steps), dtype=np.int32)
        self.right_DS = np.zeros((num_devices, steps), dtype=np.int32)
        self._margin = config.bad_margin

    def add(self, rows: LifeRows, which: slice, outputs: Outputs) -> None:
        """Count rows that have been served."""
        device = rows.device[which]
        step = (rows.event_at[which] // self.step_s).astype(np.int64)
        inside = (step >= 0) & (step < self.rows_DS.shape[1])
        right = outputs.label[which] == rows.y[which]
        flat = device[inside] * self.rows_DS.shape[1] + step[inside]
        size = self.rows_DS.size
        self.rows_DS += np.bincount(flat, minlength=size).reshape(self.rows_DS.shape).astype(np.int32)
        self.right_DS += (
            np.bincount(flat[right[inside]], minlength=size).reshape(self.rows_DS.shape).astype(np.int32)
        )

    def of_devices(self, first: int, last: int) -> NDArray[np.float64]:
        """``[D]`` accuracy of each device in the steps `first` to `last` (without it); NaN without rows."""
        rows = self.rows_DS[:, max(first, 0) : last].sum(axis=1)
        right = self.right_DS[:, max(first, 0) : last].sum(axis=1)
        return np.where(rows > 0, right / np.maximum(rows, 1), np.nan)

    def badly_served(self, step: int) -> NDArray[np.bool_]:
        """``[D]`` whose recent accuracy lies more than the margin below the own record (or, without one, the fleet's)."""
        record = self.of_devices(0, _RECORD)
        usual = float(np.nanmean(record)) if np.isfinite(record).any() else np.nan
        first = max(step - _TRAILING + 1, 0)
        enough = self.rows_DS[:, first : step + 1].sum(axis=1) >= _LEAST_ROWS
        recent = self.of_devices(first, step + 1)
        bad: NDArray[np.bool_] = enough & (
            recent < np.where(np.isfinite(record), record, usual) - self._margin
        )
        return bad

    def accuracy(self, start_at: float = 0.0, end_at: float = np.inf) -> float:
        """Over all rows between two instants (whole steps); NaN without rows."""
        rows_D, right_D = self.part(start_at, end_at)
        rows = int(rows_D.sum())
        return int(right_D.sum()) / rows if rows else float("nan")

    def part(
        self, start_at: float = 0.0, end_at: float = np.inf
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``[D]`` rows of each device between two instants (whole steps), and how many were right."""
        first = int(np.ceil(start_at / self.step_s))
        last = self.rows_DS.shape[1] if np.isinf(end_at) else int(np.ceil(end_at / self.step_s))
        return self.rows_DS[:, first:last].sum(axis=1), self.right_DS[:, first:last].sum(axis=1)

    def worst_decile(self, first: int, last: int) -> float:
        """Mean accuracy of the worst tenth of the devices (at least one)."""
        known = self.of_devices(first, last)
        known = np.sort(known[np.isfinite(known)])
        return float(known[: max(1, len(known) // 10)].mean()) if len(known) else float("nan")


class Truth:
    """Injected drift, grouped by the specification that injected it.

    Args:
        events: Of all devices.
        num_devices: D.
        until_at: The life's end: what begins later never was.
    """

    def __init__(self, events: Sequence[DriftEvent], num_devices: int, until_at: float) -> None:
        self._num_devices = num_devices
        groups: dict[int, list[DriftEvent]] = defaultdict(list)
        for event in events:
            if 0 <= event.onset_at < until_at and event.kind != "recalibration":
                groups[event.spec].append(event)
        self.groups = [groups[spec] for spec in sorted(groups)]
        self._device = np.array([e.device for e in events], dtype=np.int64)
        self._onset = np.array([e.onset_at for e in events], dtype=np.float64)
        self._end = np.array([e.end_at for e in events], dtype=np.float64)

    def active(self, at: float) -> NDArray[np.int64]:
        """Devices with a drift active at an instant."""
        on = (self._onset <= at) & (at < self._end)
        return np.unique(self._device[on])

    def records(self, seed: int, titles: Sequence[str]) -> list[TruthRecord]:
        """One for each specification that hit anybody."""
        return [
            TruthRecord(seed, title, min(e.onset_at for e in group), len({e.device for e in group}))
            for title, group in zip(titles, self.groups, strict=True)
        ]

    def hit(self, group: Sequence[DriftEvent]) -> NDArray[np.bool_]:
        """``[D]`` the devices of one specification."""
        found = np.zeros(self._num_devices, dtype=np.bool_)
        found[[event.device for event in group]] = True
        return found
