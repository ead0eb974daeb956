"""Which model versions a device holds, and what each of them is to it: the value behind the pointer file.

Rules of this file:
    * Pure: a transition gives a new state or a `DataError`; nothing is read or written.
    * A version is current, previous (good before, newest first) or candidate; never two of them.
    * A bad version is none of them, but for the current one: it stays until there is something to go back to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from fedretrain.artifacts.store import check_digest
from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError, DataError

FORMAT = 1
MAX_BAD = 50  # the oldest verdicts are forgotten: a pointer must not grow for years
MAX_REASON = 200


@dataclass(frozen=True)
class SlotState:
    """The digests of manifests by what they are to the device.

    Attributes:
        current: What it serves; empty before the first install.
        previous: What it may go back to, newest first.
        candidate: Staged: complete and verified; empty for none.
        bad: Pairs of a digest and why it is not to be served, oldest first.
    """

    current: str = ""
    previous: tuple[str, ...] = ()
    candidate: str = ""
    bad: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for digest in (*self.held, *(digest for digest, _ in self.bad)):
            check_digest(digest)
        if len(set(self.held)) != len(self.held):
            raise DataError("a version is held twice", where="slots")

    @property
    def held(self) -> tuple[str, ...]:
        """Every version whose files are kept, in the order in which a device would serve them."""
        return tuple(digest for digest in (self.current, *self.previous, self.candidate) if digest)

    @property
    def good(self) -> tuple[str, ...]:
        """What the device may serve by itself: the current version, then the previous ones; none that is bad."""
        return tuple(d for d in (self.current, *self.previous) if d and not self.why_bad(d))

    def why_bad(self, digest: str) -> str:
        """Why a version is not to be served; empty if nothing is known against it."""
        return dict(self.bad).get(digest, "")

    def staged(self, digest: str) -> SlotState:
        """A version is complete; it replaces another candidate. One that is served or kept already stays what it is.

        Raises:
            DataError: If it is bad.
        """
        self._refuse_bad(digest)
        return self if digest in self.held else replace(self, candidate=digest)

    def activated(self, digest: str, keep: int) -> SlotState:
        """A held version becomes the current one; at most `keep` previous ones stay.

        Raises:
            DataError: If it is bad, or not held.
        """
        self._refuse_bad(digest)
        if digest not in self.held:
            raise DataError(
                f"the version {digest} is not on this device", where="slots", fix="stage it first"
            )
        if digest == self.current:
            return self
        rest = [d for d in self.good if d != digest]
        candidate = "" if digest == self.candidate else self.candidate
        return replace(self, current=digest, previous=tuple(rest[:keep]), candidate=candidate)

    def rolled_back(self) -> SlotState:
        """The newest good version before the current one; the same state if there is none."""
        before = [d for d in self.good if d != self.current]
        return replace(self, current=before[0], previous=tuple(before[1:])) if before else self

    def marked_bad(self, digest: str, reason: str) -> SlotState:
        """A version is not to be served again; nothing takes the current one's place by this alone."""
        check_digest(digest)
        rest = tuple(pair for pair in self.bad if pair[0] != digest)
        bad = (*rest, (digest, reason[:MAX_REASON] or "unknown"))[-MAX_BAD:]
        return replace(self.without(digest), bad=bad) if digest != self.current else replace(self, bad=bad)

    def forgiven(self, digest: str) -> SlotState:
        """A bad version may be staged again."""
        return replace(self, bad=tuple(pair for pair in self.bad if pair[0] != digest))

    def without(self, digest: str) -> SlotState:
        """The version is not held any more."""
        return replace(
            self,
            current="" if digest == self.current else self.current,
            previous=tuple(d for d in self.previous if d != digest),
            candidate="" if digest == self.candidate else self.candidate,
        )

    def to_bytes(self) -> bytes:
        """JSON with its own checksum: a pointer that lost a bit is known."""
        state = plain(self)
        content = {"format": FORMAT, "state": state, "sha256": _checksum(state)}
        return json.dumps(content, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> SlotState:
        """The inverse of `to_bytes`.

        Raises:
            DataError: If the bytes are anything else.
        """
        try:
            parts = json.loads(content)
            state = parts["state"]
            if parts["format"] != FORMAT or parts["sha256"] != _checksum(state):
                raise DataError("the pointer to the model slots is damaged", where="slots")
            return build(cls, state)
        except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
            raise DataError(f"the pointer to the model slots is damaged: {error}", where="slots") from error

    def _refuse_bad(self, digest: str) -> None:
        if reason := self.why_bad(check_digest(digest)):
            raise DataError(
                f"the version {digest} is not installed: {reason}",
                where="slots",
                fix="release another version, or forgive this one",
            )


def _checksum(state: object) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
