"""Shared and personal parameters, told apart by name.

Rules of this file:
    * Decided once per model; disjoint and complete by construction.
    * A pattern that matches nothing is an error that lists the names: a misspelt pattern must not quietly share
      what a device was promised to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class ParamPartition:
    """The names of a model's parameters in two groups, each sorted.

    Attributes:
        shared: Exchanged with the coordinator.
        personal: Never leave the device.
    """

    shared: tuple[str, ...]
    personal: tuple[str, ...]

    @classmethod
    def by_patterns(cls, names: Iterable[str], personal_patterns: Iterable[str]) -> ParamPartition:
        """Split names by fnmatch patterns.

        Args:
            names: Every parameter and float buffer of the model.
            personal_patterns: For example ``("head.*",)``.

        Raises:
            ConfigError: If a pattern matches nothing, or everything is personal.
        """
        ordered = tuple(sorted(names))
        personal: set[str] = set()
        for pattern in personal_patterns:
            matched = {name for name in ordered if fnmatchcase(name, pattern)}
            if not matched:
                raise ConfigError(
                    f"the pattern {pattern!r} matches no parameter",
                    where="personalization.personal_patterns",
                    fix=f"the parameters are {', '.join(ordered)}",
                )
            personal |= matched
        if personal == set(ordered):
            raise ConfigError(
                "every parameter is personal, so there is nothing to train together",
                where="personalization.personal_patterns",
                fix="leave at least one parameter shared",
            )
        return cls(tuple(n for n in ordered if n not in personal), tuple(n for n in ordered if n in personal))
