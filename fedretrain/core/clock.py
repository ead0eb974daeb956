"""Time as a value. Instants are seconds since the epoch (`_at`), durations are seconds (`_s`).

Deciding code never reads a clock: an instant arrives as an argument. Shells own a `Clock`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MINUTE_S = 60.0
HOUR_S = 3_600.0
DAY_S = 86_400.0
WEEK_S = 7 * DAY_S


class Clock(Protocol):
    """Where a shell gets its instants from."""

    def now(self) -> float:
        """The present instant."""
        ...


@dataclass
class VirtualClock:
    """The simulator's clock: it moves only when told to."""

    at: float = 0.0

    def now(self) -> float:
        """The present virtual instant."""
        return self.at

    def advance_to(self, at: float) -> None:
        """Move forward to the instant `at`.

        Raises:
            ValueError: If `at` lies in the past.
        """
        if at < self.at:
            raise ValueError(f"time cannot go back from {self.at} to {at}")
        self.at = at
