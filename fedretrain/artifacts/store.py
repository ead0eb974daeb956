"""A folder of files that are named by their own SHA-256.

Rules of this file:
    * A file appears under its digest whole or not at all: temporary file in the same folder, fsync, rename,
      fsync of the folder. `put` returns after the last of these.
    * What is read is hashed again: a disk that lost a bit is an error, never a model.
    * Only names of 64 lower-case hexadecimal digits are content. Everything else in the folder (a temporary
      file that a crash left) is ignored, and no digest can name a path outside the folder.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core.durable import remove_leftovers, sync_folder, write_whole
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_digest(digest: str) -> str:
    """The digest, if it is one: 64 lower-case hexadecimal digits.

    Raises:
        DataError: If it is anything else, such as a path.
    """
    if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
        raise DataError(
            f"{digest!r} is not a SHA-256 digest",
            where="digest",
            fix="give 64 lower-case hexadecimal digits",
        )
    return digest


class ContentStore:
    """Blobs in one folder, each under its SHA-256. Several processes may put at the same time.

    Args:
        root: The folder; made if it is not there.

    Raises:
        DataError: If the folder cannot be made.
    """

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            sync_folder(self._root.parent)
        except OSError as error:
            raise DataError(
                f"the folder of stored files cannot be made: {error.strerror}",
                where=str(self._root),
                fix="check the path and its permissions",
            ) from error

    def put(self, content: bytes) -> str:
        """Store the bytes durably and return their digest; a damaged copy under that digest is replaced.

        Raises:
            DataError: If they cannot be written (a full disk, say). Nothing is stored then.
        """
        digest = hashlib.sha256(content).hexdigest()
        try:
            if not self._is_sound(digest):
                write_whole(self._root / digest, self._to_disk(digest, content))
            else:  # an earlier put may have been cut before the folder's fsync
                sync_folder(self._root)
        except OSError as error:
            raise DataError(
                f"the content {digest} cannot be stored: {error.strerror or error}",
                where=str(self._root / digest),
                fix="free the disk or check its permissions, then store it again",
            ) from error
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes whose SHA-256 this is.

        Raises:
            DataError: If the digest is malformed, or its content is missing, unreadable or damaged.
        """
        path = self._root / check_digest(digest)
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"there is no content {digest}", where=str(path), fix="fetch it and store it again"
            ) from None
        except OSError as error:
            raise DataError(
                f"the content {digest} cannot be read: {error.strerror}",
                where=str(path),
                fix="check its permissions and the disk",
            ) from error
        content = self._from_disk(digest, stored)
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise DataError(
                f"the content {digest} is damaged: its bytes hash to {found}",
                where=str(path),
                fix="fetch it and store it again: that replaces the damaged file",
            )
        return content

    def has(self, digest: str) -> bool:
        """Whether a file stands under the digest (`get` and `verify` tell whether it is sound).

        Raises:
            DataError: If the digest is malformed.
        """
        return (self._root / check_digest(digest)).is_file()

    def digests(self) -> tuple[str, ...]:
        """Every digest with a file, sorted."""
        return tuple(sorted(path.name for path in self._root.iterdir() if _DIGEST.fullmatch(path.name)))

    def verify(self) -> tuple[str, ...]:
        """Hash every file; the digests whose content is damaged or unreadable, sorted."""
        return tuple(digest for digest in self.digests() if not self._is_sound(digest))

    def remove(self, digest: str) -> None:
        """Remove the content under a digest; nothing happens if there is none.

        Raises:
            DataError: If the digest is malformed, or the file cannot be removed.
        """
        path = self._root / check_digest(digest)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"stored content cannot be removed: {error.strerror or error}",
                where=str(path),
                fix="check the folder's permissions",
            ) from error

    def sweep(self, wanted: Collection[str]) -> None:
        """Remove all content but the wanted digests, and what cut writes left; nobody else may be writing.

        Raises:
            DataError: If a file cannot be removed.
        """
        try:
            for digest in set(self.digests()) - set(wanted):
                (self._root / digest).unlink(missing_ok=True)
            remove_leftovers(self._root)
        except OSError as error:
            raise DataError(
                f"stored content cannot be removed: {error.strerror or error}",
                where=str(self._root),
                fix="check the folder's permissions",
            ) from error

    def _to_disk(self, digest: str, content: bytes) -> bytes:  # noqa: ARG002 - for a store that keeps another form
        """What the file under the digest holds."""
        return content

    def _from_disk(self, digest: str, stored: bytes) -> bytes:  # noqa: ARG002
        """The content in such a file; a DataError if it is damaged."""
        return stored

    def _is_sound(self, digest: str) -> bool:
        try:
            with (self._root / digest).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError:
            return False
