"""A population's versions: the numbers that decisions use, and the packages that devices name.

Rules of this file:
    * A version's number is never given twice, and its package never changes: both are in the event log.
    * Version 0 is the rules baseline, which has no package: its digest is empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedretrain.core.errors import DataError
from fedretrain.rollout.stops import RULES_BASELINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from fedretrain.server.event_log import Entry


def stream(population: str) -> str:
    """Where a population's versions are."""
    return f"population/{population}/versions"


def record(version: int, package: str, weights: str, origin: str) -> dict[str, Any]:
    """A version as an event.

    Args:
        version: Its number.
        package: Digest of its manifest.
        weights: Digest of its weights.
        origin: How it came about, for people.
    """
    return {"version": version, "package": package, "weights": weights, "origin": origin}


@dataclass(frozen=True)
class Version:
    """One of them.

    Attributes:
        version: Its number.
        package: Digest of its manifest.
        weights: Digest of its weights.
        origin: How it came about, for people.
        at: When.
    """

    version: int
    package: str
    weights: str
    origin: str
    at: float


@dataclass(frozen=True)
class Versions:
    """All of them, as the fold of the stream.

    Attributes:
        by_number: Every version.
    """

    by_number: Mapping[int, Version] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Versions:
        """Fold a stream.

        Raises:
            DataError: If a number or a package comes twice.
        """
        found: dict[int, Version] = {}
        packages: set[str] = set()
        for entry in entries:
            version = Version(at=entry.at, **entry.record)
            if version.version in found or version.package in packages or version.version <= RULES_BASELINE:
                raise DataError(f"version {version.version} was made twice", where="versions")
            found[version.version] = version
            packages.add(version.package)
        return cls(found)

    def number_of(self, package: str) -> int | None:
        """The number of a package; the rules baseline for an empty digest; None where nobody released it."""
        if not package:
            return RULES_BASELINE
        return next((one.version for one in self.by_number.values() if one.package == package), None)

    def package_of(self, version: int) -> str:
        """The package of a number.

        Raises:
            DataError: If there is no such version.
        """
        if version == RULES_BASELINE:
            return ""
        if version not in self.by_number:
            raise DataError(f"there is no version {version}", where="versions", fix="see `fedretrain models`")
        return self.by_number[version].package

    @property
    def digests(self) -> dict[int, str]:
        """The package of every number, the rules baseline's too."""
        return {RULES_BASELINE: "", **{number: one.package for number, one in self.by_number.items()}}

    @property
    def next_number(self) -> int:
        """A number that nobody has."""
        return max(self.by_number, default=RULES_BASELINE) + 1
