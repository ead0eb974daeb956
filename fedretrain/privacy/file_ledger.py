"""A ledger in one file: JSON lines, hash chained, one writer.

Rules of this file:
    * `append` returns after fsync (and after the witness has the new head): charge first, release afterwards.
      A crash in between wastes budget, it never overspends.
    * A last line without its line feed was being written when the machine stopped: its `append` never returned,
      so nothing was released on it. Where it is whole it counts as charged. Where it is torn the ledger is
      refused until someone opens it with ``repair=True``, which sets the torn bytes aside in a file of their own.
    * Any other damage (an edited, missing or reordered line) is refused and never repaired.
    * A write that failed leaves a ledger that takes no more events before it is opened anew: after a failed
      fsync nobody knows what is on the disk.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedretrain.core.durable import sync_folder, write_whole
from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.event import PrivacyEvent
from fedretrain.privacy.ledger import Head, chain, check_witness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.privacy.ledger import Witness

LINE_FEED = b"\n"


class WitnessFile:
    """A head in a small file of its own; put it on another disk than the ledger's."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)

    def load(self) -> Head | None:
        """The head in the file; None if there is no file."""
        try:
            record = json.loads(self._path.read_text())
            return Head(int(record["counter"]), str(record["hash"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise PrivacyError(
                "the witness of the privacy ledger cannot be read", where=str(self._path), fix="restore it"
            ) from error

    def save(self, head: Head) -> None:
        """Replace the file durably."""
        write_whole(self._path, json.dumps({"counter": head.counter, "hash": head.hash}).encode())


class FileLedger:
    """Privacy events in an append-only file. Use as a context manager, or `close` it.

    Args:
        path: The file; made if it is not there.
        witness: Where the head is kept besides; None for none (then a cut-off end cannot be noticed).
        repair: Set a torn last line aside instead of refusing it.

    Raises:
        PrivacyError: If the file is damaged, behind its witness, or another process writes to it.
    """

    def __init__(self, path: Path | str, *, witness: Witness | None = None, repair: bool = False) -> None:
        self._path, self._witness, self._usable = Path(path), witness, True
        is_new = not self._path.exists()
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            self._lock()
            if is_new:
                sync_folder(self._path.parent)
            self._mend_end(repair=repair)
            self._events, self._heads = _read(self._path)
            if witness is not None:
                check_witness(witness.load(), self._heads, str(self._path))
                witness.save(self.head())
        except BaseException:
            self.close()
            raise

    def append(self, event: PrivacyEvent) -> Head:
        """Make the event durable, witness it, and return the new head.

        Raises:
            PrivacyError: If it cannot be written (a full disk, say). Release nothing then.
        """
        if not self._usable:
            raise PrivacyError(
                "the privacy ledger is closed, or its last write failed",
                where=str(self._path),
                fix="open it anew",
            )
        head = chain(self.head(), event)
        try:
            _write_all(self._file, _line(self.head(), event, head))
            os.fsync(self._file)
            if self._witness is not None:
                self._witness.save(head)
        except OSError as error:
            self._usable = False
            raise PrivacyError(
                f"the privacy ledger cannot be written: {error.strerror}",
                where=str(self._path),
                fix="free the disk, then open the ledger with repair=True; nothing was released",
            ) from error
        self._events.append(event)
        self._heads.append(head)
        return head

    def events(self) -> Sequence[PrivacyEvent]:
        """Every event, oldest first."""
        return tuple(self._events)

    def head(self) -> Head:
        """The present head."""
        return self._heads[-1]

    def close(self) -> None:
        """Let go of the file and its lock; may be called again."""
        self._usable = False
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrivacyError(
                "another process writes to this privacy ledger",
                where=str(self._path),
                fix="stop it: a ledger has one writer",
            ) from error

    def _mend_end(self, *, repair: bool) -> None:
        """Complete a last line that lacks only its line feed; refuse or set aside one that is torn."""
        content = self._path.read_bytes()
        rest = content.rpartition(LINE_FEED)[2]
        if not rest:
            return
        try:
            json.loads(rest)
        except ValueError:
            if not repair:
                raise PrivacyError(
                    "the last line of the privacy ledger is torn: a crash interrupted a write",
                    where=str(self._path),
                    fix="open it with repair=True: nothing was released on that line, it is kept beside",
                ) from None
            aside = f"{self._path.name}.torn-{content.count(LINE_FEED) + 1}"
            self._path.with_name(aside).write_bytes(rest)
            os.ftruncate(self._file, len(content) - len(rest))
        else:
            _write_all(self._file, LINE_FEED)
        os.fsync(self._file)


def read_ledger(path: Path | str) -> tuple[list[PrivacyEvent], Head]:
    """The events and head of a ledger file, verified, without taking its lock.

    Raises:
        PrivacyError: If the file is missing or damaged.
    """
    events, heads = _read(Path(path))
    return events, heads[-1]


def _line(previous: Head, event: PrivacyEvent, head: Head) -> bytes:
    record = {
        "counter": head.counter,
        "previous": previous.hash,
        "event": event.to_dict(),
        "hash": head.hash,
    }
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + LINE_FEED


def _read(path: Path) -> tuple[list[PrivacyEvent], list[Head]]:
    events: list[PrivacyEvent] = []
    heads = [Head()]
    try:
        lines = path.read_bytes().rstrip(LINE_FEED).split(LINE_FEED)
    except OSError as error:
        raise PrivacyError(
            f"the privacy ledger cannot be read: {error.strerror}", where=str(path), fix="check the path"
        ) from error
    for number, line in enumerate(lines if lines != [b""] else [], start=1):
        try:
            record = json.loads(line)
            event = PrivacyEvent.from_dict(record["event"])
            head = chain(heads[-1], event)
            sound = (record["counter"], record["previous"], record["hash"]) == (
                head.counter,
                heads[-1].hash,
                head.hash,
            )
        except (ValueError, KeyError, TypeError, PrivacyError):
            sound = False
        if not sound:
            raise PrivacyError(
                "the privacy ledger was changed: the chain of hashes breaks here",
                where=f"{path}, line {number}",
                fix="restore the file; a budget whose record is damaged cannot be spent",
            )
        events.append(event)
        heads.append(head)
    return events, heads


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
