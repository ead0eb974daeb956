"""Who speaks on a connection, and what it was last told: the gateway's picture of the devices table.

Rules of this file:
    * The picture follows the table within `POLL_S`; a revoked key is refused from then on, in the middle of a stream too.
    * Heartbeats change no assignment, so they are kept in memory and written together, once a second: a crash loses at
      most what the next heartbeat says again.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from fedretrain.server import announcements, fleet
from fedretrain.server.announcements import Announcement
from fedretrain.server.database import reading
from fedretrain.server.fleet import Device, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

    from fedretrain.artifacts.identity import DeviceIdentity
    from fedretrain.server.commit import GroupCommit

POLL_S = 0.25
_NOTHING = Announcement()
_OVERLAP_S = 5.0  # clocks of several processes that write the table


class Peers:
    """Devices by their names. Safe for threads.

    Args:
        engine: The database.
        writer: Where heartbeats are written.
        clock: Seconds since the epoch.
    """

    def __init__(self, engine: Engine, writer: GroupCommit, clock: Callable[[], float]) -> None:
        self._engine, self._writer, self._clock = engine, writer, clock
        self._lock = threading.Lock()
        self._devices: dict[tuple[str, str], Device] = {}
        self._heard: dict[tuple[str, str], tuple[float, Mapping[str, Any]]] = {}
        self._told: dict[str, Announcement] = {}
        self._since = 0.0
        self._summary: tuple[float, fleet.Summary] | None = None
        self._marks: fleet.Marks = {}
        self.poll()

    def poll(self) -> None:
        """Look at what has changed in the table: at one row that tells whether anything has, and only then at which did."""
        begun = self._clock()
        since = min(
            self._since, begun - _OVERLAP_S
        )  # a clock that was set back dates what is new before what was seen
        changed: list[Device] = []
        with reading(self._engine) as connection:
            summary = fleet.summary_since(connection, since)
            news = (since, summary) != self._summary
            if news:
                changed, self._marks = fleet.changed_since(connection, since, self._marks)
            if news or since < begun - 2 * _OVERLAP_S:
                since = begun - _OVERLAP_S
                summary = fleet.summary_since(connection, since)
            told = announcements.told(connection)
        with self._lock:
            self._told = told
            self._devices |= {(device.population, device.device): device for device in changed}
        self._since, self._summary = since, (since, summary)

    def announcement(self, population: str) -> Announcement:
        """What a population's devices are told, beside each its own assignment."""
        with self._lock:
            return self._told.get(population, _NOTHING)

    def at_hand(self, shown: DeviceIdentity) -> Device | None:
        """As `find`, of the picture alone: no database, and None where that would have to be asked."""
        with self._lock:
            device = self._devices.get((shown.population, shown.device))
        return device if device is not None and _may_speak(device, shown) else None

    def find(self, shown: DeviceIdentity) -> Device | None:
        """The device of a certificate; None where nobody, or nobody any more, may speak with it."""
        with self._lock:
            device = self._devices.get((shown.population, shown.device))
        if (
            device is None or device.fingerprint != shown.key_fingerprint
        ):  # it may have enrolled just now, elsewhere
            with reading(self._engine) as connection:
                device = fleet.find(connection, shown.population, shown.device)
        return device if device is not None and _may_speak(device, shown) else None

    def heard(self, device: Device, at: float, heartbeat: Mapping[str, Any]) -> None:
        """A device's words, to be written soon."""
        with self._lock:
            self._heard[device.population, device.device] = (at, heartbeat)

    def flush(self) -> None:
        """Write the heartbeats since the last time; returns once they are on the disk."""
        with self._lock:
            heard, self._heard = self._heard, {}
        if heard:
            said = [(*name, at, words) for name, (at, words) in heard.items()]
            self._writer.submit(lambda connection: fleet.heard(connection, said)).result()

    def know(self, device: Device) -> None:
        """A device that was enrolled, or renewed its certificate, just now."""
        with self._lock:
            self._devices[device.population, device.device] = device


def _may_speak(device: Device, shown: DeviceIdentity) -> bool:
    return device.standing is Standing.ACTIVE and device.fingerprint == shown.key_fingerprint
