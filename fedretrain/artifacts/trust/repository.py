"""The server's side: the signed list of what may be installed, on disk as The Update Framework lays it out.

Rules of this file:
    * The list holds installable packages only. Quarantine takes one out; to roll back is to point assignments at an older one that is still in.
    * The timestamp is written last and is what counts: a cut before it leaves the old state, and the next call writes over what the cut left.
    * Nothing is signed that was not itself signed: what is read from the disk is verified, by the present root or (a rotation that was cut) by the one before.
    * Every call may be made again: it changes nothing that already stands.
    * Roots are made elsewhere (`root`), with a key that never comes here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from fedretrain.artifacts.trust.root import check_next, online_keys, read_root
from fedretrain.artifacts.trust.words import (
    MAX_BYTES,
    SIGNED_AT,
    TargetInfo,
    as_time,
    check_name,
    package_path,
)
from fedretrain.core.checks import positive
from fedretrain.core.clock import DAY_S
from fedretrain.core.durable import sync_folder, write_whole
from fedretrain.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fedretrain.artifacts.trust.keys import OnlineKeys

_KEPT_VERSIONS = 16  # a client may be between two files while newer ones are written
_VERSIONED = re.compile(r"([1-9][0-9]{0,8})\.(root|snapshot|targets)\.json")
_Part = TypeVar("_Part", Root, Timestamp, Snapshot, Targets)
_List = dict[str, TargetFile]


@dataclass(frozen=True)
class Lifetimes:
    """How long a signature of each online role counts. Each is renewed when half of it has passed.

    Attributes:
        targets_s: Of the list.
        snapshot_s: Of the snapshot.
        timestamp_s: How long a device that somebody keeps from the server may go on installing from an old list.
    """

    targets_s: float = 90 * DAY_S
    snapshot_s: float = 7 * DAY_S
    timestamp_s: float = DAY_S

    def __post_init__(self) -> None:
        for key in ("targets_s", "snapshot_s", "timestamp_s"):
            positive(f"trust.{key}", getattr(self, key))


@dataclass(frozen=True)
class _Signed(Generic[_Part]):
    """A part of the repository and its bytes."""

    part: _Part
    content: bytes

    @property
    def meta(self) -> MetaFile:
        """What the part above says of it."""
        return MetaFile.from_data(self.part.version, self.content, ["sha256"])


@dataclass(frozen=True)
class _Chain:
    """The present state: what the timestamp leads to."""

    timestamp: _Signed[Timestamp]
    snapshot: _Signed[Snapshot]
    targets: _Signed[Targets]


class TrustRepository:
    """The signed list in one folder. Several processes may use it; writers wait for each other.

    Args:
        folder: Where its files are; made if it is not there.
        keys: The online keys.
        lifetimes: How long their signatures count.

    Raises:
        DataError: If the folder cannot be made.
    """

    def __init__(self, folder: Path | str, keys: OnlineKeys, lifetimes: Lifetimes | None = None) -> None:
        self._folder, self._keys, self._lifetimes = Path(folder), keys, lifetimes or Lifetimes()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
        except OSError as error:
            raise self._disk(error) from error

    def install_root(self, root: bytes, now: float) -> None:
        """Take the first root, or the next one, and sign everything anew where its keys are others.

        Raises:
            DataError: If it may not follow the present one, or names other keys than the server's.
        """
        found = read_root(root)
        if online_keys(found.signed) != self._keys.public():
            raise DataError(
                "the root names other online keys than the server has",
                where="root",
                fix="make it with their public.json",
            )
        with self._locked():
            present = self._root_bytes()
            if root != present:
                if present is not None:
                    check_next(present, root)
                elif found.signed.version != 1:
                    raise DataError(
                        f"root {found.signed.version} is not the first",
                        where="root",
                        fix="give them in order",
                    )
                self._write(f"{found.signed.version}.root.json", root)
            self._commit(now, dict, renew=False)

    def publish(self, targets: Iterable[TargetInfo], now: float) -> None:
        """Make packages installable.

        Raises:
            DataError: If a digest already stands in the list with other data.
        """
        wanted = {target.path: target.to_target() for target in targets}

        def with_them(present: _List) -> _List:
            for path in wanted.keys() & present.keys():
                if wanted[path] != present[path]:
                    raise DataError(
                        "it is published with other data", where=path, fix="publish it as it was released"
                    )
            return {**present, **wanted}

        self._change(now, with_them)

    def quarantine(self, digest: str, now: float) -> None:
        """Take a package out of the list: from then on no device can install it.

        Raises:
            DataError: If the digest is malformed.
        """
        path = package_path(digest)
        self._change(now, lambda present: {name: target for name, target in present.items() if name != path})

    def refresh_timestamp(self, now: float) -> None:
        """Sign that the list is still the newest one; to be called several times within `Lifetimes.timestamp_s`."""
        with self._locked():
            self._commit(now, dict, renew=True)

    def installable(self) -> dict[str, TargetInfo]:
        """What is in the list, by digest."""
        chain = self._chain(self._roots())
        found = (
            []
            if chain is None
            else [TargetInfo.from_target(one) for one in chain.targets.part.targets.values()]
        )
        return {info.digest: info for info in found}

    def root_expires_at(self) -> float:
        """When the root must have been renewed by the person who has its key."""
        return self._roots()[0].expires.timestamp()

    def read(self, name: str) -> bytes:
        """A file for a client.

        Raises:
            FileNotFoundError: If there is none of that name; a client asks for the root after the last one each time.
            DataError: If the name is none.
        """
        return (self._folder / check_name(name)).read_bytes()

    def _change(self, now: float, change: Callable[[_List], _List]) -> None:
        with self._locked():
            self._commit(now, change, renew=False)

    def _commit(self, now: float, change: Callable[[_List], _List], *, renew: bool) -> None:
        """Write what differs, from the list up to the timestamp. Call it under the lock."""
        roots, lifetimes = self._roots(), self._lifetimes
        if online_keys(roots[0]) != self._keys.public():
            raise ConfigError(
                "the root names other online keys", where=str(self._folder), fix="start with its keys"
            )
        old = self._chain(roots)
        targets = old.targets if old else None
        wanted = change(targets.part.targets if targets else {})
        if (
            targets is None
            or wanted != targets.part.targets
            or not self._stands(targets, roots[0], lifetimes.targets_s, now)
        ):
            made = Targets(_after(targets), expires=as_time(now + lifetimes.targets_s), targets=wanted)
            targets = self._sign(made, f"{made.version}.")
        snapshot = old.snapshot if old else None
        meta = {"targets.json": targets.meta}
        if (
            snapshot is None
            or snapshot.part.meta != meta
            or not self._stands(snapshot, roots[0], lifetimes.snapshot_s, now)
        ):
            above = Snapshot(_after(snapshot), expires=as_time(now + lifetimes.snapshot_s), meta=meta)
            snapshot = self._sign(above, f"{above.version}.")
        timestamp = old.timestamp if old else None
        is_new = timestamp is None or timestamp.part.snapshot_meta != snapshot.meta
        if is_new or renew or not self._stands(timestamp, roots[0], lifetimes.timestamp_s, now):
            expires = as_time(now + lifetimes.timestamp_s)
            signed_at = {SIGNED_AT: int(now)}  # TUF's canonical form has no fractions
            self._sign(Timestamp(_after(timestamp), None, expires, snapshot.meta, signed_at), "")
            self._prune(snapshot.part.version, targets.part.version)

    def _sign(self, part: _Part, prefix: str) -> _Signed[_Part]:
        made = Metadata(part)
        made.sign(CryptoSigner(getattr(self._keys, part.type)))
        content = made.to_bytes()
        if len(content) > MAX_BYTES[part.type]:
            raise DataError(
                f"{part.type} takes {len(content)} bytes: no client reads it",
                where=str(self._folder),
                fix="quarantine old packages",
            )
        self._write(f"{prefix}{part.type}.json", content)
        return _Signed(part, content)

    def _stands(self, signed: _Signed[_Part] | None, root: Root, lifetime_s: float, now: float) -> bool:
        if signed is None or signed.part.expires.timestamp() - now < lifetime_s / 2:
            return False
        return _is_signed(root, Metadata.from_bytes(signed.content))

    def _chain(self, roots: list[Root]) -> _Chain | None:
        if not (self._folder / "timestamp.json").exists():
            return None
        timestamp = self._load(Timestamp, "", roots)
        snapshot = self._load(Snapshot, f"{timestamp.part.snapshot_meta.version}.", roots)
        targets = self._load(Targets, f"{snapshot.part.meta['targets.json'].version}.", roots)
        same = (
            timestamp.part.snapshot_meta == snapshot.meta
            and snapshot.part.meta["targets.json"] == targets.meta
        )
        if not same:
            raise self._damaged("timestamp.json")
        return _Chain(timestamp, snapshot, targets)

    def _load(self, kind: type[_Part], prefix: str, roots: list[Root]) -> _Signed[_Part]:
        name = f"{prefix}{kind.type}.json"
        try:
            content = self.read(name)
            found: Metadata[_Part] = Metadata.from_bytes(content)
        except (OSError, RepositoryError) as error:
            raise self._damaged(name) from error
        if not isinstance(found.signed, kind) or not any(_is_signed(root, found) for root in roots):
            raise self._damaged(name)
        return _Signed(found.signed, content)

    def _roots(self) -> list[Root]:
        """The present root, and the one before where there is one."""
        versions = self._versions("root")
        if not versions:
            raise ConfigError("the trust repository has no root", where=str(self._folder), fix="install one")
        return [read_root(self.read(f"{version}.root.json")).signed for version in reversed(versions[-2:])]

    def _root_bytes(self) -> bytes | None:
        versions = self._versions("root")
        return self.read(f"{versions[-1]}.root.json") if versions else None

    def _versions(self, role: str) -> list[int]:
        found = (_VERSIONED.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(name[1]) for name in found if name and name[2] == role)

    def _prune(self, snapshot: int, targets: int) -> None:
        for role, present in (("snapshot", snapshot), ("targets", targets)):
            for version in self._versions(role):
                if version <= present - _KEPT_VERSIONS:
                    (self._folder / f"{version}.{role}.json").unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_whole(self._folder / name, content)
        except OSError as error:
            raise self._disk(error) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _disk(self, error: OSError) -> DataError:
        what = f"the trust repository cannot be written: {error.strerror or error}"
        return DataError(
            what, where=str(self._folder), fix="free the disk or check its permissions, then try again"
        )

    def _damaged(self, name: str) -> DataError:
        what = f"{name} is damaged or was not signed by us: nothing is signed on top of it"
        return DataError(what, where=str(self._folder), fix="restore the folder from a copy")


def _is_signed(root: Root, found: Metadata[_Part]) -> bool:
    try:
        root.verify_delegate(found.signed.type, found.signed_bytes, found.signatures)
    except (RepositoryError, ValueError):
        return False
    return True


def _after(signed: _Signed[_Part] | None) -> int:
    return signed.part.version + 1 if signed else 1
