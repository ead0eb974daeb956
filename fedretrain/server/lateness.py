"""How far behind a gateway is, and how much more rarely devices are asked to come meanwhile.

Rules of this file:
    * A device waits `CALL_S` for an answer, and its call carries the deadline: what is gone of it when the call's turn comes is how long it
      waited here, with no network and no clock of the device's in it. A call with another deadline says nothing.
    * The median over the devices of a second counts, of `LEAST_DEVICES` at least: what a few say of their calls slows nobody.
    * Nobody is refused: devices come more rarely until none waits. A queue would otherwise stay, once it has formed, for as long as
      they come as fast as they are answered.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from fedretrain.wire.control import CALL_S

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_DEVICES = 20
MOST_STRETCH = 1.75
"""A new leader takes whom it did not hear for two heartbeats for silent, `fedretrain status` after three."""
_DOUBLED_S = 2.0
"""Who waits so long is asked to come half as often: a tenth too many calls let a queue grow to a fifth of a second, and no further."""
_WINDOW_S = 1.0


def waited_s(left_s: float | None) -> float | None:
    """How long a call waited for its turn.

    Args:
        left_s: Until its deadline; None where it has none.

    Returns:
        Seconds, to a tenth as a deadline is told; None where the deadline is not that of a device's call.
    """
    if left_s is None or not CALL_S / 2 <= left_s < CALL_S + 1:
        return None
    return max(0.0, CALL_S - left_s)


def stretch(late_s: float) -> float:
    """By what the time until the next heartbeat is multiplied while calls wait so long."""
    return min(MOST_STRETCH, 1.0 + late_s / _DOUBLED_S)


class Lateness:
    """How long calls wait. For one thread.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begun_s, self._late_s = clock, clock(), 0.0
        self._waited_s: dict[tuple[str, str], float] = {}

    def took_up(self, population: str, device: str, left_s: float | None) -> None:
        """A device's call has its turn, so long before its deadline."""
        waited = waited_s(left_s)
        if waited is not None:
            self._waited_s[population, device] = waited

    @property
    def late_s(self) -> float:
        """How long calls waited in the last second."""
        now_s = self._clock()
        if now_s - self._begun_s >= _WINDOW_S:
            enough = len(self._waited_s) >= LEAST_DEVICES
            self._late_s = statistics.median(self._waited_s.values()) if enough else 0.0
            self._begun_s, self._waited_s = now_s, {}
        return self._late_s
