"""Whether stored files are encrypted, and where the key comes from.

Rules of this file:
    * Encrypted, unless a configuration says `development`. The key is in a file (mode 0600), in an environment variable, or what a
      command prints; without a word of it, in a file beside the stores, which guards copies of the stores and not the whole disk.
    * A folder knows its key: it holds a known text encrypted under it. So a wrong or a lost key is one line before anything is read
      or written, and so is a folder that was begun without encryption, or with it.
    * No message holds a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from fedretrain.artifacts.encryption import KEY_BYTES, EncryptedStore, create_key, decrypt, encrypt, load_key
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.checks import as_tuples, require
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import ConfigError, DataError

MARK = "encrypted"
_KNOWN = b"fedretrain: this folder is encrypted under this key\n"
_KNOWN_DIGEST = hashlib.sha256(_KNOWN).hexdigest()
_COMMAND_S = 30.0


@dataclass(frozen=True)
class AtRest:
    """Encryption of stored files.

    Attributes:
        key_file: File with the key; made at the first start. Empty, and no other source named: ``store.key`` beside the stores.
        key_env: Environment variable with the key, 32 bytes in base64.
        key_command: A command, as a list of words, that prints the key in base64.
        development: Files lie as they are. For development only.
    """

    key_file: str = ""
    key_env: str = ""
    key_command: tuple[str, ...] = ()
    development: bool = False

    def __post_init__(self) -> None:
        as_tuples(self, ["key_command"])
        named = [name for name in ("key_file", "key_env", "key_command") if getattr(self, name)]
        require(
            len(named) <= 1, f"{' and '.join(named)} both name a key", key="at_rest", fix="name one source"
        )
        require(
            not (self.development and named),
            "a key, and no encryption",
            key="at_rest.development",
            fix="take one of them away",
        )

    @property
    def says(self) -> str:
        """What it comes to, for people."""
        if self.development:
            return "files lie as they are (development)"
        named = (
            (self.key_env, f"key from the environment's {self.key_env}"),
            (self.key_command, f"key from {' '.join(self.key_command)}"),
            (self.key_file, f"key in {self.key_file}"),
        )
        return next(
            (f"encrypted, {text}" for is_set, text in named if is_set), "encrypted, key beside the stores"
        )

    def under(self, base: Path) -> AtRest:
        """With the path of a key's file as a configuration in this folder means it."""
        return replace(self, key_file=str(base / self.key_file)) if self.key_file else self


@dataclass(frozen=True)
class StorePlace:
    """Where a store is, and how its files lie there.

    Attributes:
        folder: Of the store; made if it is not there.
        at_rest: Whether it is encrypted, and the key.
        beside: The key's file where `at_rest` names no source.
    """

    folder: str
    at_rest: AtRest
    beside: str = ""

    def open(self) -> ContentStore:
        """The store.

        Raises:
            ConfigError: If the key cannot be had.
            DataError: If the folder was begun otherwise, or under another key.
        """
        folder = Path(self.folder)
        mark = folder / MARK
        if self.at_rest.development:
            return _open_plain(folder, mark)
        key = _key(self.at_rest, Path(self.beside), is_new=not mark.exists())
        store = EncryptedStore(folder, key)
        if mark.exists():
            _check(mark, key)
        elif store.digests():
            raise DataError(
                "the stored files are not encrypted: the folder was begun in development",
                where=self.folder,
                fix="begin with a new folder, or set at_rest.development to true",
            )
        else:
            _write(mark, encrypt(_KNOWN, key, _KNOWN_DIGEST))
        return store


def _open_plain(folder: Path, mark: Path) -> ContentStore:
    if mark.exists():
        raise DataError(
            "the stored files are encrypted, and the configuration says development",
            where=str(folder),
            fix="set at_rest.development to false, or name another folder",
        )
    return ContentStore(folder)


def _check(mark: Path, key: bytes) -> None:
    try:
        decrypt(mark.read_bytes(), key, _KNOWN_DIGEST)
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=str(mark), fix="restore it") from error
    except DataError as error:
        raise DataError(
            "the key is not the one under which the stored files were encrypted",
            where=str(mark.parent),
            fix="restore the key; without it the files cannot be read by anybody",
        ) from error


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise DataError(
            f"it cannot be written: {error.strerror}", where=str(path), fix="check the disk"
        ) from error


def _key(at_rest: AtRest, beside: Path, *, is_new: bool) -> bytes:
    if at_rest.key_env:
        found = os.environ.get(at_rest.key_env, "")
        return _decoded(found.encode(), f"the environment's {at_rest.key_env}", "at_rest.key_env")
    if at_rest.key_command:
        return _decoded(
            _printed(at_rest.key_command), f"what {at_rest.key_command[0]} prints", "at_rest.key_command"
        )
    path = Path(at_rest.key_file) if at_rest.key_file else beside
    if not path.exists():
        if not is_new:
            raise ConfigError(
                "the key of the stored files is lost",
                where=str(path),
                fix="restore it from its back-up; without it the files cannot be read by anybody",
            )
        create_key(path)
    return load_key(path)


def _printed(words: tuple[str, ...]) -> bytes:
    """What a command prints."""
    try:
        done = subprocess.run(words, capture_output=True, check=False, timeout=_COMMAND_S)  # noqa: S603 - the operator's own
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"the command for the key cannot be run: {error}",
            where="at_rest.key_command",
            fix="try it by hand",
        ) from error
    if done.returncode:
        raise ConfigError(
            f"the command for the key ended with {done.returncode}",
            where="at_rest.key_command",
            fix="try it by hand",
        )
    return done.stdout


def _decoded(text: bytes, what: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{what} is no key",
            where=where,
            fix=f"give {KEY_BYTES} random bytes in base64: openssl rand -base64 32",
        )
    return key
