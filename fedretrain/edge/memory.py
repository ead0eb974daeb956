"""What a device must not forget: what it was told last, what it refused, which version proved well.

Rules of this file:
    * Written whole, before anything is done about it: a counter that was followed is never followed twice.
    * Two copies, each with its checksum. A device that has lost both begins anew and says so.
    * The newest head of the privacy ledger that was seen only goes forwards, and the first hash seen at a counter stays:
      the coordinator's word is held against it.
    * A value with pure transitions; `MemoryFile` is the shell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedretrain.artifacts.assignment import CampaignInvite  # noqa: TC001 - `core.build` reads the annotations
from fedretrain.core.build import build, plain
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import DataError, UserError
from fedretrain.edge.health_limits import HealthRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fedretrain.artifacts.assignment import Assignment
    from fedretrain.artifacts.notice import Notice

MEMORY, COPY = "memory.json", "memory.copy.json"
_MAX_BASES = 16
_MAX_REASON = 200


@dataclass(frozen=True)
class Memory:
    """What is kept.

    Attributes:
        counter: Of the newest assignment; 0 before the first.
        digest: Of that assignment.
        issued_at: When it was signed.
        serve: What it says to serve; empty is the rules baseline.
        shadow: What to score beside it; empty is none.
        safe_mode: Whether the rules baseline serves whatever `serve` says.
        withdrawn: What may not be served.
        invite: The campaign that the device may train in.
        refused: A version that it would not serve, by its own checks.
        refused_reason: Why.
        confirmed: The version that passed its checks here and has predicted.
        bases: Versions that were served, oldest first.
        slot_s: Length of a telemetry slot; 0 while nobody has said.
        assignment_key: The key that signs assignments (hexadecimal), by the newest root known.
        record: What the served version looks like when it is well.
        refresh: The refresh of the personal state that the device shall have done; 0 is none.
        refreshed: The last one that it has done.
        ledger_counter: Of the newest head of the population's privacy ledger in a signed list that was verified; 0 before any.
        ledger_hash: Of that head.
    """

    counter: int = 0
    digest: str = ""
    issued_at: float = 0.0
    serve: str = ""
    shadow: str = ""
    safe_mode: bool = False
    withdrawn: tuple[str, ...] = ()
    invite: CampaignInvite | None = None
    refused: str = ""
    refused_reason: str = ""
    confirmed: str = ""
    bases: tuple[str, ...] = ()
    slot_s: float = 0.0
    assignment_key: str = ""
    record: HealthRecord = field(default_factory=HealthRecord)
    refresh: int = 0
    refreshed: int = 0
    ledger_counter: int = 0
    ledger_hash: str = ""

    def told(self, assignment: Assignment) -> Memory:
        """After an assignment that was verified: what was refused under an earlier one is history."""
        if assignment.counter == self.counter:
            # The same; but a memory from before instants were kept has none.
            return replace(self, issued_at=assignment.issued_at)
        return replace(
            self,
            counter=assignment.counter,
            digest=assignment.digest,
            issued_at=assignment.issued_at,
            serve=assignment.serve,
            shadow=assignment.shadow,
            safe_mode=assignment.safe_mode,
            withdrawn=assignment.withdrawn,
            invite=assignment.invite,
            refresh=assignment.refresh,
            refused="",
            refused_reason="",
        )

    def heeding(self, notice: Notice) -> Memory:
        """After a verified notice: what it withdraws is served and scored no more; an assignment that is as new knew of it."""
        if notice.issued_at <= self.issued_at:
            return self
        return replace(
            self,
            serve=notice.serve if self.serve in notice.withdrawn else self.serve,
            shadow="" if self.shadow in notice.withdrawn else self.shadow,
            safe_mode=self.safe_mode or notice.safe_mode,
            withdrawn=tuple(sorted({*self.withdrawn, *notice.withdrawn} - {notice.serve})),
        )

    def refusing(self, version: str, reason: str) -> Memory:
        """A version is not served here."""
        confirmed = "" if self.confirmed == version else self.confirmed
        return replace(self, refused=version, refused_reason=reason[:_MAX_REASON], confirmed=confirmed)

    def accepting(self, version: str) -> Memory:
        """A version that was refused is here after all."""
        return replace(self, refused="", refused_reason="") if self.refused == version else self

    def serving(self, version: str) -> Memory:
        """A version has begun to serve."""
        if self.bases and self.bases[-1] == version:
            return self
        rest = tuple(base for base in self.bases if base != version)
        return replace(self, bases=(*rest, version)[-_MAX_BASES:])

    def witnessing(self, counter: int, hash_: str) -> Memory:
        """A verified list bears a head of the privacy ledger."""
        if counter <= self.ledger_counter:
            return self
        return replace(self, ledger_counter=counter, ledger_hash=hash_)

    def beginning_from(self, base: str) -> Memory:
        """Personal state was learnt beside something that never served here: a start for the present version and the next."""
        rest = tuple(one for one in self.bases[:-1] if one != base)
        return replace(self, bases=(*rest, base, *self.bases[-1:]))


class MemoryFile:
    """The memory of one device on the disk.

    Args:
        folder: The device's.

    Attributes:
        value: What is remembered.
        was_lost: Whether there were files, and none could be read.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / MEMORY, folder / COPY)
        self._lock = threading.RLock()
        self.value, self.was_lost = self._read()

    def change(self, how: Callable[[Memory], Memory]) -> None:
        """Remember something else durably. Any thread may call it.

        Args:
            how: From what is remembered to what shall be.

        Raises:
            DataError: If the disk would not have it; nothing is changed then.
        """
        with self._lock:
            value = how(self.value)
            if value == self.value:
                return
            content = _sealed(value)
            try:
                write_whole(self._paths[0], content)
            except OSError as error:
                raise DataError(
                    f"the device's memory cannot be written: {error.strerror or error}",
                    where=str(self._paths[0]),
                    fix="free the disk or check its permissions",
                ) from error
            self.value = value
            with contextlib.suppress(OSError):
                write_whole(self._paths[1], content)

    def note(self, how: Callable[[Memory], Memory]) -> None:
        """As `change`; on a full disk it holds in memory all the same, until the next start."""
        with self._lock:
            try:
                self.change(how)
            except DataError:
                self.value = how(self.value)

    def _read(self) -> tuple[Memory, bool]:
        was_there = False
        for path in self._paths:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError:
                was_there = True
                continue
            was_there = True
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError, UserError):
                return _opened(content), False
        return Memory(), was_there


def _sealed(value: Memory) -> bytes:
    content = plain(value)
    return json.dumps({"memory": content, "sha256": _checksum(content)}, sort_keys=True).encode()


def _opened(content: bytes) -> Memory:
    parts = json.loads(content)
    if parts["sha256"] != _checksum(parts["memory"]):
        raise ValueError("the memory is damaged")
    return build(Memory, parts["memory"])


def _checksum(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
