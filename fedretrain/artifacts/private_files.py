"""Files that hold a secret.

Rules of this file:
    * A secret's file has mode 0600. One that others may read is refused, not repaired: it may have been read.
    * A secret that is there is never replaced, whichever of several processes was first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.durable import write_new
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read_private(path: Path) -> bytes:
    """The secret in a file.

    Raises:
        DataError: If the file is missing, or readable by others.
    """
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the key cannot be read: {error.strerror}", where=str(path), fix="create or restore it"
        ) from error
    if mode & 0o077:
        raise DataError(
            f"the private key has mode {mode & 0o777:o}: others may have read it",
            where=str(path),
            fix="rotate it, or chmod 600 if nobody else had access",
        )
    return content


def make_private(path: Path, make: Callable[[], bytes]) -> bool:
    """Write a new secret unless the file is there.

    Returns:
        Whether this call made it.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return not path.exists() and write_new(path, make())
    except OSError as error:
        raise DataError(
            f"the key cannot be written: {error.strerror}",
            where=str(path),
            fix="check the disk and its permissions",
        ) from error
