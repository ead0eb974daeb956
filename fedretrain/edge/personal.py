"""Personal parameters on disk, with the version that they belong to.

Rules of this file:
    * Written whole or not at all: after a cut there is the old state or the new one, never half of each.
    * They belong to one base, the package whose shared parameters they were fitted beside. Beside another they are only a start for a
      re-fit, and `state_of` says so.
    * A file that is damaged, or another stream's, is refused by name; the device then serves the global model.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import safetensors.numpy
from safetensors import SafetensorError, safe_open

from fedretrain.core.durable import sync_folder, write_whole
from fedretrain.core.errors import DataError
from fedretrain.core.params import digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from fedretrain.edge.examples import Stream

    Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Personal:
    """Personal parameters of one stream.

    Attributes:
        params: float32 arrays by name.
        base: Digest of the package that they were fitted beside.
        fitted_at: When, seconds since the epoch.
    """

    params: Arrays
    base: str
    fitted_at: float


class Standing(StrEnum):
    """How personal parameters stand to the version that is served."""

    CURRENT = "current"  # fitted beside it
    BEHIND = "behind"  # fitted beside a recent one: re-fit, and keep the result if it pays
    TOO_OLD = "too_old"  # too many bases behind, or of none that is known: begin from the global model


def state_of(base: str, bases: Sequence[str], most_behind: int) -> Standing:
    """How personal parameters stand.

    Args:
        base: What they were fitted beside.
        bases: Digests that were served here, oldest first; the last one is served now.
        most_behind: How many versions they may lie behind.
    """
    if base not in bases:
        return Standing.TOO_OLD
    behind = list(reversed(bases)).index(base)
    if behind == 0:
        return Standing.CURRENT
    return Standing.BEHIND if behind <= most_behind else Standing.TOO_OLD


def file_of(folder: Path, stream: Stream) -> Path:
    """Where a stream's parameters are: names of devices and models are not names of files."""
    name = hashlib.sha256(f"{len(stream.device)}:{stream.device}{stream.model}".encode()).hexdigest()
    return folder / f"personal-{name[:32]}.safetensors"


def save(folder: Path, stream: Stream, state: Personal) -> None:
    """Replace a stream's parameters durably.

    Raises:
        OSError: If they cannot be written; the old ones are then still there.
    """
    about = {
        "device": stream.device,
        "model": stream.model,
        "base": state.base,
        "fitted_at": repr(state.fitted_at),
    }
    about["seal"] = _seal(about, state.params)
    write_whole(file_of(folder, stream), safetensors.numpy.save(state.params, about))


def load(folder: Path, stream: Stream) -> Personal | None:
    """A stream's parameters as they were saved, or None if there are none.

    Raises:
        DataError: If the file is damaged or another stream's.
    """
    path = file_of(folder, stream)
    if not path.exists():
        return None
    try:
        params = safetensors.numpy.load(path.read_bytes())
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
        state = Personal(params, about["base"], float(about["fitted_at"]))
        whole = about.pop("seal") == _seal(about, params)
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path) from error
    if not whole:
        raise _damaged(path)
    if (about.get("device"), about.get("model")) != (stream.device, stream.model):
        raise DataError(f"these are the personal parameters of {about.get('device')}", where=str(path))
    return state


def erase(folder: Path, stream: Stream) -> None:
    """Overwrite a stream's parameters and remove them; nothing happens if there are none.

    What the storage underneath keeps of overwritten blocks (flash does) is beyond this: encrypt the volume.

    Raises:
        OSError: If that fails.
    """
    path = file_of(folder, stream)
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync_folder(folder)


def _seal(about: dict[str, str], params: Arrays) -> str:
    """A digest of everything in the file."""
    return hashlib.sha256(json.dumps([sorted(about.items()), digest(params)]).encode()).hexdigest()


def _damaged(path: Path) -> DataError:
    return DataError(
        "the personal parameters are damaged", where=str(path), fix="remove the file: the device re-fits them"
    )
