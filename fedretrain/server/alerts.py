"""What devices want a person to know (a local rollback, a database set aside), on its way into the log.

Rules of this file:
    * An alert is written down once, however often telemetry is read again: it is known by its record's number.
    * The stream outlives the telemetry table, which forgets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.fleet import Device
    from fedretrain.server.telemetry import Telemetry


def stream(population: str) -> str:
    """Where a population's alerts are."""
    return f"population/{population}/alerts"


def keep(
    log: EventLog, population: str, telemetry: Telemetry, devices: Sequence[Device], fence: Fence, at: float
) -> list[dict[str, Any]]:
    """Write down what is new.

    Args:
        log: The event log.
        population: Whose.
        telemetry: Where alerts have come in; none is left there.
        devices: Of the population, by number.
        fence: The lease of whoever runs it.
        at: Instant, seconds since the epoch.

    Returns:
        What was written.
    """
    if not telemetry.alerts:
        return []
    last = newest(log, population, 1)
    seen = last[0]["record"] if last else 0
    names = {device.number: device.device for device in devices}
    found = [
        {
            "record": number,
            "device": names.get(alert.device, str(alert.device)),
            "alert": alert.kind,
            "package": alert.package,
            "detail": alert.detail,
        }
        for number, alert in telemetry.alerts
        if number > seen
    ]
    log.append(stream(population), found, at=at, fence=fence)
    telemetry.alerts.clear()
    return found


def newest(log: EventLog, population: str, count: int) -> list[dict[str, Any]]:
    """The last alerts, oldest first, each with its instant."""
    after = max(0, log.head(stream(population)).counter - count)
    return [{"at": entry.at, **entry.record} for entry in log.read(stream(population), after=after)]
