"""Finding and reading files: every failure is one line that says what, where and how to mend it.

Rules of this file:
    * The folder is `data_dir`, or else the environment variable FEDRETRAIN_DATA. A set lives in its own folder there,
      or its files lie in it directly.
    * Nothing is downloaded, and no file is unpickled.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ENVIRONMENT = "FEDRETRAIN_DATA"


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and under which names its files may be found.

    Attributes:
        name: The data set's name.
        folders: Folders below `data_dir` where it may lie.
        patterns: File names (globs) of the compact form and of the publisher's own; the first that exists is read.
        obtain: How a person gets the original, in words.
    """

    name: str
    folders: tuple[str, ...]
    patterns: tuple[str, ...]
    obtain: str

    def find(self, data_dir: Path | str | None) -> list[Path]:
        """The files of the first pattern that is there, sorted.

        Raises:
            DataError: If there is no folder, or nothing in it.
        """
        root = self._root(data_dir)
        places = [root, *(root / folder for folder in self.folders)]
        for pattern in self.patterns:
            for place in places:
                if found := sorted(place.glob(pattern)):
                    return found
        raise DataError(
            f"the data set {self.name} is not here: none of {', '.join(self.patterns)}",
            where=str(root),
            fix=f"{self.obtain}; put it in a folder and name that with data_dir or {ENVIRONMENT}",
        )

    def _root(self, data_dir: Path | str | None) -> Path:
        given = data_dir or os.environ.get(ENVIRONMENT)
        if not given:
            raise DataError(
                f"nobody said where the data set {self.name} is",
                where=f"data_dir, or the environment variable {ENVIRONMENT}",
                fix=self.obtain,
            )
        root = Path(given).expanduser()
        if not root.is_dir():
            raise DataError(
                "the data folder does not exist", where=str(root), fix=f"mend data_dir or {ENVIRONMENT}"
            )
        return root


def read_npz(path: Path, required: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """All arrays of an npz file.

    Raises:
        DataError: If the file is missing, damaged, holds Python objects, or lacks an array.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError("this is not an npz file", where=str(path), fix="write it with numpy.savez")
            missing = [name for name in required if name not in file.files]
            if missing:
                raise DataError(
                    f"the array {missing[0]!r} is not in the file",
                    where=str(path),
                    fix=f"it has {', '.join(file.files[:12])}",
                )
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError("the file does not exist", where=str(path), fix="mend the path") from None
    except (BadZipFile, ValueError, EOFError, OSError, KeyError, zlib.error) as error:
        reason = (
            "it is no npz file, or holds Python objects"
            if "pickle" in str(error).lower()
            else "it is damaged"
        )
        raise DataError(
            f"the file cannot be read: {reason}", where=str(path), fix="get the file again"
        ) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: If it cannot be read as text.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the file cannot be read as text", where=str(path), fix="get the file again"
        ) from error
    if not any(lines):
        raise DataError("the file is empty", where=str(path), fix="get the file again")
    return lines


def expect_shape(array: NDArray[Any], shape: tuple[int | None, ...], name: str, path: Path) -> None:
    """Refuse an array whose shape is not the expected one (``None``: any size).

    Raises:
        DataError: Naming the array, both shapes and the file.
    """
    same = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not same:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(
            f"the array {name!r} has the shape {array.shape}, expected [{wanted}]",
            where=str(path),
            fix="get the file again, or name the right data set",
        )
