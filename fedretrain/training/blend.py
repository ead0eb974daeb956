"""Blending a new global model with what a device already learnt.

Rules of this file:
    * A device re-fits its personal state on the older part of its own labelled samples and keeps the result only if
      its score on the newest part does not fall; otherwise it stays where it was, and says why.
    * The rule itself is `keep`, which needs no torch.
    * Nothing leaves the device: scores and verdicts are for the device itself and for the simulator's oracle. The
      choice rests on un-noised labels, so under example-level DP a head of `fedper` chosen here must not go back into
      training: the next round's shared gradients would carry it.

Source: DESIGN section 5; fine-tuning gated by the device's own data as in arXiv 2002.04758,
https://arxiv.org/abs/2002.04758.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.training.keep import BlendConfig, Verdict, verdict_of
from fedretrain.training.metrics import quality

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from fedretrain.core.types import Objective
    from fedretrain.training.executor import ClientWork, Executor


@dataclass(frozen=True)
class Blended:
    """What each of K devices goes on with.

    Attributes:
        personal: Of each device, ``[Q]`` packed or None where it has none (it serves the global model).
        verdicts: What became of each re-fit.
        before: ``[K]`` held-out score of what it served (NaN if not scored); higher is better.
        after: ``[K]`` held-out score of the re-fit.
    """

    personal: tuple[NDArray[np.float32] | None, ...]
    verdicts: tuple[Verdict, ...]
    before: NDArray[np.float64]
    after: NDArray[np.float64]

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
    before, after = np.full(len(work), np.nan), np.full(len(work), np.nan)
    if judged:
        fit = [replace(work[i], data=split[0]) for i in judged if (split := splits[i]) is not None]
        held = [replace(work[i], data=split[1]) for i in judged if (split := splits[i]) is not None]
        fitted = executor.refit(shared, fit)
        renewed = [replace(one, personal=row) for one, row in zip(held, fitted, strict=True)]
        before[judged] = _scores(executor, shared if serving is None else serving, held, objective)
        after[judged] = _scores(executor, shared, renewed, objective)
        for i, row in zip(judged, fitted, strict=True):
            verdicts[i] = verdict_of(row, before[i], after[i], config.tolerance)
            if verdicts[i] is Verdict.KEPT:
                personal[i] = row.copy()
    return Blended(tuple(personal), tuple(verdicts), before, after)


def _scores(
    executor: Executor, shared: Params, held: Sequence[ClientWork], objective: Objective
) -> list[float]:
    score = quality(objective)
    outputs = executor.predict(shared, held, personalized=True)
    return [score(o, one.data.y) for o, one in zip(outputs, held, strict=True)]
