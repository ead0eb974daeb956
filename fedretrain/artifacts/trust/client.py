"""The device's side: which packages may be installed, by the rules of The Update Framework's client.

Rules of this file:
    * Only installs depend on this. A device that is blocked here goes on serving what it has.
    * Time is an argument. A clock that is before the last signed time cannot tell what has expired, so it blocks too.
    * Files come through a callable of the caller's, which sets the deadline of each; only names of a closed set are asked for, and no more bytes than a file may have.
    * What a refresh refused leaves the list as it was, until that expires.
    * An expired list installs nothing, and still bears witness of what was signed.
    * Delegations are not followed: one signed list says everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api import exceptions
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from fedretrain.artifacts.trust.root import online_keys, read_root
from fedretrain.artifacts.trust.words import (
    MAX_BYTES,
    SIGNED_AT,
    Block,
    TargetInfo,
    TrustError,
    as_time,
    check_name,
    newest_charged,
    package_path,
)
from fedretrain.core.durable import sync_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

    Fetch = Callable[[str, int], Iterator[bytes]]
    """``fetch(name, max_bytes)``: chunks of a file; FileNotFoundError where there is none, any other OSError where it cannot be had in time."""

CLOCK_TOLERANCE_S = 300.0
"""How far a device's clock may be behind the server's."""

_BASE = "trust/"
_CONFIG = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=0,
    root_max_length=MAX_BYTES["root"],
    timestamp_max_length=MAX_BYTES["timestamp"],
    snapshot_max_length=MAX_BYTES["snapshot"],
    targets_max_length=MAX_BYTES["targets"],
)
# The first that fits: an oversize download is a download error too, and everything is a repository error.
_BLOCKS = (
    (exceptions.ExpiredMetadataError, Block.EXPIRED),
    (exceptions.BadVersionNumberError, Block.ROLLBACK),
    (exceptions.UnsignedMetadataError, Block.BAD_SIGNATURE),
    (exceptions.LengthOrHashMismatchError, Block.MISMATCH),
    (exceptions.DownloadLengthMismatchError, Block.OVERSIZE),
    (exceptions.DownloadError, Block.UNREACHABLE),
    (exceptions.RepositoryError, Block.MALFORMED),
    (OSError, Block.STORAGE),
)


class TrustClient:
    """What a device knows of the signed list.

    Args:
        folder: Where it keeps what it has verified; made if it is not there.
        root: The root that the device was made with.
        fetch: Gets a file of the repository.

    Raises:
        TrustError: If the folder cannot be made.
        DataError: If the root cannot be read.
    """

    def __init__(self, folder: Path | str, root: bytes, fetch: Fetch) -> None:
        read_root(root)
        self._folder, self._root, self._fetch = Path(folder), root, fetch
        self._held: _Updater | None = None
        try:
            (self._folder / "root_history").mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder)
            sync_folder(self._folder.parent)
        except OSError as error:
            raise TrustError(Block.STORAGE, f"the folder cannot be made: {error.strerror}") from error

    def refresh(self, now: float) -> None:
        """Fetch what is new and verify it.

        Raises:
            TrustError: If something is refused or cannot be had, by name. What was held before stays.
        """
        self._update(self._fetch, now)

    def recall(self, now: float) -> None:
        """Verify what an earlier refresh stored: after a restart without a network.

        Raises:
            TrustError: If there is nothing, or it has expired.
        """
        if not (self._folder / "timestamp.json").is_file():
            raise TrustError(Block.NEVER_REFRESHED, "no signed list is known yet")
        self._update(self._stored, now)

    def installable(self, digest: str, *, population: str, now: float) -> TargetInfo | None:
        """What was signed for a package; None if it may not be installed here: unknown, quarantined or another fleet's.

        Raises:
            TrustError: If nothing may be installed now, by name.
            DataError: If the digest is malformed.
        """
        path = package_path(digest)
        held = self._checked(now)
        target = held.targets.targets.get(path)
        info = None if target is None else TargetInfo.from_target(target)
        return info if info is not None and info.population == population else None

    def newest_charged(self, population: str) -> TargetInfo | None:
        """What bears the newest head of a population's privacy ledger, of the list that was verified last; None where nothing does.

        Raises:
            TrustError: If nothing was refreshed or recalled, or a target cannot be read.
        """
        targets = self._known().targets.targets.values()
        return newest_charged(map(TargetInfo.from_target, targets), population)

    def assignment_key(self) -> bytes:
        """The raw public key that signs assignments, by the newest root known. Refresh when an assignment is refused: it may have been rotated.

        Raises:
            TrustError: If nothing was refreshed or recalled.
        """
        return online_keys(self._known().root)["assignment"]

    def _update(self, fetch: Fetch, now: float) -> None:
        try:
            updater = _Updater(self._folder, self._root, _Fetcher(fetch), as_time(now))
            updater.refresh()
        except tuple(kind for kind, _ in _BLOCKS) as error:
            block = next(block for kind, block in _BLOCKS if isinstance(error, kind))
            raise TrustError(block, f"the signed list is refused: {error}") from error
        _signed_at(updater.timestamp)
        self._held = updater
        self._checked(now)

    def _checked(self, now: float) -> _Updater:
        held, instant = self._known(), as_time(now)
        if now < _signed_at(held.timestamp) - CLOCK_TOLERANCE_S:
            raise TrustError(
                Block.CLOCK_BEHIND, "the clock is before the last signed time", fix="set the clock"
            )
        for signed in (held.root, held.timestamp, held.snapshot, held.targets):
            if signed.is_expired(instant):
                raise TrustError(Block.EXPIRED, f"{signed.type} expired at {signed.expires.isoformat()}")
        return held

    def _known(self) -> _Updater:
        if self._held is None:
            raise TrustError(Block.NEVER_REFRESHED, "no signed list is known yet")
        return self._held

    def _stored(self, name: str, max_bytes: int) -> Iterator[bytes]:
        """What the folder holds of a file, so that TUF's own checks name what is wrong with it. No root: those are found without asking."""
        role = name.split(".")[-2]
        if role == "root":
            raise FileNotFoundError(name)
        with (self._folder / f"{role}.json").open("rb") as file:
            yield file.read(max_bytes + 1)


