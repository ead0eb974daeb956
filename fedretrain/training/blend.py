"""Blending a new global model with what a device already learnt.

Rules of this file:
    * A device re-fits its personal state on the older part of its own labelled samples and keeps the result only if
      its score on the newest part does not fall; otherwise it stays where it was, and says why.
    * The rule itself is `keep`, which needs no torch.
    * Scores and verdicts are for the device itself and for the simulator's oracle. What telemetry tells of them (the gain,
      the distance, whether a base was refused) is under telemetry's own policy, and outside of any epsilon unless it is noised.
    * The choice rests on un-noised labels, so under example-level DP a head of `fedper` chosen here must not go back into
      training: the next round's shared gradients would carry it.

Source: DESIGN section 5; fine-tuning gated by the device's own data as in arXiv 2002.04758,
https://arxiv.org/abs/2002.04758.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedretrain.training.keep import BlendConfig, Verdict, verdict_of
from fedretrain.training.metrics import quality

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from fedretrain.core.types import Objective
    from fedretrain.training.executor import ClientWork, Executor
    from fedretrain.training.task import LocalTask, Tree


@dataclass(frozen=True)
class Blended:
    """What each of K devices goes on with.

    Attributes:
        personal: Of each device, ``[Q]`` packed or None where it has none (it serves the global model).
        verdicts: What became of each re-fit.
        before: ``[K]`` held-out score of what it served (NaN if not scored); higher is better.
        after: ``[K]`` held-out score of the re-fit.
        plain: ``[K]`` held-out score of the new global model alone.
    """

    personal: tuple[NDArray[np.float32] | None, ...]
    verdicts: tuple[Verdict, ...]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    plain: NDArray[np.float64]

    @property
    def gain(self) -> NDArray[np.float64]:
        """``[K]`` held-out score of what the device goes on with, minus that of the new global model; NaN if not known."""
        gain = np.where(self.kept, self.after, self.before) - self.plain
        return np.where(np.isfinite(gain), gain, np.nan)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """``[K]`` True where the re-fit was kept."""
        return np.array([verdict is Verdict.KEPT for verdict in self.verdicts], dtype=bool)


def blend(
    executor: Executor,
    shared: Params,
    work: Sequence[ClientWork],
    objective: Objective,
    config: BlendConfig,
    *,
    serving: Params | None = None,
) -> Blended:
    """Re-fit the personal state of many devices to new shared parameters, each keeping it only if it pays.

    Args:
        executor: Runs the re-fit and the predictions.
        shared: The new global model.
        work: Each device with its old personal state (or None) and its labelled samples in the order of time.
        objective: Chooses the score: accuracy, or minus RMSE.
        config: When a re-fit is kept.
        serving: The global model that the devices serve with now; None: the new one.
    """
    splits = [config.split(one.data) for one in work]
    judged = [i for i, split in enumerate(splits) if split is not None]
    personal = [one.personal for one in work]
    verdicts = [Verdict.TOO_FEW] * len(work)
    before, after, plain = (np.full(len(work), np.nan) for _ in range(3))
    if judged:
        fit = [replace(work[i], data=split[0]) for i in judged if (split := splits[i]) is not None]
        held = [replace(work[i], data=split[1]) for i in judged if (split := splits[i]) is not None]
        fitted = executor.refit(shared, fit)
        renewed = [replace(one, personal=row) for one, row in zip(held, fitted, strict=True)]
        before[judged] = _scores(executor, shared if serving is None else serving, held, objective)
        after[judged] = _scores(executor, shared, renewed, objective)
        plain[judged] = _scores(executor, shared, held, objective, personalized=False)
        for i, row in zip(judged, fitted, strict=True):
            verdicts[i] = verdict_of(row, before[i], after[i], config.tolerance)
            if verdicts[i] is Verdict.KEPT:
                personal[i] = row.copy()
    return Blended(tuple(personal), tuple(verdicts), before, after, plain)


def distance(task: LocalTask, shared: Params, personal: NDArray[np.float32]) -> float:
    """How far a device's model is from the global one, relative to the global one: Euclidean, over every parameter.

    Args:
        task: Its method, with a personal state.
        shared: The global model.
        personal: ``[Q]`` packed personal state.

    Returns:
        The ratio of norms; infinite for a global model of zeros.
    """
    base = _tensors(shared)
    plain, own = task.global_params(base), task.model_params(base, _tensors(task.personal.unpack(personal)))
    apart = sum(float(torch.sum((own[name] - leaf).double() ** 2)) for name, leaf in plain.items())
    size = sum(float(torch.sum(leaf.double() ** 2)) for leaf in plain.values())
    return math.sqrt(apart / size) if size > 0 else math.inf


def _tensors(params: Params) -> Tree:
    return {name: torch.from_numpy(np.array(leaf)) for name, leaf in params.items()}


def _scores(
    executor: Executor,
    shared: Params,
    held: Sequence[ClientWork],
    objective: Objective,
    *,
    personalized: bool = True,
) -> list[float]:
    score = quality(objective)
    outputs = executor.predict(shared, held, personalized=personalized)
    return [score(o, one.data.y) for o, one in zip(outputs, held, strict=True)]
