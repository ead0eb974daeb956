"""The devices of one agent, played: which rows and labels are due, and what becomes of them.

Rules of this file:
    * Instants are seconds on the caller's monotonic clock. Nothing here waits or reads a clock.
    * A batch belongs to its tick: a feed that was held up plays the ticks that it missed, with the drift that they had.
    * While an agent is down its rows and labels wait in order; what is older than `keep_s` is dropped and counted.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.feed.client import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.feed.client import Answer
    from sim.feed.tally import Tally
    from sim.feed.world import World

    Post = Callable[[str, dict[str, Any]], Answer]


@dataclass(frozen=True)
class Batch:
    """Rows of one device.

    Attributes:
        device: Its number.
        first: The number of its first row.
        at: When it was taken.
        rows: ``[B][C]`` as the sensors report them.
        true: ``[B]`` the true classes.
        told: ``[B]`` whether a person will say what was right.
    """

    device: int
    first: int
    at: float
    rows: list[list[float]]
    true: list[int]
    told: list[bool]


@dataclass(frozen=True)
class Truth:
    """What a person says of one batch.

    Attributes:
        device: The device's number.
        due_at: When it is said.
        labels: ``id`` and class of each prediction that is spoken of.
    """

    device: int
    due_at: float
    labels: tuple[tuple[Any, int], ...]


class Playing:
    """What one agent is told.

    Args:
        world: Whose sensors.
        devices: Numbers of the devices that the agent hosts.
        started_at: When the first rows are due.
        tally: What is counted.
    """

    def __init__(self, world: World, devices: Sequence[int], started_at: float, tally: Tally) -> None:
        self._world, self._config, self._devices = world, world.config, tuple(devices)
        self._started_at, self._tally, self._tick = started_at, tally, 0
        self._batches: deque[Batch] = deque()
        self._truths: deque[Truth] = deque()

    def take(self, now: float, drifted_at: float | None) -> None:
        """Read the sensors for every tick up to now; drop what is too old.

        Args:
            now: The instant.
            drifted_at: When the sensors drifted; None: not yet.
        """
        c = self._config
        skipped = math.ceil((now - c.keep_s - self._tick_at) / c.interval_s)
        if skipped > 0:  # held up for long: these would be dropped at once
            self._tick += skipped
            self._tally.lost(skipped * c.rows_per_batch * len(self._devices))
        while self._tick_at <= now:
            age = -1.0 if drifted_at is None else self._tick_at - drifted_at
            self._batches.extend(self._read(device, age) for device in self._devices)
            self._tick += 1
        while self._batches and self._batches[0].at < now - c.keep_s:
            self._tally.lost(len(self._batches.popleft().true))
        while self._truths and self._truths[0].due_at < now - c.keep_s:
            self._tally.lost(len(self._truths.popleft().labels))

    def end(self, now: float) -> None:
        """Count what the agent was not told in time: the feed ends. A label that is not due yet was never said."""
        self._tally.lost(sum(len(batch.true) for batch in self._batches))
        self._tally.lost(sum(len(truth.labels) for truth in self._truths if truth.due_at <= now))

    def next_at(self) -> float:
        """When something is due next."""
        due = [self._tick_at, *(truth.due_at for truth in list(self._truths)[:1])]
        return self._batches[0].at if self._batches else min(due)

    def step(self, now: float, post: Post) -> bool:
        """Tell the agent the next thing that is due.

        Args:
            now: The instant.
            post: Sends a JSON object to a path of the agent.

        Returns:
            False if the agent is down: what was to be told waits.
        """
        if self._truths and self._truths[0].due_at <= now:
            return self._tell(post)
        return not self._batches or self._ask(now, post)

    @property
    def _tick_at(self) -> float:
        return self._started_at + self._tick * self._config.interval_s

    def _read(self, device: int, drift_age_s: float) -> Batch:
        count = self._config.rows_per_batch
        first = self._tick * count
        x, y = self._world.rows(device, first, count, drift_age_s=drift_age_s)
        told = self._world.labelled(device, first, count)
        return Batch(device, first, self._tick_at, x.tolist(), y.tolist(), told.tolist())

    def _ask(self, now: float, post: Post) -> bool:
        batch = self._batches[0]
        known = self._world.devices[batch.device]
        answer = post("/v1/predict", {"device": known.name, "rows": batch.rows})
        if answer.outcome is Outcome.DOWN:
            return False
        self._batches.popleft()
        found = _predictions(answer, len(batch.true))
        if found is None:
            self._tally.refused(len(batch.true))
            return True
        self._tally.answered(now, [label for _, label in found], batch.true, drifts=known.drifts)
        labels = tuple(
            (id_, true) for (id_, _), true, told in zip(found, batch.true, batch.told, strict=True) if told
        )
        if labels:
            self._truths.append(Truth(batch.device, batch.at + self._config.label_delay_s, labels))
        return True

    def _tell(self, post: Post) -> bool:
        truth = self._truths[0]
        labels = [{"of": id_, "label": label, "source": "user"} for id_, label in truth.labels]
        answer = post("/v1/labels", {"device": self._world.devices[truth.device].name, "labels": labels})
        if answer.outcome is Outcome.DOWN:
            return False
        self._truths.popleft()
        count = self._tally.labelled if answer.outcome is Outcome.DONE else self._tally.refused
        count(len(labels))
        return True


def _predictions(answer: Answer, count: int) -> list[tuple[Any, int | None]] | None:
    """Id and class of each row; None if the agent refused or said something else."""
    found = answer.content.get("predictions")
    if answer.outcome is not Outcome.DONE or not isinstance(found, list) or len(found) != count:
        return None
    if not all(isinstance(one, dict) and "id" in one for one in found):
        return None
    return [(one["id"], _class(one.get("label"))) for one in found]


def _class(label: Any) -> int | None:
    """The class that was named; an agent that abstains says -1."""
    return label if isinstance(label, int) and label >= 0 else None
