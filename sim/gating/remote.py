"""The simulation gate on a Ray cluster: its files are carried there, one task judges, the report comes back.

Rules of this file:
    * A coordinator's campaign alone goes there: its order names all of its files, and they are small. A run's folder stays where it is.
    * The task ends with this process: Ray ends what a driver leaves. So whoever ends this process at a limit ends the task.
"""

from __future__ import annotations

import contextlib
import io
import resource
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.server.replay_order import read_order
from sim.outputs import disk_errors
from sim.ray_runner import start_ray
from sim.schema import RunnerConfig

if TYPE_CHECKING:
    from sim.gating.config import GateConfig

_LOG, _OUT = "fleet.jsonl", "report.json"


def judge_there(config: GateConfig) -> int:
    """Judge on the cluster of `GateConfig.address`, print what was said there, write the report here.

    Returns:
        The exit status, see `sim.gating.command.STATUS`.

    Raises:
        ConfigError: If the candidate is no coordinator's campaign, or the cluster cannot be reached.
        DataError: If a file is missing, or wrong there.
    """
    import ray

    files = carried(config)
    start_ray(RunnerConfig(address=config.address))
    words = {
        **asdict(config),
        "candidate": Path(config.candidate).name,
        "log": _LOG,
        "out": _OUT,
        "address": "",
    }
    task = ray.remote(max_retries=0, max_calls=1)(judge_here)
    try:
        status, said, report = ray.get(task.remote(files, words))
    finally:
        ray.shutdown()
    print(said, end="")
    if report is None:
        raise DataError(said.strip().splitlines()[-1] if said else "no word came back", where=config.address)
    with disk_errors(Path(config.out)):
        Path(config.out).write_bytes(report)
    return status


def carried(config: GateConfig) -> dict[str, bytes]:
    """The files of a campaign and of its fleet's log, by name.

    Raises:
        ConfigError: If the candidate is no coordinator's campaign, or has no log.
        DataError: If a file is missing.
    """
    candidate = Path(config.candidate)
    if candidate.suffix != ".json" or not config.log:
        raise ConfigError(
            "a run's folder stays on its machine",
            where="address=",
            fix="give candidate=CAMPAIGN.json and log=LOG, as a coordinator writes them",
        )
    order = read_order(candidate)
    names = (order.champion, order.base, order.features, order.pool)
    paths = {candidate.name: candidate, _LOG: Path(config.log), **{n: candidate.parent / n for n in names}}
    try:
        return {name: path.read_bytes() for name, path in paths.items()}
    except OSError as error:
        raise DataError(
            f"it cannot be read: {error.strerror}", where=str(error.filename), fix="keep its files together"
        ) from error


def judge_here(files: dict[str, bytes], words: dict[str, object]) -> tuple[int, str, bytes | None]:
    """The task: judge in a folder of its own; exit status, what was said, and the report (None where there is none)."""
    from fedretrain.core.build import build
    from fedretrain.core.errors import UserError
    from sim.gating.command import judge
    from sim.gating.config import GateConfig

    config, said = build(GateConfig, words), io.StringIO()
    if config.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (config.memory_bytes, config.memory_bytes))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        there = replace(
            config,
            candidate=str(folder / config.candidate),
            log=str(folder / _LOG),
            out=str(folder / _OUT),
        )
        with contextlib.redirect_stdout(said):
            try:
                status = judge(there)
            except UserError as error:
                print(f"error: {error}")
                return 2, said.getvalue(), None
        return status, said.getvalue(), (folder / _OUT).read_bytes()
