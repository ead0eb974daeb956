"""Availability from a recorded trace: intervals when each device was online.

Rules of this file:
    * Intervals are half open, ``[from, to)``; overlapping or touching ones of a device are one.
    * Queries are a binary search over integer keys (device, rank of the instant), exact for any instants.
    * With a period the trace repeats, before instant 0 too.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from fedretrain.core.checks import not_negative
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from sim.devices import Traits

    Floats = NDArray[np.float64]

_COLUMNS = ("device", "from", "to")


@dataclass(frozen=True)
class TraceConfig:
    """A trace file.

    Attributes:
        path: CSV with columns device, from, to (seconds of the campaign's clock), or npz with arrays so named.
        period_s: The trace repeats after so many seconds; 0 means that it does not.
        cycle: A device beyond the trace follows the traced device of its id modulo the number of those traced
            (in the order of their ids). Without it, devices that the trace does not name are offline.
    """

    path: str = ""
    period_s: float = 0.0
    cycle: bool = True

    def __post_init__(self) -> None:
        not_negative("availability.trace.period_s", self.period_s)


class Trace:
    """An availability model over recorded intervals.

    Args:
        device: ``[I]`` device of each interval.
        start: ``[I]`` when it begins.
        end: ``[I]`` when it ends, not included.
        period_s: See `TraceConfig`.
        cycle: See `TraceConfig`.

    Raises:
        DataError: If an interval is empty, not finite or beyond the period.
    """

    slot_s = DAY_S  # intervals, not slots, decide; `Availability` asks the two exact methods below

    def __init__(
        self,
        device: ArrayLike,
        start: ArrayLike,
        end: ArrayLike,
        *,
        period_s: float = 0.0,
        cycle: bool = True,
    ) -> None:
        device, start, end = _checked(device, start, end, period_s)
        self._period_s, self._cycle = period_s, cycle
        self._traced = np.unique(device)
        who, self._from, self._to = _merged(np.searchsorted(self._traced, device), start, end)
        self._instants = np.unique(self._from)
        self._keys = self._key(who, self._from)
        bounds = np.searchsorted(who, np.arange(len(self._traced) + 1))
        self._lo, self._hi = bounds[:-1], bounds[1:]

    @classmethod
    def read(cls, config: TraceConfig) -> Trace:
        """Open the trace that a configuration names.

        Raises:
            ConfigError: If no path is given.
            DataError: If the file is missing or not a trace.
        """
        if not config.path:
            raise ConfigError(
                "no trace is named", where="availability.trace.path", fix="give a CSV or npz file"
            )
        device, start, end = _read(Path(config.path))
        return cls(device, start, end, period_s=config.period_s, cycle=config.cycle)

    def online(self, traits: Traits, seed: int, at: Floats) -> NDArray[np.bool_]:  # noqa: ARG002 - the protocol's form
        """Whether each device has an interval that holds its instant."""
        answer: NDArray[np.bool_] = self.next_online(traits, at) == at
        return answer

    def next_online(self, traits: Traits, at: Floats) -> Floats:
        """The first instant at or after `at` inside an interval; inf if there is none."""
        who, known = self._who(traits)
        turn, phase = self._phase(at)
        place = self._place(who, phase)
        inside = (place >= self._lo[who]) & (phase < self._to[np.maximum(place, 0)])
        following = np.maximum(place + 1, self._lo[who])
        more = following < self._hi[who]
        later = self._from[np.where(more, following, self._lo[who])] + turn
        later = later + np.where(more, 0.0, self._period_s or np.inf)
        return np.where(known, np.where(inside, at, np.maximum(later, at)), np.inf)

    def first_offline(self, traits: Traits, at: Floats) -> Floats:
        """The first instant at or after `at` outside every interval; inf if the device stays online for ever."""
        who, known = self._who(traits)
        now, open_ = at.copy(), np.flatnonzero(known)
        for _ in range(2):  # the second turn follows an interval over the end of the period
            turn, phase = self._phase(now[open_])
            place = self._place(who[open_], phase)
            inside = (place >= self._lo[who[open_]]) & (phase < self._to[np.maximum(place, 0)])
            open_, ends = open_[inside], (self._to[np.maximum(place, 0)] + turn)[inside]
            now[open_] = ends
            if not self._period_s:
                return now
        endless = open_[self._whole(who[open_])]
        now[endless] = np.inf
        return now

    def _whole(self, who: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Devices whose one interval is the whole period."""
        length = self._to[self._lo[who]] - self._from[self._lo[who]]
        return length >= self._period_s

    def _who(self, traits: Traits) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Positions among the traced devices, and whether the trace knows them."""
        place = np.minimum(np.searchsorted(self._traced, traits.device), len(self._traced) - 1)
        known = self._traced[place] == traits.device
        if self._cycle:
            return np.where(known, place, traits.device % len(self._traced)), np.ones_like(known)
        return place, known

    def _phase(self, at: Floats) -> tuple[Floats, Floats]:
        """The start of the period that holds each instant, and the instant within it."""
        if not self._period_s:
            return np.zeros_like(at), at
        turn = np.floor(at / self._period_s) * self._period_s
        return turn, at - turn

    def _key(self, who: NDArray[np.int64], at: Floats) -> NDArray[np.int64]:
        return who * (len(self._instants) + 1) + np.searchsorted(self._instants, at, side="right")

    def _place(self, who: NDArray[np.int64], at: Floats) -> NDArray[np.int64]:
        """The last interval that begins at or before each instant; below `_lo` of the device if none does."""
        return np.searchsorted(self._keys, self._key(who, at), side="right") - 1


def _read(path: Path) -> tuple[list[int], list[float], list[float]]:
    """Columns of a trace file."""
    try:
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                return tuple(arrays[name].tolist() for name in _COLUMNS)
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                (int(row["device"]), float(row["from"]), float(row["to"])) for row in csv.DictReader(file)
            ]
    except OSError as error:
        raise DataError(f"the trace cannot be read: {error.strerror}", where=str(path)) from error
    except (KeyError, ValueError, TypeError, BadZipFile) as error:
        raise DataError(
            f"not a trace: {error}", where=str(path), fix="give columns device, from, to of numbers"
        ) from error
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _checked(
    device: ArrayLike, start: ArrayLike, end: ArrayLike, period_s: float
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Intervals as arrays, refused with the number of the first wrong one."""
    ids = np.asarray(device, dtype=np.int64)
    begins, ends = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    if not len(ids):
        raise DataError("the trace has no intervals", where="availability.trace")
    bad = ~(np.isfinite(begins) & np.isfinite(ends) & (ends > begins))
    if period_s:
        bad |= (begins < 0) | (ends > period_s)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"interval {row} ({begins[row]} to {ends[row]}) is empty, not finite or beyond the period",
            where="availability.trace",
        )
    return ids, begins, ends


def _merged(who: NDArray[np.int64], start: Floats, end: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Intervals sorted by device and start, those of a device that overlap or touch made one."""
    order = np.lexsort((start, who))
    who, start, end = who[order], start[order], end[order]
    keep: list[int] = []
    for i in range(len(who)):
        if keep and who[keep[-1]] == who[i] and start[i] <= end[keep[-1]]:
            end[keep[-1]] = max(end[keep[-1]], end[i])
        else:
            keep.append(i)
    return who[keep], start[keep], end[keep]
