"""Files that are whole or absent, whatever is cut: written beside, fsync, rename, fsync of the folder.

Rules of this file:
    * A reader never sees half a file, and what `write_whole` returned from survives a power cut.
    * What a cut leaves behind is a hidden file with a name of its own: several processes may write the same file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_BESIDE = ".new-"


def write_whole(path: Path, content: bytes) -> None:
    """Replace or make a file durably. On failure it is as it was, and the file beside is removed where that is possible.

    Raises:
        OSError: If it cannot be written.
    """
    with _beside(path, content) as beside:
        os.replace(beside, path)  # noqa: PTH105 - one name for the system call, here and in tests that cut it
    sync_folder(path.parent)


def write_new(path: Path, content: bytes) -> bool:
    """Make a file durably unless there is one: of several processes that try, one does.

    Returns:
        Whether this call made it.

    Raises:
        OSError: If it cannot be written.
    """
    with _beside(path, content) as beside:
        try:
            os.link(beside, path)  # fails where a rename would replace
        except FileExistsError:
            made = False
        else:
            made = True
        os.unlink(beside)  # noqa: PTH108
    sync_folder(path.parent)
    return made


@contextlib.contextmanager
def _beside(path: Path, content: bytes) -> Iterator[Path]:
    """A whole and durable file in the same folder; removed, where that is possible, if what is done with it fails."""
    beside = path.with_name(f"{_BESIDE}{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield beside
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)  # noqa: PTH108
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what cut writes left in a folder that nobody else writes to; what cannot be removed stays.

    Raises:
        OSError: If the folder cannot be listed.
    """
    for path in folder.iterdir():
        if path.name.startswith(_BESIDE):
            with contextlib.suppress(OSError):
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a new or renamed file may be gone after a power cut without it.

    Raises:
        OSError: If the folder cannot be opened or synced.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
