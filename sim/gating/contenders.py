"""Candidates and champions from run folders and weight files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from sim.gating.gate import Contender
from sim.outputs import WEIGHTS, load_run
from sim.plan import Plan
from sim.results import Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from sim.results import ArmSummary, Run


def load_contender(path: str, arm: str) -> tuple[Contender, Run]:
    """The campaign of a finished run.

    Args:
        path: The run folder.
        arm: Its arm; empty: the first.

    Raises:
        ConfigError: If there is no such arm.
        DataError: If the run is unfinished or damaged.
    """
    folder = Path(path)
    run = load_run(folder)
    plan = Plan.from_yaml(run.config, folder / "config.yaml")
    planned = next((one for one in plan.arms if one.name == arm), None) if arm else plan.arms[0]
    if planned is None:
        known = ", ".join(one.name for one in plan.arms)
        raise ConfigError(f"the run has no arm {arm!r}", where=path, fix=f"known: {known}")
    summary = next(one for one in run.summary.arms if one.arm == planned.name)
    classifies = run.summary.metric is Metric.ACCURACY
    weights = {
        seed: read_weights(folder / WEIGHTS / f"{planned.name}-{seed}.safetensors") for seed in plan.seeds
    }
    return (
        Contender(
            path,
            planned.config,
            classifies,
            plan.seeds,
            weights,
            {seed: _scores(run, summary, seed, classifies) for seed in plan.seeds},
            None if summary.privacy is None else summary.privacy.epsilon,
        ),
        run,
    )


def _scores(run: Run, arm: ArmSummary, seed: int, classifies: bool) -> NDArray[np.float64]:
    """``[D]`` final scores of one seed, more is better; personalized where the arm has such."""
    sign = 1.0 if classifies else -1.0
    found = [one for one in run.devices if one.arm == arm.arm and one.seed == seed]
    values = [one.global_score if one.personalized_score is None else one.personalized_score for one in found]
    return np.array([np.nan if value is None else sign * value for value in values], dtype=np.float64)


def read_weights(path: Path) -> Params:
    """Shared parameters.

    Raises:
        DataError: If the file is absent or no safetensors file.
    """
    import safetensors.numpy

    try:
        return dict(safetensors.numpy.load_file(path))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(
            f"these are no weights: {error}", where=str(path), fix="name a .safetensors file of a run"
        ) from error


def check_layout(weights: Params, champion: Contender) -> None:
    """Refuse weights of another model.

    Raises:
        DataError: If names or shapes differ from the champion's.
    """
    wanted = next(iter(champion.weights.values()))
    shapes = {name: leaf.shape for name, leaf in weights.items()}
    if shapes != {name: leaf.shape for name, leaf in wanted.items()}:
        raise DataError(
            "the weights are of another model than the champion's",
            where="candidate",
            fix="name the run folder that made them",
        )
