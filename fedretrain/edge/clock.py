"""What time it is on a device that may not know.

Many devices have no clock that runs while they are off: they start in 1970, or where they stopped. Seconds since the start
are always right, so what happens is stamped with those, and gets its place in time once a signed time came.

Rules of this file:
    * Deciding is pure (`look`, `trust`, `raise_floor`: state in and out); `DeviceClock` reads the clocks.
    * Every signed time raises the floor: it is at least that late, and no time given out is below it.
    * Only a *fresh* signed time is trusted: one that answers a question of this start. An old signature proves no more than
      a floor, and the device's own wall clock proves nothing.
    * Trusted time runs with the monotonic clock. Jumps of the wall clock are counted and change nothing else.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedretrain.core.clock import Anchor, Instant
from fedretrain.core.since_boot import since_boot

if TYPE_CHECKING:
    from collections.abc import Callable

_SLEW = 1e-3  # a clock service pulls by up to 5e-4, a crystal is off by less than 2e-4
_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class Jump:
    """The wall clock was set.

    Attributes:
        monotonic_s: When it was noticed.
        by_s: How far: above 0 forward, below 0 back.
    """

    monotonic_s: float
    by_s: float


@dataclass(frozen=True)
class ClockState:
    """What is known about time in this start.

    Attributes:
        boot: The start.
        floor_at: The last signed time: it is at least that late.
        monotonic_s: When the clocks were last read; never goes back.
        wall_at: What the wall clock said then.
        offset_s: Trusted time minus monotonic seconds; None while none is trusted.
    """

    boot: int
    floor_at: float = 0.0
    monotonic_s: float = -math.inf
    wall_at: float = 0.0
    offset_s: float | None = None

    @property
    def at(self) -> float | None:
        """The trusted time when the clocks were last read; None while none is trusted."""
        return None if self.offset_s is None else max(self.floor_at, self.monotonic_s + self.offset_s)

    @property
    def guess_at(self) -> float:
        """The best guess: the trusted time, or the wall clock; never below the floor."""
        return max(self.floor_at, self.wall_at) if self.at is None else self.at

    @property
    def is_behind(self) -> bool:
        """Whether the only clock there is says a time before the floor: nothing is installed then."""
        return self.at is None and self.wall_at < self.floor_at

    @property
    def instant(self) -> Instant:
        """The stamp for what happens now."""
        return Instant(self.boot, self.monotonic_s, self.at)

    @property
    def anchor(self) -> Anchor | None:
        """Where this start lies in time: trusted, or what the wall clock says, or None where that cannot be."""
        if self.offset_s is not None:
            return Anchor(self.boot, self.offset_s)
        if self.wall_at < max(self.floor_at, 1.0):
            return None
        return Anchor(self.boot, self.wall_at - self.monotonic_s, is_trusted=False)


def look(
    state: ClockState, monotonic_s: float, wall_at: float, tolerance_s: float = _TOLERANCE_S
) -> tuple[ClockState, Jump | None]:
    """Read both clocks.

    Args:
        state: What was known before.
        monotonic_s: The monotonic clock; one that goes back is taken as standing.
        wall_at: The wall clock.
        tolerance_s: Less than this between two readings is no jump.

    Returns:
        The new state, and the jump of the wall clock since the last reading, if there was one.
    """
    monotonic_s = max(monotonic_s, state.monotonic_s)
    new = replace(state, monotonic_s=monotonic_s, wall_at=wall_at)
    if state.monotonic_s == -math.inf:
        return new, None
    passed_s = monotonic_s - state.monotonic_s
    by_s = wall_at - state.wall_at - passed_s
    is_jump = abs(by_s) > tolerance_s + _SLEW * passed_s
    return new, Jump(monotonic_s, by_s) if is_jump else None


def raise_floor(state: ClockState, signed_at: float) -> ClockState:
    """It is at least as late as any signature says; one of the past changes nothing."""
    if not math.isfinite(signed_at) or signed_at <= state.floor_at:
        return state
    offset_s = None if state.offset_s is None else max(state.offset_s, signed_at - state.monotonic_s)
    return replace(state, floor_at=signed_at, offset_s=offset_s)


def trust(state: ClockState, signed_at: float) -> tuple[ClockState, bool]:
    """Take a fresh signed time as the time of the last reading.

    Returns:
        The new state, and whether the time was taken: one below the floor is somebody's replay, and is not.
    """
    if not math.isfinite(signed_at) or signed_at < state.floor_at:
        return state, False
    return replace(state, floor_at=signed_at, offset_s=signed_at - state.monotonic_s), True


class DeviceClock:
    """The clocks of a device. Any thread may call it.

    Args:
        boot: Of the agent's database: which start this is.
        floor_at: The last signed time that was kept; 0 for none.
        monotonic: Seconds that never jump.
        wall: Seconds since the epoch, as the device has them.
        tolerance_s: Smaller jumps of the wall clock are none.
    """

    def __init__(
        self,
        boot: int,
        floor_at: float = 0.0,
        monotonic: Callable[[], float] = since_boot,
        wall: Callable[[], float] = time.time,
        tolerance_s: float = _TOLERANCE_S,
    ) -> None:
        self._monotonic, self._wall, self._tolerance_s = monotonic, wall, tolerance_s
        self._mutex = threading.Lock()
        self._state = ClockState(boot, floor_at)
        self.num_jumps = 0
        self.last_jump: Jump | None = None
        self.look()

    def look(self) -> ClockState:
        """Read the clocks; a jump is counted."""
        with self._mutex:
            self._state, jump = look(self._state, self._monotonic(), self._wall(), self._tolerance_s)
            if jump is not None:
                self.num_jumps += 1
                self.last_jump = jump
            return self._state

    def instant(self) -> Instant:
        """The stamp for what happens now."""
        return self.look().instant

    def raise_floor(self, signed_at: float) -> None:
        """Heed a signed time, however old the signature is. Keep the floor: `AgentDatabase.raise_floor`."""
        self.look()
        with self._mutex:
            self._state = raise_floor(self._state, signed_at)

    def trust(self, signed_at: float) -> bool:
        """Set the time by a fresh signed one; False if that is below the floor. Keep the anchor: `Outbox.anchor`."""
        self.look()
        with self._mutex:
            self._state, was_taken = trust(self._state, signed_at)
            return was_taken
