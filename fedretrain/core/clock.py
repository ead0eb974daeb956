"""Time as a value. Instants are seconds since the epoch, or since a campaign's start (`_at`); durations are seconds (`_s`).

Deciding code never reads a clock: an instant arrives as an argument.

A device may start without knowing the time. What happens then is stamped with the seconds since its start (`Instant`), and
gets its place in time from an `Anchor` of the same start, on the device or on the server, whenever there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

HOUR_S = 3_600.0
DAY_S = 86_400.0


@dataclass(frozen=True)
class Instant:
    """When something happened on a device.

    Attributes:
        boot: Which start of the agent; `monotonic_s` of different ones cannot be compared.
        monotonic_s: Seconds on a clock that never jumps.
        at: Seconds since the epoch; None while the time was not trusted.
    """

    boot: int
    monotonic_s: float
    at: float | None = None


@dataclass(frozen=True)
class Anchor:
    """Where the monotonic seconds of a start lie in time: ``at = monotonic_s + offset_s``.

    Attributes:
        boot: The start.
        offset_s: Seconds since the epoch at ``monotonic_s = 0``.
        is_trusted: Whether it comes from a signed time, and not from what the device's own clock happened to say.
    """

    boot: int
    offset_s: float
    is_trusted: bool = True

    @classmethod
    def seen(cls, sent: Instant, received_at: float) -> Anchor:
        """The anchor that a receiver has from a message: later than the truth by what the message was on its way."""
        return cls(sent.boot, received_at - sent.monotonic_s)


def resolve(instant: Instant, anchor: Anchor | None) -> float | None:
    """Seconds since the epoch: the instant's own, or by an anchor of the same start; None where there is neither."""
    if instant.at is not None or anchor is None or anchor.boot != instant.boot:
        return instant.at
    return instant.monotonic_s + anchor.offset_s
