"""Names for what travels everywhere."""

from __future__ import annotations

import re
from typing import NewType

ClientId = NewType("ClientId", int)
"""A participant: a number from 0 to 2**63 - 1, stable over its life."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(value: object) -> bool:
    """Whether a value can name a population, a device or a campaign: 1 to 64 letters, digits, dots, dashes and underscores.

    A name begins with a letter or a digit, so it is neither an option nor a hidden file, and it never leaves a folder. 64 is what a certificate's common name may have.
    """
    return isinstance(value, str) and _NAME.fullmatch(value) is not None
