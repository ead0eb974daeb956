"""Run again from a finished run's resolved configuration, and compare what came out, digest by digest.

Rules of this file:
    * Bit for bit is promised for the same code, data, runner and number of workers. Where one of these differs, it is
      named beside the result.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sim.describe import code_version
from sim.experiment import execute, track
from sim.outputs import RunFolder, load_run
from sim.plan import Plan

if TYPE_CHECKING:
    from sim.results import Run


def reproduce(path: str) -> int:
    """Repeat a run and print one line for each thing compared.

    Returns:
        0 if every digest is the same, 1 if not.

    Raises:
        UserError: If the run is unfinished or damaged.
    """
    old = load_run(Path(path))
    plan = Plan.from_yaml(old.config, Path(path) / "config.yaml")
    folder = RunFolder.create(Path(plan.config.output_dir), plan.config.name, datetime.now(UTC))
    if code_version() != old.summary.environment.code_version:
        print(f"note: the run was made by {old.summary.environment.code_version}, this is {code_version()}")
    new = execute(plan, folder)
    same = True
    for what, was, now in _compared(old, new):
        equal = was == now
        same &= equal
        print(
            f"{'same     ' if equal else 'DIFFERENT'}  {what:<24} {was[:16]}{'' if equal else ' -> ' + now[:16]}"
        )
    track(plan, new, folder)
    print(f"{'reproduced' if same else 'not reproduced'}: {folder.path}")
    return 0 if same else 1


def _compared(old: Run, new: Run) -> list[tuple[str, str, str]]:
    """What is compared: name, then its digest before and after."""
    rows = [
        ("data", old.summary.data_digest, new.summary.data_digest),
        ("configuration", old.summary.config_digest, new.summary.config_digest),
    ]
    for was, now in zip(old.summary.arms, new.summary.arms, strict=True):
        rows += [
            (f"weights {was.arm}, seed {seed}", digest, now.weights_digests.get(seed, "none"))
            for seed, digest in was.weights_digests.items()
        ]
        rows.append((f"epsilon {was.arm}", _epsilon(was.privacy), _epsilon(now.privacy)))
    rows.append(("device scores", _digest(old), _digest(new)))
    return rows


def _digest(run: Run) -> str:
    return hashlib.sha256(repr(run.devices).encode()).hexdigest()


def _epsilon(privacy: object) -> str:
    return f"{getattr(privacy, 'epsilon', 0.0):.12g}"
