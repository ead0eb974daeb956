"""A campaign's progress on disk, so that Ctrl-C, a crash or a full disk cost a few rounds at most.

Rules of this file:
    * One safetensors file for each arm and seed, written beside its place and renamed: a reader sees a whole one.
      Records, ledger and configuration travel as JSON in its header; nothing in it is code.
    * A checkpoint belongs to one configuration and one code version's arrays: anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.coordinator.state import ServerState
from fedretrain.core.build import plain
from fedretrain.core.errors import ConfigError, DataError, PrivacyError, UnsupportedModelError, UserError
from fedretrain.privacy.event import PrivacyEvent
from sim.campaign import Progress
from sim.personal_store import PersonalStore
from sim.plain import from_plain, to_plain
from sim.results import DeviceScore, RoundRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sim.arm import Arm
    from sim.outputs import RunFolder
    from sim.schema import Config

FOLDER = "checkpoint"
_VERSION = "2"


def config_digest(config: Config) -> str:
    """SHA-256 of what a configuration computes: everything but where it runs and writes."""
    values = plain(config)
    for place in ("output_dir", "tracking_uri", "resume", "data_dir", "runner", "arms", "seeds"):
        values.pop(place)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save(
    folder: RunFolder, name: str, arm: Arm, progress: Progress, scores: Sequence[DeviceScore] = ()
) -> None:
    """Write one arm's progress; with `scores` it is finished.

    Raises:
        UserError: If the disk refuses it.
    """
    import safetensors.numpy

    arrays: dict[str, NDArray[Any]] = {
        **{f"state.{key}": value for key, value in progress.state.to_arrays().items()},
        **{f"store.{key}": value for key, value in progress.store.to_arrays().items()},
        "contributed": progress.contributed,
        "sent": progress.sent,
    }
    header = {
        "version": _VERSION,
        "config": config_digest(arm.config),
        "data": arm.world.fleet.digest,
        "seed": str(arm.seed),
        "next_round": str(progress.next_round),
        "over": json.dumps(progress.over),
        "events": json.dumps([event.to_dict() for event in progress.events]),
        "records": json.dumps([to_plain(record) for record in progress.records]),
        "scores": json.dumps([to_plain(score) for score in scores]),
    }
    data = safetensors.numpy.save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, header)
    folder.write(f"{FOLDER}/{name}-{arm.seed}.safetensors", data)


def restore(path: Path, name: str, arm: Arm) -> tuple[Progress, list[DeviceScore]] | None:
    """The progress of one arm, and its scores if it was finished; None if it had not begun.

    Args:
        path: The interrupted run's folder.
        name: Key of the arm.
        arm: Its configuration and layout must be those that made the checkpoint.

    Raises:
        DataError: If the checkpoint is damaged or was made by another configuration.
    """
    from safetensors import SafetensorError, safe_open

    file = path / FOLDER / f"{name}-{arm.seed}.safetensors"
    if not file.exists():
        return None
    try:
        with safe_open(str(file), "numpy") as opened:
            header = opened.metadata()
            arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dictionary
        if header["version"] != _VERSION or header["config"] != config_digest(arm.config):
            raise DataError(
                "the checkpoint was made by another configuration or version",
                where=str(file),
                fix="resume with the code that wrote it, without other overrides",
            )
        if header["data"] != arm.world.fleet.digest:
            raise DataError(
                "the data are not those that the checkpoint was made with",
                where=str(file),
                fix="restore them, or start the run again",
            )
        return _progress(arm, header, arrays), [
            from_plain(DeviceScore, one) for one in json.loads(header["scores"])
        ]
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"the checkpoint is damaged: {error}", where=str(file), fix="start the run again"
        ) from error


def _progress(arm: Arm, header: dict[str, str], arrays: dict[str, NDArray[Any]]) -> Progress:
    def below(prefix: str) -> dict[str, NDArray[Any]]:
        return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

    return Progress(
        state=ServerState.from_arrays(arm.task.shared, below("state.")),
        store=PersonalStore.from_arrays(below("store.")),
        contributed=arrays["contributed"],
        sent=arrays["sent"],
        next_round=int(header["next_round"]),
        events=[PrivacyEvent.from_dict(event) for event in json.loads(header["events"])],
        records=[from_plain(RoundRecord, record) for record in json.loads(header["records"])],
        over=json.loads(header["over"]),
    )


def begun(path: Path) -> bool:
    """Whether a run's folder holds the progress of any arm."""
    return any((path / FOLDER).glob("*.safetensors"))


@contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """Whatever stops a run that has a checkpoint says how to continue it; one without leaves no folder."""
    how = f"continue with: python -m sim resume={folder.path}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("" if folder.finished else how) from None
    except UserError as error:
        asked_wrong = isinstance(
            error, (ConfigError, PrivacyError, UnsupportedModelError)
        )  # and always will be
        if not (folder.finished or begun(folder.path)):
            folder.discard()
            raise
        if asked_wrong or folder.finished:
            raise
        fix = f"{error.fix}; then {how}" if error.fix else how
        raise type(error)(error.what, where=error.where, fix=fix) from error


def remove(folder: RunFolder) -> None:
    """Forget the checkpoints of a finished run."""
    import shutil

    shutil.rmtree(folder.path / FOLDER, ignore_errors=True)
