"""How much of something a second, and how much at once.

Rules of this file:
    * The clock is given; only differences of it count.
    * What is refused takes nothing: who asks for less may still get it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class RateLimit:
    """So much a second, and a burst at once. Any thread may ask.

    Args:
        per_s: How much comes back in a second.
        burst: How much there is at most.
        clock: Seconds.
    """

    __slots__ = ("_at", "_burst", "_clock", "_left", "_mutex", "_per_s")

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left, self._at = float(burst), clock()
        self._mutex = threading.Lock()

    def allows(self, amount: float = 1.0) -> bool:
        """Take an amount; False if there is not so much."""
        with self._mutex:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
            self._at = now
            if self._left < amount:
                return False
            self._left -= amount
            return True
