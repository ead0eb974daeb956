"""The words that the repository and its clients share: names of files, what a target says, why installs are blocked.

Rules of this file:
    * A name is one of a closed set. Nothing that a peer says becomes a path otherwise.
    * A target is one model version: its path is the digest of the package's manifest, and its hash is the same digest.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tuf.api.metadata import TargetFile

from fedretrain.artifacts.store import check_digest
from fedretrain.core.errors import DataError
from fedretrain.core.ids import is_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SIGNED_AT = "x-fedretrain-signed-at"
"""Field of a timestamp: whole seconds since the epoch at which it was signed. TUF's own fields say only when it expires."""

ASSIGNMENT_KEY = "x-fedretrain-assignment-key"
"""Field of a root: the raw public key (hexadecimal) that signs assignments."""

MAX_BYTES: Mapping[str, int] = {"root": 64_000, "timestamp": 16_000, "snapshot": 16_000, "targets": 4_000_000}
"""How long a file of each role may be. A target takes about 350 bytes of its list."""

_FILE = re.compile(r"timestamp\.json|[1-9][0-9]{0,8}\.(?:root|snapshot|targets)\.json")
_FOLDER = "packages/"
_MAX_MANIFEST_BYTES = 2**24


class Block(StrEnum):
    """Why nothing new may be installed. What a device runs is never touched by it."""

    NEVER_REFRESHED = "never_refreshed"
    EXPIRED = "expired"
    CLOCK_BEHIND = "clock_behind"
    BAD_SIGNATURE = "bad_signature"
    ROLLBACK = "rollback"
    MISMATCH = "mismatch"
    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    UNREACHABLE = "unreachable"
    STORAGE = "storage"


class TrustError(DataError):
    """Installs are blocked.

    Args:
        block: Why, by name.
        what: The same for a person.
        fix: How to mend it.
    """

    def __init__(
        self, block: Block, what: str, *, fix: str = "refresh again; what is installed goes on"
    ) -> None:
        super().__init__(what, where=f"installs blocked: {block}", fix=fix)
        self.block = block


@dataclass(frozen=True)
class TargetInfo:
    """One installable model version.

    Attributes:
        digest: SHA-256 of the package's manifest.
        length: The manifest's length in bytes.
        population: The fleet that it was made for.
        version: Its number in the registry.
        ledger_counter: How many events the privacy ledger had when it was released.
        ledger_hash: Head of the ledger then; "" where there is no ledger.

    Raises:
        DataError: If a field is not what it should be.
    """

    digest: str
    length: int
    population: str
    version: int
    ledger_counter: int = 0
    ledger_hash: str = ""

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if self.ledger_hash:
            check_digest(self.ledger_hash)
        for key in ("length", "version", "ledger_counter"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise DataError(f"{value!r} is not a whole number of at least 0", where=key, fix="give one")
        if not 0 < self.length <= _MAX_MANIFEST_BYTES:
            raise DataError(f"a manifest of {self.length} bytes", where="length", fix="give 1 byte to 16 MiB")
        if not is_name(self.population):
            raise DataError(
                f"{self.population!r} is no name", where="population", fix="letters, digits, . _ -"
            )

    @property
    def path(self) -> str:
        """Its path in the signed list."""
        return _FOLDER + self.digest

    def check(self, manifest: bytes) -> bytes:
        """The manifest, if it is the one that was signed for.

        Raises:
            TrustError: If its length or hash differ.
        """
        if len(manifest) != self.length or hashlib.sha256(manifest).hexdigest() != self.digest:
            raise TrustError(
                Block.MISMATCH, f"the package fetched for {self.digest} is another", fix="fetch it again"
            )
        return manifest

    def to_target(self) -> TargetFile:
        """As TUF writes it."""
        witness = {"counter": self.ledger_counter, "hash": self.ledger_hash}
        custom = {"population": self.population, "version": self.version, "ledger": witness}
        return TargetFile(self.length, {"sha256": self.digest}, self.path, {"custom": custom})

    @classmethod
    def from_target(cls, target: TargetFile) -> TargetInfo:
        """Read what `to_target` wrote.

        Raises:
            TrustError: If it is anything else.
        """
        try:
            custom: Any = target.custom
            witness = custom["ledger"]
            digest = target.path.removeprefix(_FOLDER)
            found = cls(
                digest,
                target.length,
                custom["population"],
                custom["version"],
                witness["counter"],
                witness["hash"],
            )
        except (KeyError, TypeError, DataError) as error:
            raise TrustError(Block.MALFORMED, f"target {target.path!r:.100} cannot be read") from error
        if found.to_target() != target:
            raise TrustError(Block.MALFORMED, f"target {target.path!r:.100} says more than a target should")
        return found


def newest_charged(targets: Iterable[TargetInfo], population: str) -> TargetInfo | None:
    """The target that bears the newest head of a population's privacy ledger; None where none bears any."""
    charged = (one for one in targets if one.population == population and one.ledger_counter)
    return max(charged, key=lambda one: one.ledger_counter, default=None)


def package_path(digest: str) -> str:
    """Where a package stands in the signed list.

    Raises:
        DataError: If it is not a digest.
    """
    return _FOLDER + check_digest(digest)


def check_name(name: str) -> str:
    """The name of a file of the repository, if it is one.

    Raises:
        DataError: If it is anything else, such as a path.
    """
    if not isinstance(name, str) or _FILE.fullmatch(name) is None:
        raise DataError(
            f"{name!r:.100} is not a file of a trust repository", where="name", fix="ask for another"
        )
    return name


def as_time(at: float) -> datetime:
    """An instant as TUF wants it: UTC, in whole seconds."""
    return datetime.fromtimestamp(int(at), UTC)
