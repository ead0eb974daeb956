"""`python -m sim feed`: prepare a world for real agents, and play it to them.

Rules of this file:
    * One thread for each agent: one that is down or slow holds up nobody else's devices.
    * The file ``drift.now`` in the folder is a level, not an edge: a feed that starts beside it plays drifted sensors from its first row on.
    * SIGTERM and Ctrl-C end `run` with its summary and exit status 0.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core.ending import end_on_signals
from fedretrain.core.errors import ConfigError
from sim.feed.client import Client
from sim.feed.config import USAGE, made, played
from sim.feed.files import DRIFT_NOW, read, write
from sim.feed.playing import Playing
from sim.feed.tally import Tally
from sim.feed.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.feed.files import Description
    from sim.feed.tally import Summary

_RETRY_S = 1.0  # an agent that is down is asked again so much later
_POLL_S = 0.2  # how often the clock and the folder are looked at for drift
_REPORT_S = 10.0


def feed_command(words: Sequence[str]) -> int:
    """Run ``feed prepare`` or ``feed run``.

    Args:
        words: What follows ``python -m sim feed``.

    Returns:
        The exit status.

    Raises:
        UserError: If a word, a file or the folder is wrong.
    """
    if len(words) < 2 or words[0] not in {"prepare", "run"}:
        raise ConfigError("unknown feed command", where=" ".join(words), fix=USAGE)
    folder = Path(words[1])
    if words[0] == "prepare":
        found = write(World(made(words[2:])), folder)
        print(
            f"{folder}: {len(found.devices)} devices on {len(found.agents)} agents, {len(found.classes)} classes"
        )
        return 0
    stop = threading.Event()
    end_on_signals(stop)
    description = read(folder)
    feed = Feed(description, World(played(description.config, words[2:])), folder)
    print(f"feed ended: {feed.run(stop)}", flush=True)
    return 0


class Feed:
    """A world that is played.

    Args:
        description: Who hosts which devices.
        world: Whose sensors.
        folder: Where ``drift.now`` may appear.
    """

    def __init__(self, description: Description, world: World, folder: Path) -> None:
        self._agents, self._world, self._drift_now = description.agents, world, folder / DRIFT_NOW
        self._tally = Tally()
        self._drifted_at: float | None = None

    def run(self, stop: threading.Event) -> Summary:
        """Play until `stop` is set."""
        self._world.rows(0, 0, 1)  # makes the streams before the first tick
        started_at = time.monotonic()
        self._look(started_at)
        number = {device.name: k for k, device in enumerate(self._world.devices)}
        threads = [
            threading.Thread(
                target=self._play,
                args=(agent.http, [number[name] for name in agent.devices], started_at, stop),
                name=agent.name,
            )
            for agent in self._agents
        ]
        for thread in threads:
            thread.start()
        reported_at = started_at
        while not stop.wait(_POLL_S):
            now = time.monotonic()
            self._look(started_at)
            if now - reported_at >= _REPORT_S:
                reported_at = now
                print(self._tally.summary(now), flush=True)
        for thread in threads:
            thread.join()
        return self._tally.summary(time.monotonic())

    def _look(self, started_at: float) -> None:
        """Whether the sensors drift now."""
        if self._drifted_at is not None:
            return
        now, after_s = time.monotonic(), self._world.config.drift_at_s
        if self._drift_now.exists() or (after_s and now - started_at >= after_s):
            self._drifted_at = now
            drifting = sum(device.drifts for device in self._world.devices)
            print(f"the sensors of {drifting} devices drift", flush=True)

    def _play(self, http: str, devices: Sequence[int], started_at: float, stop: threading.Event) -> None:
        playing = Playing(self._world, devices, started_at, self._tally)
        client = Client(http, self._world.config.timeout_s)
        while not stop.is_set():
            playing.take(time.monotonic(), self._drifted_at)
            if not playing.step(time.monotonic(), client.post):
                stop.wait(_RETRY_S)
            else:
                stop.wait(max(0.0, playing.next_at() - time.monotonic()))
        playing.end(time.monotonic())
        client.close()
