"""What a fleet's log says of itself, for fits that are held against truth drawn beside it."""

from __future__ import annotations

from fedretrain.wire.fleet_log import Header

HOUR, DAY = 3600.0, 86_400.0


def header(num=100, days=14.0, classes=3, channels=("x", "y"), sites=1, types=1):
    return Header(
        num,
        tuple(d % sites for d in range(num)),
        tuple(d // sites % types for d in range(num)),
        tuple(f"c{k}" for k in range(classes)),
        channels,
        0.0,
        days * DAY,
        HOUR,
        600.0,
    )
