"""How good the models are: each device's own future rows, scored with the global and with its personalized model.

Rules of this file:
    * A device re-fits its personal state to the model it is given, on what it holds labelled by then, and keeps the
      re-fit only if its own held-out score does not fall (`training.blend`), as it does when it installs a release.
      Evaluation leaves the stored state as it is.
    * Everything here is the simulator's oracle: it lies outside every epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seeds_for
from fedretrain.training.blend import blend
from fedretrain.training.executor import ClientWork
from fedretrain.training.keep import Verdict
from fedretrain.training.metrics import client_scores
from sim.fleet import scored, trainable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from sim.arm import Arm
    from sim.personal_store import Rows

    Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of K devices.

    Attributes:
        devices: ``[K]`` int64.
        num_scored: ``[K]`` rows that each score rests on.
        global_model: Name of a score -> ``[K]``; NaN where a device has nothing to score.
        personalized: Likewise; None where the method keeps nothing personal.
        num_refused: Devices whose re-fit was refused because their held-out score fell.
    """

    devices: NDArray[np.int64]
    num_scored: NDArray[np.int64]
    global_model: Scores
    personalized: Scores | None
    num_refused: int

    @classmethod
    def join(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """The evaluations of several shards as one, in the order of device ids."""
        devices = np.concatenate([part.devices for part in parts])
        order = np.argsort(devices, kind="stable")

        def joined(pieces: Sequence[Scores]) -> Scores:
            return {name: np.concatenate([piece[name] for piece in pieces])[order] for name in pieces[0]}

        personal = [part.personalized for part in parts if part.personalized is not None]
        return cls(
            devices[order],
            np.concatenate([part.num_scored for part in parts])[order],
            joined([part.global_model for part in parts]),
            joined(personal) if personal else None,
            sum(part.num_refused for part in parts),
        )


def evaluate(
    arm: Arm, shared: Params, devices: NDArray[np.int64], personal: Rows, *, round_: int, at: float
) -> Evaluation:
    """Score devices ``[K]``.

    Args:
        arm: The world, the model and the method.
        shared: The global model.
        devices: Whom.
        personal: Their personal states, where they have one.
        round_: The round after which this happens: part of the re-fit's randomness.
        at: The instant: what was taken and labelled by then may be re-fitted on.
    """
    streams = arm.world.fleet.streams(devices)
    seeds = seeds_for(arm.seed, round_, devices, "refit")
    size = arm.task.personal.size
    own_rows = {device: row[:size] for device, row in personal.items()} if size else {}
    held = [
        ClientWork(ClientId(int(device)), trainable(stream, at), own_rows.get(int(device)), int(seed))
        for device, stream, seed in zip(devices, streams, seeds, strict=True)
    ]
    objective = arm.world.fleet.objective
    future = [replace(one, data=scored(stream)) for one, stream in zip(held, streams, strict=True)]
    labels = [one.data.y for one in future]
    dataset = arm.setting.dataset
    unit = 1.0 if dataset is None else dataset.target_scale
    outputs = arm.executor.predict(shared, future, personalized=False)
    own, num_refused = None, 0
    if arm.task.personal.size:
        blended = blend(arm.executor, shared, held, objective, arm.config.blend)
        num_refused = sum(verdict is Verdict.FELL for verdict in blended.verdicts)
        renewed = [replace(one, personal=row) for one, row in zip(future, blended.personal, strict=True)]
        found = client_scores(objective, arm.executor.predict(shared, renewed, personalized=True), labels)
        own = _in_units(found, unit)
    return Evaluation(
        devices,
        np.array([len(y) for y in labels], dtype=np.int64),
        _in_units(client_scores(objective, outputs, labels), unit),
        own,
        num_refused,
    )


def _in_units(scores: Scores, unit: float) -> Scores:
    """Errors in the target's own unit; other scores have none."""
    return {name: score * unit if name in ("rmse", "mae") else score for name, score in scores.items()}
