"""From a verified assignment to what a device serves: withdrawn versions left first, then installs, then the state in memory.

Rules of this file:
    * What is told is kept before anything is done about it.
    * A withdrawn version is left before anything is fetched; the device then serves the newest good one, or the rules.
    * A version is fetched without any lock: `Slots.stage` is asked again and again, and says each time which file it lacks.
      So a local rollback never waits for a download.
    * What fails the device's checks is refused by name: a version that is wrong here for good, another failure (a full
      disk, a damaged file) until the next try after `RETRY_S`. What cannot be fetched, or may not be installed just
      now, is no refusal; a delta that the server does not have gives way to the full file.
    * What the disk has lost of a held version is told once and fetched again, whether it serves meanwhile or not.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.artifacts.manifest import Manifest
from fedretrain.artifacts.package import references
from fedretrain.artifacts.trust.words import TrustError
from fedretrain.core.errors import DataError, FedretrainError, UserError
from fedretrain.edge.control import ControlError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.artifacts.package import Package
    from fedretrain.artifacts.trust.words import TargetInfo
    from fedretrain.edge.memory import MemoryFile
    from fedretrain.edge.slots import Slots

    Download = Callable[[str, int], bytes]
    Installable = Callable[[str], TargetInfo | None]

WITHDRAWN = "withdrawn"
"""Why a version is marked bad that the coordinator took back; it may be given again."""
RETRY_S = 600.0
"""After so long a version that was refused, and is not bad for good, is tried again."""


@dataclass(frozen=True)
class Wanted:
    """What a device shall do about an assignment.

    Attributes:
        serve: The version to answer; None: the rules baseline.
        shadow: The version to score beside it; None: none.
        by_rules: Safe mode: the rules answer whatever `serve` is.
    """

    serve: Package | None
    shadow: Package | None
    by_rules: bool


class _MissingError(FedretrainError):
    """A file that is not here yet; no `DataError`, so that nothing is given up for it."""

    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        self.digest = digest


class Follower:
    """Brings one device's slots to what it was told.

    Args:
        slots: The device's.
        memory: What it was told.
        population: Its fleet; a package of another one is refused.

    Attributes:
        lock: Held while the slots are used; never while something is fetched.
        num_mended: How often a held version was whole again.
    """

    def __init__(self, slots: Slots, memory: MemoryFile, population: str) -> None:
        self._slots, self._memory, self._population = slots, memory, population
        self.lock = threading.RLock()
        self._fetched: dict[str, bytes] = {}
        self._not_there: set[str] = set()
        self._damaged: set[str] = set()
        self._untold: list[str] = []
        self.num_mended = 0
        self._shadow: Package | None = None
        self._due_s: dict[str, float] = {}
        self._counter = 0

    def leave_withdrawn(self) -> bool:
        """Leave what may not be served any more; True if that was what the device served.

        What was withdrawn once and shall be served now is forgiven.
        """
        told = self._memory.value
        with self.lock:
            state = self._slots.state
            served = state.current
            for digest in told.withdrawn:
                # What this device's own checks found against it stays: that is not forgiven.
                if digest in state.held and not state.why_bad(digest):
                    self._slots.mark_bad(digest, WITHDRAWN)
            for digest in (told.serve, told.shadow):
                if digest and state.why_bad(digest) == WITHDRAWN:
                    self._slots.forgive(digest)
            if self._shadow is not None and self._shadow.digest in told.withdrawn:
                self._shadow = None
            if served not in told.withdrawn:
                return False
            self._slots.rollback()
            return True

    @property
    def candidate(self) -> str:
        """Digest of the version that is ready to be scored in shadow; empty: none."""
        return "" if self._shadow is None else self._shadow.digest

    def look(self) -> None:
        """Read every file of the held versions: a slot that rotted is noticed before somebody needs it."""
        with self.lock:
            for digest in self._slots.state.held:
                self._note_if_damaged(digest)

    def taken_damage(self) -> list[str]:
        """Versions that were found damaged since the last call."""
        with self.lock:
            found, self._untold = self._untold, []
            return found

    def recall(self) -> None:
        """After a start: what was scored in shadow is scored again, if it is still here."""
        shadow = self._memory.value.shadow
        with self.lock, contextlib.suppress(UserError):
            if shadow in self._slots.state.held:
                self._shadow = self._slots.package(shadow)

    def install(self, installable: Installable, download: Download, now_s: float) -> None:
        """Fetch, verify and activate what was told and is not here.

        Args:
            installable: What was signed for a package, or None; raises TrustError where nothing may be installed now.
            download: Gives the bytes under a digest, at most so many.
            now_s: Monotonic seconds.

        Raises:
            ControlError: If something cannot be fetched just now.
            TrustError: If nothing may be installed just now.
        """
        told = self._memory.value
        if told.counter != self._counter:
            self._counter, self._due_s = told.counter, {}
        shadow = self._shadow.digest if self._shadow is not None else ""
        if not told.shadow:
            self._shadow, shadow = None, ""
        for digest, is_here, activate in (
            (told.serve, self._slots.state.current == told.serve, True),
            (told.shadow, shadow == told.shadow, False),
        ):
            is_whole = is_here and digest not in self._damaged
            if not digest or is_whole or now_s < self._due_s.get(digest, now_s):
                continue
            self._due_s[digest] = now_s + RETRY_S
            try:
                self._bring(digest, installable, download, activate=activate)
            except (ControlError, TrustError):
                del self._due_s[digest]
                raise
        self._mend(installable, download, now_s)

    def wanted(self) -> Wanted:
        """What the device shall answer with now, by what it was told and what it holds."""
        told = self._memory.value
        current = None
        with self.lock, contextlib.suppress(UserError):  # slots that cannot be read: the rules answer
            before = self._slots.state
            current = self._slots.current()
            if before.current in before.good and (current is None or current.digest != before.current):
                self._note_damage(before.current)
        if current is not None and current.digest in told.withdrawn:
            current = None
        shadow = self._shadow if self._shadow is not None and self._shadow.digest == told.shadow else None
        if shadow is not None and current is not None and shadow.digest == current.digest:
            shadow = None
        return Wanted(current, shadow, told.safe_mode or (told.counter > 0 and not told.serve))

    def rolled_back(self, version: str, reason: str) -> None:
        """A version is not well here: never again, and back to the one before."""
        with self.lock:
            self._slots.mark_bad(version, reason)
            if self._slots.state.current == version:
                self._slots.rollback()
        self._memory.note(lambda told: told.refusing(version, reason))

    def _bring(self, digest: str, installable: Installable, download: Download, *, activate: bool) -> None:
        """One version: refused by name where the device's checks fail."""
        state = self._slots.state
        if why_bad := state.why_bad(digest):
            self._refuse(digest, why_bad)
            return
        if digest in state.held:
            with self.lock:
                self._note_if_damaged(digest)
        try:
            self._hold(digest, installable, download)
            with self.lock:
                if activate:
                    self._slots.activate(digest)
                else:
                    self._shadow = self._slots.package(digest)
        except TrustError:
            raise
        except UserError as error:
            self._refuse(digest, error.what)
            return
        del self._due_s[digest]
        self._memory.note(lambda told: told.accepting(digest))

    def fetched(self, digest: str, installable: Installable, download: Download) -> Package:
        """A version that is to be looked at and not served: verified as one that is, and refused to the caller alone.

        Raises:
            ControlError: If something cannot be fetched just now.
            TrustError: If nothing may be installed just now.
            UserError: If it may not be installed here, or does not pass this device's checks.
        """
        if why_bad := self._slots.state.why_bad(digest):
            raise DataError(why_bad, where="package")
        self._hold(digest, installable, download)
        with self.lock:
            return self._slots.package(digest)

    def _hold(self, digest: str, installable: Installable, download: Download) -> None:
        """See to it that a version is in the slots, each file verified."""
        state, is_damaged = self._slots.state, digest in self._damaged
        if digest in (state.current, *state.previous) and not is_damaged:
            return  # those were verified before, and a device may go back
        info = installable(digest)
        if info is None:
            raise DataError("it is not in the signed list of installable versions", where="package")
        if digest not in state.held or is_damaged:
            self._stage(digest, info, download)
        if is_damaged:
            self._damaged.discard(digest)
            self.num_mended += 1

    def _mend(self, installable: Installable, download: Download, now_s: float) -> None:
        """Fetch again what the disk has lost of versions that a device may go back to."""
        for digest in sorted(self._damaged):
            if digest not in self._slots.state.held:
                self._damaged.discard(digest)
            elif now_s >= self._due_s.get(digest, now_s):
                self._due_s[digest] = now_s + RETRY_S
                with contextlib.suppress(DataError):  # withdrawn meanwhile, or the disk is full
                    self._hold(digest, installable, download)

    def _note_if_damaged(self, digest: str) -> None:
        if not self._slots.is_whole(digest):
            self._note_damage(digest)

    def _note_damage(self, digest: str) -> None:
        if digest not in self._damaged:
            self._damaged.add(digest)
            self._untold.append(digest)

    def _stage(self, digest: str, info: TargetInfo, download: Download) -> None:
        manifest = self._slots.manifest(digest)  # kept by a try that was cut, or held
        if manifest is not None:
            self._check(manifest)
        try:
            while True:
                try:
                    with self.lock:
                        self._slots.stage(digest, self._held)
                except _MissingError as missing:
                    if manifest is None:
                        content = info.check(download(digest, info.length))
                        manifest = Manifest.from_bytes(content)
                        self._check(manifest)
                        self._fetched[digest] = content
                    else:
                        self._fetch(missing.digest, manifest, download)
                else:
                    return
        finally:
            self._fetched.clear()
            self._not_there.clear()

    def _fetch(self, digest: str, manifest: Manifest, download: Download) -> None:
        """A file that a manifest names. A delta that the server does not have, or cannot read any more, is given up."""
        sizes = {blob.digest: blob.size_bytes for blob in references(manifest)}
        try:
            self._fetched[digest] = download(digest, sizes[digest])
        except ControlError as error:
            if not error.is_refusal or digest != manifest.delta.digest:
                raise
            self._not_there.add(digest)

    def _held(self, digest: str) -> bytes:
        if digest in self._not_there:
            raise DataError(f"the server does not have {digest}", where="package")
        if digest not in self._fetched:
            raise _MissingError(digest)
        return self._fetched[digest]

    def _check(self, manifest: Manifest) -> None:
        if manifest.population != self._population:
            raise DataError(f"the package is for {manifest.population}", where="population")

    def _refuse(self, version: str, reason: str) -> None:
        self._memory.note(lambda told: told.refusing(version, reason))
