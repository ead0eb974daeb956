"""What was sent, what became of it, and how right the agents' answers were.

Rules of this file:
    * Shared by the threads of all agents; every method takes the lock.
    * Accuracy is over the answers of the last minute that named a class; those that named none are counted apart.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW_S = 60.0


@dataclass(frozen=True)
class Summary:
    """Counts of rows since the start, and accuracy over the last minute.

    Attributes:
        sent: Rows that an agent answered.
        labelled: Labels that an agent took.
        refused: Rows and labels that an agent refused.
        lost: Rows and labels that an agent could not be told in time, or before the feed ended.
        unanswered: Answers that named no class.
        accuracy: Of all devices; None without answers.
        drifted_accuracy: Of devices whose sensors drift, likewise.
    """

    sent: int
    labelled: int
    refused: int
    lost: int
    unanswered: int
    accuracy: float | None
    drifted_accuracy: float | None

    def __str__(self) -> str:
        counts = f"sent {self.sent}, labelled {self.labelled}, refused {self.refused}, lost {self.lost}, unanswered {self.unanswered}"
        return (
            f"{counts}, accuracy {_share(self.accuracy)}, of drifting devices {_share(self.drifted_accuracy)}"
        )


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


class Tally:
    """The counts of a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = self._labelled = self._refused = self._lost = self._unanswered = 0
        self._answers: deque[tuple[float, bool, bool]] = (
            deque()
        )  # when, whether the device drifts, whether right

    def answered(
        self, now: float, predicted: Sequence[int | None], true: Sequence[int], *, drifts: bool
    ) -> None:
        """An agent answered rows of one device."""
        with self._lock:
            self._sent += len(true)
            for label, right in zip(predicted, true, strict=True):
                if label is None:
                    self._unanswered += 1
                else:
                    self._answers.append((now, drifts, label == right))
            self._forget(now)

    def labelled(self, count: int) -> None:
        """An agent took labels."""
        with self._lock:
            self._labelled += count

    def refused(self, count: int) -> None:
        """An agent refused rows or labels."""
        with self._lock:
            self._refused += count

    def lost(self, count: int) -> None:
        """Rows or labels grew too old while an agent was down, or the feed ended."""
        with self._lock:
            self._lost += count

    def summary(self, now: float) -> Summary:
        """As it stands."""
        with self._lock:
            self._forget(now)
            right = [ok for _, _, ok in self._answers]
            drifted = [ok for _, drifts, ok in self._answers if drifts]
            return Summary(
                self._sent,
                self._labelled,
                self._refused,
                self._lost,
                self._unanswered,
                sum(right) / len(right) if right else None,
                sum(drifted) / len(drifted) if drifted else None,
            )

    def _forget(self, now: float) -> None:
        while self._answers and self._answers[0][0] <= now - WINDOW_S:
            self._answers.popleft()
