"""What time it is on a server whose clock may be set while it runs.

A clock that jumps ahead for a minute would end rollouts that have a day left, date events so that the loop stands until they are
reached again, and tell devices a time below which they believe none.

Rules of this file:
    * Time runs with the seconds since the machine started, which never jump, and follows the wall clock while that agrees.
    * A wall clock that was set is told at once, and followed once it has stayed so for `SETTLE_S`: a time service that mends a wrong
      time is obeyed, one that is wrong for a moment is not.
    * The first reading is believed: nothing else is known.
    * Deciding is pure (`look`: state in and out); `SteadyClock` reads the clocks.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import DataError
from fedretrain.core.since_boot import since_boot

if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE_S = 300.0
TOLERANCE_S = 2.0
_SLEW = 1e-3  # a time service pulls by up to 5e-4, a crystal is off by less than 2e-4
_STANDS_S = 60.0  # told from then on: a clock that is pulled back a little is no trouble
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Doubt:
    """The wall clock says another time than is believed.

    Attributes:
        since_s: Monotonic seconds when that was noticed.
        by_s: How far it is ahead; below 0: behind.
    """

    since_s: float
    by_s: float


@dataclass(frozen=True)
class Believed:
    """What is known.

    Attributes:
        monotonic_s: When the clocks were last read.
        at: What was believed then, seconds since the epoch.
        doubt: None while the wall clock agrees.
    """

    monotonic_s: float
    at: float
    doubt: Doubt | None = None


def look(known: Believed, monotonic_s: float, wall_at: float) -> Believed:
    """Read both clocks.

    Args:
        known: What was known before.
        monotonic_s: Seconds since the machine started.
        wall_at: The wall clock.
    """
    passed_s = max(0.0, monotonic_s - known.monotonic_s)
    monotonic_s = known.monotonic_s + passed_s
    at = known.at + passed_s
    by_s = wall_at - at
    if abs(by_s) <= TOLERANCE_S + _SLEW * passed_s:
        return Believed(monotonic_s, wall_at)
    doubt = known.doubt
    if doubt is None or abs(by_s - doubt.by_s) > TOLERANCE_S + _SLEW * (monotonic_s - doubt.since_s):
        return Believed(monotonic_s, at, Doubt(monotonic_s, by_s))
    if monotonic_s - doubt.since_s >= SETTLE_S:
        return Believed(monotonic_s, wall_at)
    return Believed(monotonic_s, at, doubt)


def standing(where: str, by_s: float) -> DataError | None:
    """What is wrong where what was decided last is dated ahead of the present; None where nothing is, or little.

    Args:
        where: Names the loop.
        by_s: How far ahead.
    """
    if by_s <= _STANDS_S:
        return None
    return DataError(
        f"the loop's time stands for up to {math.ceil(by_s / DAY_S)} days: its last event was written by a clock that was ahead, or "
        "this one is behind",
        where=where,
        fix="look at the machine's clock; orders count meanwhile; where the clock was far ahead, put a back-up of before in place",
    )


class SteadyClock:
    """Seconds since the epoch, as they are believed. Any thread may call it.

    Args:
        monotonic: Seconds that never jump, those of sleep included.
        wall: Seconds since the epoch, as the machine has them.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = since_boot,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic, self._wall, self._mutex = monotonic, wall, threading.Lock()
        self._known = Believed(monotonic(), wall())

    def __call__(self) -> float:
        """The present."""
        with self._mutex:
            before = self._known
            self._known = now = look(before, self._monotonic(), self._wall())
        if now.doubt is not None and now.doubt != before.doubt:
            _log.error(
                "the machine's clock was set by %+.0f s: that is not followed unless it stays so for %.0f s; look at its time service",
                now.doubt.by_s,
                SETTLE_S,
            )
        elif before.doubt is not None and now.doubt is None:
            _log.warning("the machine's clock is followed again")
        return now.at
