"""Checks of configured values: each raises a `ConfigError` that names the key.

Rules of this file:
    * A check is called from the `__post_init__` of a frozen configuration, so an impossible value is one clear
      line before anything has started.
    * `key` is what a person typed, for example ``"labels.loss_fraction"``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable


def require(ok: bool, what: str, *, key: str, fix: str = "") -> None:
    """Raise a `ConfigError` unless `ok`."""
    if not ok:
        raise ConfigError(what, where=key, fix=fix)


def fraction(key: str, value: float) -> None:
    """`value` is a number from 0 to 1."""
    require(0.0 <= value <= 1.0, f"{value} is not a fraction", key=key, fix="give a number from 0 to 1")


def positive(key: str, value: float) -> None:
    """`value` is a finite number above 0."""
    ok = math.isfinite(value) and value > 0
    require(ok, f"{value} is not a positive number", key=key, fix="give a number above 0")


def time_span(key: str, value: float, most_s: float, what: str) -> None:
    """`value` is a number of seconds above 0 and at most `most_s`; `what` tells people what lasts so long."""
    positive(key, value)
    require(value <= most_s, f"{value:g} s is too long: {what}", key=key, fix=f"give {most_s:.0f} at most")


def not_negative(key: str, value: float) -> None:
    """`value` is a finite number of at least 0."""
    ok = math.isfinite(value) and value >= 0
    require(ok, f"{value} is not a number of at least 0", key=key, fix="give 0 or more")


def between(key: str, value: float, least: float, most: float) -> None:
    """`value` is a number from `least` to `most`."""
    require(least <= value <= most, f"{value} is out of bounds", key=key, fix=f"give {least:g} to {most:g}")


def finite(key: str, value: float) -> None:
    """`value` is neither NaN nor infinite."""
    require(math.isfinite(value), f"{value} is not a finite number", key=key)


def as_tuples(config: Any, names: Iterable[str]) -> None:
    """Make the named fields of a frozen configuration tuples (OmegaConf hands over lists)."""
    for name in names:
        object.__setattr__(config, name, tuple(getattr(config, name)))