class _Updater(Updater):
    """TUF's client workflow with a clock from outside and files that survive a power cut."""

    def __init__(self, folder: Path, root: bytes, fetcher: FetcherInterface, now: datetime) -> None:
        super().__init__(str(folder), _BASE, fetcher=fetcher, config=_CONFIG, bootstrap=root)
        self._trusted_set.reference_time = now

    @property
    def root(self) -> Root:
        """The newest root."""
        return self._trusted_set.root

    @property
    def timestamp(self) -> Timestamp:
        """The newest timestamp."""
        return self._trusted_set.timestamp

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot."""
        return self._trusted_set.snapshot

    @property
    def targets(self) -> Targets:
        """The signed list."""
        return self._trusted_set.targets

    def _persist_file(self, filename: str, data: bytes) -> None:
        """Durably, and not at all where the file is the same: the first root is handed in on each start."""
        path = Path(filename)
        if not path.is_file() or path.read_bytes() != data:
            write_whole(path, data)

    def _update_root_symlink(self) -> None:
        """Nothing: the device's own root is always handed in, so nobody reads the link."""


class _Fetcher(FetcherInterface):
    """TUF's fetcher over the caller's callable."""

    def __init__(self, fetch: Fetch) -> None:
        self._take = fetch

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """A file in memory, never more of it than allowed."""
        name = check_name(url.removeprefix(_BASE))
        content = bytearray()
        try:
            for chunk in self._take(name, max_length):
                content += chunk
                if len(content) > max_length:
                    raise exceptions.DownloadLengthMismatchError(f"{name} has more than {max_length} bytes")
        except FileNotFoundError as error:
            raise exceptions.DownloadHTTPError(f"there is no {name}", 404) from error
        except OSError as error:
            raise exceptions.DownloadError(f"{name}: {error}") from error
        return bytes(content)

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, max(MAX_BYTES.values()))


def _signed_at(timestamp: Timestamp) -> int:
    value = timestamp.unrecognized_fields.get(SIGNED_AT)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TrustError(Block.MALFORMED, "the timestamp does not say when it was signed")
    return value
