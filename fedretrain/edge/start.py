"""Who the records of a start of the agent are from: its installation, and which start it is.

Rules of this file:
    * Who the device's records are from (installation, boot) lies in the database and in a file beside it. Each opening
      takes the larger boot of both and goes above it, so neither a lost nor a restored one makes a boot come again.
    * A boot ends in 20 random bits: where both are restored together (an image of the whole disk) it differs all the same.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

_RANDOM_BITS = 20


@dataclass(frozen=True)
class Identity:
    """Who the records of this start are from.

    Attributes:
        installation: 32 hexadecimal digits.
        boot: Which start; above all earlier ones.
    """

    installation: str
    boot: int


def next_boot(last: int) -> int:
    """A boot above `last`: counted in the upper bits, random below."""
    return ((last >> _RANDOM_BITS) + 1 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)


def machine_start() -> str:
    """Names this start of the machine; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def identity_path(path: Path) -> Path:
    """The file beside a database."""
    return path.with_name(path.name + ".identity")


def read_identity(path: Path) -> Identity | None:
    """What the file beside the database says; None where it says nothing that can be used."""
    try:
        record = json.loads(path.read_bytes())
        return Identity(str(record["installation"]), int(record["boot"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
