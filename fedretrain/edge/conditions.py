"""What a device tells of its circumstances, for those who choose whom to ask for training: hints, read from the kernel.

Rules of this file:
    * A machine that knows of no battery is on power. What cannot be read is left out, never guessed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fedretrain.wire.v1 import fleet_pb2 as pb

_SYSTEM = Path("/sys/class")


def conditions(folder: Path, num_labelled: int, *, metered: bool, system: Path = _SYSTEM) -> pb.Conditions:
    """The present ones.

    Args:
        folder: On the disk whose room counts.
        num_labelled: Labelled examples; told as a power of two, because nobody needs to know of the last one.
        metered: Whether bytes cost money, as the agent's file says.
        system: Where the kernel tells of its hardware.
    """
    return pb.Conditions(
        on_power=_on_power(system),
        metered=metered,
        temperature_c=_temperature_c(system),
        free_bytes=shutil.disk_usage(folder).free,
        num_labelled=1 << (num_labelled.bit_length() - 1) if num_labelled else 0,
    )


def _on_power(system: Path) -> bool:
    supplies = {one: _text(one / "type") for one in sorted(system.glob("power_supply/*"))}
    mains = [one for one, kind in supplies.items() if kind in {"Mains", "USB"}]
    if "Battery" not in supplies.values():
        return True
    return any(_text(one / "online") == "1" for one in mains)


def _temperature_c(system: Path) -> float:
    """Of the hottest zone; 0 where there is none, as a message says nothing."""
    found = [_text(one) for one in system.glob("thermal/thermal_zone*/temp")]
    degrees = [int(text) / 1000.0 for text in found if text.lstrip("-").isdigit()]
    return max(degrees, default=0.0)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
