"""Small whole runs for the simulator's tests: the quickest world, a few rounds, no tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.arm import Arms
from sim.configure import configure
from sim.outputs import load_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sim.arm import Arm
    from sim.results import Run
    from sim.schema import Config

QUICK = (
    "experiment=scale",
    "runner=local",
    "tracking_uri=off",
    "fleet.num_devices=24",
    "fleet.generator.num_samples=12",
    "fleet.generator.num_features=4",
    "model.mlp.hidden=[8]",
    "campaign.cohort_size=6",
    "campaign.num_rounds=3",
    "campaign.evaluate_every=2",
)
# A little of any experiment.
FEW = ("runner=local", "campaign.num_rounds=2", "campaign.evaluate_every=1", "tracking_uri=off")
# Everything that makes a resumed run hard to get right: personal state, DP's ledger, drift, late labels, dropouts.
HARD = (
    "personalization=apfl",
    "privacy=central",
    "privacy.target_epsilon=40",
    "drift=mixed",
    "labels=late",
    "availability=diurnal",
    "campaign.quorum_fraction=0.1",
)


def quick(*words: str) -> Config:
    """The quickest configuration, with overrides."""
    return configure([*QUICK, *words])


def quick_arm(*words: str, seed: int = 0) -> Arm:
    """The quickest arm, with overrides."""
    return Arms().get(quick(*words), seed)


def command(argv: Sequence[str]) -> int:
    """`python -m sim` in this process."""
    from sim.__main__ import main

    return main(list(argv))


def only_run(root: Path, experiment: str) -> Path:
    """The folder of the only run of an experiment."""
    (path,) = (root / experiment).iterdir()
    return path


def quick_run(root: Path, *words: str) -> Run:
    """Run the quickest experiment below `root`, through the command line, and read it back."""
    assert command([*QUICK, f"output_dir={root}", *words]) == 0
    return load_run((root / "latest").resolve())


def outcome(run: Run) -> tuple[object, ...]:
    """What must be equal bit for bit between two runs of one configuration: all but clock times."""
    from dataclasses import replace

    return (
        tuple(arm.weights_digests for arm in run.summary.arms),
        tuple(arm.privacy for arm in run.summary.arms),
        tuple(replace(record, seconds=0.0) for record in run.rounds),
        run.devices,
    )
