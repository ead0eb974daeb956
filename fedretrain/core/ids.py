"""Names for the numbers that travel everywhere."""

from __future__ import annotations

from typing import NewType

ClientId = NewType("ClientId", int)
"""A participant: a number from 0 to 2**63 - 1, stable over its life."""
