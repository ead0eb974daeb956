"""Jobs of a run on disk: finished ones whole, one under way as it was when it was last put aside.

Rules of this file:
    * A job is known by its place in the plan; the shelf belongs to one configuration, data, code and set of policies, and
      refuses any other.
    * A job under way is put aside at intervals, and no more than a twentieth of the time is spent on that.
    * Files are whole or absent (`RunFolder.write`).
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import DataError
from sim.arm import Arms
from sim.checkpoint import FOLDER, config_digest
from sim.describe import code_version
from sim.plan import PLAN
from sim.snapshot import dump, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sim.lifetime.policies import NamedPolicy
    from sim.outputs import RunFolder
    from sim.plan import Plan

_ABOUT = f"{FOLDER}/about.json"
_PATIENCE = 20.0  # so many times as long as it took is lived before the next time


class Shelf:
    """The checkpoints of a run's jobs.

    Args:
        folder: The run's.
        about: What it belongs to: name -> digest.
        every_s: Seconds between two times that a job is put aside.

    Raises:
        UserError: If the folder holds what belongs to something else, or the disk refuses it.
    """

    def __init__(self, folder: RunFolder, about: Mapping[str, str], every_s: float) -> None:
        self._folder, self._every_s = folder, every_s
        self._next_at: dict[int, float] = {}
        found = self._read(_ABOUT)
        if found is None:
            folder.write(_ABOUT, json.dumps(dict(about)).encode())
            return
        then = _facts(found, str(folder.path / _ABOUT))
        changed = [name for name in {**then, **about} if then.get(name) != about.get(name)]
        if changed:
            raise DataError(
                f"the run was begun with another {changed[0]}",
                where=str(folder.path),
                fix="resume it with what began it, or start the run again",
            )

    def finished(self, place: int) -> Any:
        """What a job came to; None if it is not over."""
        name = _whole(place)
        data = self._read(name)
        return None if data is None else load(data, str(self._folder.path / name))

    def under_way(self, place: int) -> bytes | None:
        """A job as it was put aside; None if it never was."""
        return self._read(_part(place))

    def where(self, place: int) -> str:
        """Where a job is put aside, for messages."""
        return str(self._folder.path / _part(place))

    def begun(self, place: int) -> None:
        """A job is lived in this process from now on."""
        self._next_at[place] = time.monotonic() + self._every_s

    def put_aside_if_due(self, place: int, save: Callable[[], bytes | None]) -> None:
        """Put a job aside, if it is time."""
        if time.monotonic() >= self._next_at[place]:
            self.put_aside(place, save)

    def put_aside(self, place: int, save: Callable[[], bytes | None]) -> None:
        """Put a job aside, if it can be."""
        begun = time.monotonic()
        data = save()
        if data is not None:
            self._folder.write(_part(place), data)
        now = time.monotonic()
        self._next_at[place] = now + max(self._every_s, _PATIENCE * (now - begun))

    def finish(self, place: int, found: Any) -> None:
        """A job is over."""
        self._folder.write(_whole(place), dump(found))
        (self._folder.path / _part(place)).unlink(missing_ok=True)

    def _read(self, name: str) -> bytes | None:
        path = self._folder.path / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(
                f"the checkpoint cannot be read: {error.strerror}", where=str(path), fix="make it readable"
            ) from error


def shelf_of(plan: Plan, policies: Sequence[NamedPolicy], folder: RunFolder) -> Shelf:
    """The shelf of a plan, in its folder, with the plan itself.

    Raises:
        UserError: If the folder holds what belongs to something else, or the disk refuses it.
    """
    config = plan.config
    folder.write(PLAN, plan.to_yaml().encode())
    about = {
        "configuration": config_digest(config),
        "data": Arms().get(config, config.seed).world.fleet.digest,
        "version of fedretrain": code_version(),
        **{f"policy {one.name}": one.policy.digest for one in policies},
    }
    return Shelf(folder, about, config.runner.checkpoint_s)


def _whole(place: int) -> str:
    return f"{FOLDER}/{place:03d}-whole.safetensors"


def _part(place: int) -> str:
    return f"{FOLDER}/{place:03d}.safetensors"


def _facts(data: bytes, where: str) -> dict[str, str]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError(
            f"the checkpoint is damaged: {error}", where=where, fix="start the run again"
        ) from error
    return found if isinstance(found, dict) else {}
