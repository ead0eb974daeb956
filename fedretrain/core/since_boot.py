"""The one clock of a machine that never jumps."""

from __future__ import annotations

import time


def since_boot() -> float:
    """Seconds since the machine started, those of sleep included where the system counts them."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
