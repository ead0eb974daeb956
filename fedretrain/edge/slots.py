"""Model slots on disk: what a device serves, what it can go back to, and what it is about to try.

Rules of this file:
    * Files first, pointer last. Files are content-addressed and whole or absent; the pointer is one file, replaced by
      one rename: whatever is cut, the device has the version from before or the one after.
    * A version becomes a candidate only when every digest was verified, the model was loaded and its sanity vectors passed
      on this device.
    * The smaller way is taken: the delta where its base is held. A delta that does not lead to the released digest
      is given up for the full file.
    * What is served is verified again when it is opened: a slot that rotted is left for the newest good one.
    * One process, one thread.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.artifacts.inference import Predictor
from fedretrain.artifacts.manifest import Manifest
from fedretrain.artifacts.package import blobs, open_package, rebuild, references
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import decode_params, encode_params
from fedretrain.core.durable import remove_leftovers, write_whole
from fedretrain.core.errors import DataError, UserError
from fedretrain.edge.slot_state import SlotState

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.artifacts.manifest import Blob
    from fedretrain.artifacts.package import Package
    from fedretrain.validation.sanity import SanityOutcome

    Fetch = Callable[[str], bytes]

POINTER, COPY, CONTENT = "slots.json", "slots.copy.json", "content"


@dataclass(frozen=True)
class Staged:
    """What staging a version took.

    Attributes:
        digest: Of its manifest.
        fetched_bytes: Everything that was fetched, in vain too.
        by_delta: Whether the weights came as a delta.
        largest_error: Of the sanity vectors' outputs on this device.
    """

    digest: str
    fetched_bytes: int
    by_delta: bool
    largest_error: float


class Slots:
    """The model versions of one logical device.

    Args:
        folder: Its own; made if it is not there.
        keep: How many good versions to keep beside the current one.
        store: Where the files go, of these slots alone (an encrypted one, say); None: plain files in the folder.

    Raises:
        DataError: If the folder cannot be used.
    """

    def __init__(self, folder: Path | str, keep: int = 2, store: ContentStore | None = None) -> None:
        if keep < 1:
            raise DataError(
                f"{keep} versions to go back to are too few", where="slots.keep", fix="give 1 or more"
            )
        self._folder, self._keep = Path(folder), keep
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"the folder of model slots cannot be made: {error.strerror or error}",
                where=str(self._folder),
                fix="check the path and its permissions",
            ) from error
        self._store = store or ContentStore(self._folder / CONTENT)
        self._state = self._read()

    @property
    def state(self) -> SlotState:
        """What each version is to the device."""
        return self._state

    @property
    def unsaved(self) -> bool:
        """Whether the disk did not take the last verdict or way back: a restart would forget it."""
        return self._read() != self._state

    def stage(self, digest: str, fetch: Fetch) -> Staged:
        """Fetch a version, verify it and make it the candidate. What was fetched before a failure is not fetched again.

        One that is held already stays what it is, and what the disk has lost of it is fetched again.

        Args:
            digest: Of the manifest, from a signed assignment.
            fetch: Gives the bytes under a digest; what it raises comes through.

        Raises:
            DataError: If the version is bad, damaged, not what its manifest says, or does not pass its sanity vectors
                here: then it is marked bad. Nothing that is served changes.
        """
        staged = self._state.staged(digest)
        self._sweep(digest)
        counted = _Counted(fetch)
        manifest = self._brought_manifest(digest, counted)
        by_delta = self._fetch_weights(manifest, counted)
        for blob in blobs(manifest):
            self._ensure(blob, counted)
        _, outcome = self._checked(digest)
        self._write(staged)
        return Staged(digest, counted.fetched_bytes, by_delta, outcome.largest_error)

    def activate(self, digest: str) -> Package:
        """Serve a version that is held: the candidate, or one from before.

        Raises:
            DataError: If it is not held, bad, damaged, or fails its sanity vectors.
        """
        state = self._state.activated(digest, self._keep)
        package, _ = self._checked(digest)
        self._write(state)
        self._sweep()
        return package

    def package(self, digest: str) -> Package:
        """A version that is held, to score it beside the current one.

        Raises:
            DataError: If it is not held, bad, damaged, or fails its sanity vectors.
        """
        if digest not in self._state.held or self._state.why_bad(digest):
            raise DataError(
                f"the version {digest} is not on this device", where="slots", fix="stage it first"
            )
        package, _ = self._checked(digest)
        return package

    def rollback(self) -> Package | None:
        """Go back to the newest good version before the current one; None, and nothing changes, if there is none.

        A full disk keeps nobody from going back (`unsaved` tells).
        """
        state = self._state
        while (back := state.rolled_back()) != state:
            package = self._opened(back.current)
            if package is not None:
                self._write_if_possible(back)
                return package
            state = state.without(back.current)
        return None

    def current(self) -> Package | None:
        """What the device serves, read and verified anew; None if nothing good is left.

        If the current version is bad or damaged, the newest good one takes its place.
        """
        state = self._state
        for digest in state.good:
            package = self._opened(digest)
            if package is not None:
                if state != self._state or digest != state.current:
                    self._write_if_possible(state.without(state.current).activated(digest, self._keep))
                return package
            state = state.without(digest)
        return None

    def manifest(self, digest: str) -> Manifest | None:
        """What is on the disk of a version's manifest: held, or kept by a `stage` that was cut; None where nothing sound is."""
        with contextlib.suppress(DataError):
            return Manifest.from_bytes(self._store.get(digest))
        return None

    def is_whole(self, digest: str) -> bool:
        """Whether every file of a version is on the disk as it was written."""
        try:
            open_package(self._store, digest)
        except UserError:
            return False
        return True

    def mark_bad(self, digest: str, reason: str) -> None:
        """Never stage or serve a version again; if it is the current one, `rollback` is the next thing to do."""
        self._write_if_possible(self._state.marked_bad(digest, reason))

    def forgive(self, digest: str) -> None:
        """Take a verdict back.

        Raises:
            DataError: If it cannot be written down.
        """
        self._write(self._state.forgiven(digest))

    def _brought_manifest(self, digest: str, fetch: Fetch) -> Manifest:
        """The manifest, from disk if it is held, kept on disk if it is sound."""
        if (held := self.manifest(digest)) is not None:
            return held
        manifest = Manifest.from_bytes(fetch(digest))
        if manifest.digest != digest:
            raise DataError(
                f"what was fetched as {digest} is {manifest.digest}", where="manifest", fix="fetch it again"
            )
        self._store.put(manifest.to_bytes())
        return manifest

    def _fetch_weights(self, manifest: Manifest, fetch: Fetch) -> bool:
        """The weights by delta, if that is possible; whether they came so."""
        if not manifest.delta or self._is_sound(manifest.weights) or not self._store.has(manifest.base):
            return False
        try:
            base = decode_params(self._store.get(manifest.base))
            delta = manifest.delta.check(fetch(manifest.delta.digest), "delta")
            weights = encode_params(rebuild(base, delta))
            self._store.put(manifest.weights.check(weights, "weights by delta"))
        except DataError:  # a full disk too: it is met again, and raised, when the full file is stored
            return False
        return True

    def _ensure(self, blob: Blob, fetch: Fetch) -> None:
        if not self._is_sound(blob):
            self._store.put(blob.check(fetch(blob.digest), "file"))

    def _is_sound(self, blob: Blob) -> bool:
        try:
            blob.check(self._store.get(blob.digest), "file")
        except DataError:
            return False
        return True

    def _checked(self, digest: str) -> tuple[Package, SanityOutcome]:
        """Load a version and run its sanity vectors. What fails them is marked bad."""
        package = open_package(self._store, digest)
        outcome = Predictor.of(package).check(package.sanity)
        if not outcome.ok:
            reason = (
                f"of {outcome.num_vectors} sanity vectors {outcome.num_wrong} decide otherwise, {outcome.num_off} are "
                f"off, {outcome.num_nonfinite} not finite; repeatable: {outcome.repeatable}"
            )
            self.mark_bad(digest, reason)
            raise DataError(
                f"the version {digest} is wrong on this device: {reason}", where="sanity", fix="report it"
            )
        return package, outcome

    def _opened(self, digest: str) -> Package | None:
        """A version that can be served, or None."""
        try:
            package = open_package(self._store, digest)
            ok = Predictor.of(package).check(package.sanity).ok
        except UserError:
            return None
        return package if ok else None

    def _sweep(self, coming: str = "") -> None:
        """Remove what no held version needs, nor one that is coming."""
        wanted: set[str] = set()
        for digest in (*self._state.held, *([coming] if coming else [])):
            wanted.add(digest)
            if (manifest := self.manifest(digest)) is not None:
                wanted.update(blob.digest for blob in references(manifest))
        with contextlib.suppress(DataError):  # what cannot be removed is in nobody's way but the disk's
            self._store.sweep(wanted)
        with contextlib.suppress(OSError):
            remove_leftovers(self._folder)

    def _read(self) -> SlotState:
        """The pointer, or its copy; a device with neither begins anew."""
        for name in (POINTER, COPY):
            try:
                return SlotState.from_bytes((self._folder / name).read_bytes())
            except (DataError, FileNotFoundError):
                continue
            except OSError as error:
                raise DataError(
                    f"the pointer to the model slots cannot be read: {error.strerror or error}",
                    where=str(self._folder / name),
                    fix="check its permissions and the disk",
                ) from error
        return SlotState()

    def _write_if_possible(self, state: SlotState) -> None:
        """Going back must not wait for a disk that is full: the state holds in memory all the same."""
        try:
            self._write(state)
        except DataError:
            self._state = state

    def _write(self, state: SlotState) -> None:
        """The pointer, which is what counts, then its copy, which is there for a disk that loses a bit."""
        try:
            write_whole(self._folder / POINTER, state.to_bytes())
        except OSError as error:
            self._state = self._read()  # the rename may have happened
            raise DataError(
                f"the pointer to the model slots cannot be written: {error.strerror or error}",
                where=str(self._folder),
                fix="free the disk or check its permissions",
            ) from error
        self._state = state
        with contextlib.suppress(OSError):
            write_whole(self._folder / COPY, state.to_bytes())


class _Counted:
    """A fetch that counts bytes."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch, self.fetched_bytes = fetch, 0

    def __call__(self, digest: str) -> bytes:
        content = self._fetch(digest)
        self.fetched_bytes += len(content)
        return content
