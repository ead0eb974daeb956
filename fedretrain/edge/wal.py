"""What SQLite's write-ahead log does not say: that it lost commits.

SQLite replays a log up to the first frame whose checksum is wrong, and takes the rest for a transaction that a power cut
left unfinished. On a card with a flipped bit the rest may be a thousand durable transactions, and nobody is told.

Rules of this file:
    * A power cut leaves one unfinished transaction at most. Two or more ends of transactions behind the last frame that
      was replayed are damage, and so is a header that is none.
    * Damage in the very last transaction cannot be told from a power cut: at most one flush is lost without a word.
    * Formats: https://sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import sqlite3
import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
_WORD = 0xFFFFFFFF


def find_damage(connection: sqlite3.Connection, log: Path) -> str:
    """Why the log is damaged; empty if it is not. Call it before the first write.

    Args:
        connection: Of the database, which has replayed its log.
        log: The log's file.
    """
    try:
        with log.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return ""  # no log, or one that was cut
            if not _is_header(header):
                return "the header of the log is none"
            num_replayed = _num_replayed(connection)
            if num_replayed is None:
                return ""
            _, _, page_bytes, _, *salt, _, _ = _HEADER.unpack(header)
            position, num_ends = _HEADER.size + num_replayed * (page_bytes + _FRAME.size), 0
            while len(frame := _frame_at(file, position)) == _FRAME.size:
                _, pages_after_commit, *salt_of, _, _ = _FRAME.unpack(frame)
                num_ends += salt_of == salt and pages_after_commit > 0
                position += page_bytes + _FRAME.size
    except FileNotFoundError:
        return ""
    return f"{num_ends} transactions of the log cannot be read" if num_ends > 1 else ""


def _num_replayed(connection: sqlite3.Connection) -> int | None:
    """Frames that SQLite took from the log; None where a full disk keeps it from telling, and from changing the log."""
    try:
        _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.OperationalError:
        return None
    return max(0, int(frames))


def _frame_at(file: BinaryIO, position: int) -> bytes:
    file.seek(position)
    return file.read(_FRAME.size)


def _is_header(header: bytes) -> bool:
    """Whether its checksum is right; the lowest bit of the magic number says in which byte order it was computed."""
    magic, *_, sum_0, sum_1 = _HEADER.unpack(header)
    if magic & ~1 != _MAGIC:
        return False
    words = struct.unpack((">" if magic & 1 else "<") + "6I", header[:24])
    found_0 = found_1 = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        found_0 = (found_0 + even + found_1) & _WORD
        found_1 = (found_1 + odd + found_0) & _WORD
    return (found_0, found_1) == (sum_0, sum_1)
