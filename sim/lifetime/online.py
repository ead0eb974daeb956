"""Online learning in a life: every device's own copy of the champion, which learns from each label as it arrives.

Rules of this file:
    * How far a copy may go and when it is taken back is `fedretrain.retraining.online`'s to say, device by device; here
      labels, losses and gradients are gathered for it. The guard is asked once a tick, after the tick's labels.
    * A copy is a whole model: what the device served when learning began. It stays on the device.
    * Score before learning: a sample's loss is taken with the copy and with the champion before the step. The loss is half
      the Brier score, which lies in [0, 1].
    * Gradients are the executor's own: one step of plain SGD on one sample, read back.
    * Learning ends for a device that is given another version or personal state, and for all with another champion.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedretrain.artifacts.decision import class_probabilities
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seeds_for
from fedretrain.core.types import ClientData, MethodKind
from fedretrain.retraining import online
from fedretrain.retraining.online import (
    OnlineEvidence,
    OnlineState,
    OnlineStatus,
    Resumed,
    Reverted,
    anchored_step,
)
from fedretrain.training.config import MethodConfig, OptimizerConfig
from fedretrain.training.executor import ClientWork, executor_for
from fedretrain.training.methods.make import make_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from fedretrain.retraining.config import OnlineGuard
    from sim.arm import Arm
    from sim.lifetime.rows import LifeFleet
    from sim.lifetime.serving import Outputs, Serving

    Ids = NDArray[np.int64]


@dataclass
class _Copy:
    """One device's copy.

    Attributes:
        version: What the device served when learning began.
        personal: The personal state that it held then; None without one.
        anchor: ``[P]`` the whole model that it served.
        params: ``[P]`` where the copy is.
        state: What the guard remembers.
    """

    version: int
    personal: NDArray[np.float32] | None
    anchor: NDArray[np.float32]
    params: NDArray[np.float32]
    state: OnlineState = field(default_factory=OnlineState)


@dataclass(frozen=True)
class Told:
    """A revert of a device's copy, or its going on after the rest."""

    device: int
    version: int
    event: Reverted | Resumed


class Learner:
    """The copies of all devices that learn online.

    Args:
        arm: Model and method.
        fleet: The life's devices; rows held out for validation are not learnt.
        serving: What devices serve.
        guard: The limits.
        lr: Learning rate of a step.
    """

    def __init__(self, arm: Arm, fleet: LifeFleet, serving: Serving, guard: OnlineGuard, lr: float) -> None:
        self._arm, self._fleet, self._serving, self._guard, self._lr = arm, fleet, serving, guard, lr
        # Ditto without its pull: personal state is a whole model that goes on from where it stands.
        method = MethodConfig(MethodKind.DITTO, ditto_lambda=0.0)
        sgd = OptimizerConfig(lr=lr)
        local = replace(
            arm.training, batch_size=1, epochs=1, max_steps=1, optimizer=sgd, prox_mu=0.0, example_dp=None
        )
        self._task = make_task(method, local, arm.model)
        self._executor = executor_for(arm.config.runner.executor, self._task, arm.model, local)
        self._base = arm.model.first_params()
        self._copies: dict[int, _Copy] = {}
        self._champion = -1

    @property
    def devices(self) -> Ids:
        """Those that have a copy, ascending."""
        return np.array(sorted(self._copies), dtype=np.int64)

    def start(self, champion: int) -> None:
        """Devices that serve the champion begin to learn; those that do already go on."""
        self._champion = champion
        for device in np.flatnonzero(self._serving.version == champion).tolist():
            if device not in self._copies:
                self._copies[device] = self._copy(device)

    def stop(self) -> None:
        """There is another champion."""
        self._copies.clear()

    def learn(self, arrived: Ids, now: float) -> tuple[Ids, list[Told]]:
        """Learn from the labels that arrived since the last call.

        Args:
            arrived: Row numbers in the order of arrival.
            now: The instant.

        Returns:
            Devices whose copies changed, and reverts and resumptions.
        """
        self._drop_changed()
        if not self._copies:
            return np.zeros(0, dtype=np.int64), []
        rows = self._fleet.rows
        arrived = arrived[~self._fleet.held_out[arrived]]
        arrived = arrived[np.isin(rows.device[arrived], self._learning())]
        losses: dict[int, list[tuple[float, float]]] = {}
        for turn in _turns(arrived, rows.device[arrived]):
            for device, pair in zip(rows.device[turn].tolist(), self._one_each(turn), strict=True):
                losses.setdefault(device, []).append(pair)
        told = [one for device in self._copies for one in self._judge(device, losses.get(device, []), now)]
        changed = {*losses, *(one.device for one in told)}
        return np.array(sorted(changed), dtype=np.int64), told

    def predict(self, which: Ids, outputs: Outputs) -> None:
        """Predict the rows ``[n]`` of devices that have a copy with it."""
        self._drop_changed()
        rows = self._fleet.rows
        which = which[np.isin(rows.device[which], self.devices)]
        if not len(which):
            return
        which = which[np.argsort(rows.device[which], kind="stable")]
        owners, starts = np.unique(rows.device[which], return_index=True)
        parts = np.split(which, starts[1:])
        params = [self._copies[d].params for d in owners.tolist()]
        outputs.put(which, np.concatenate(self._logits(parts, params)))

    def _copy(self, device: int) -> _Copy:
        """A copy of the whole model that a device serves."""
        task, version = self._arm.task, int(self._serving.version[device])
        shared = _tensors(self._serving.versions.shared[version])
        personal = self._held(device, version)
        tree = (
            task.global_params(shared)
            if personal is None
            else task.model_params(shared, _tensors(task.personal.unpack(personal)))
        )
        anchor = self._task.personal.pack({name: leaf.numpy() for name, leaf in tree.items()})
        return _Copy(version, personal, anchor, anchor.copy())

    def _held(self, device: int, version: int) -> NDArray[np.float32] | None:
        """The personal state that a device serves a version with."""
        if not self._arm.task.personal.size:
            return None
        return self._serving.versions.personal[version].get(device)

    def _drop_changed(self) -> None:
        """Forget the copies of devices that serve something else by now."""
        for device, copy in list(self._copies.items()):
            version = int(self._serving.version[device])
            if version != copy.version or self._held(device, version) is not copy.personal:
                del self._copies[device]

    def _learning(self) -> list[int]:
        return [d for d, copy in self._copies.items() if copy.state.status is OnlineStatus.LEARNING]

    def _one_each(self, turn: Ids) -> list[tuple[float, float]]:
        """One sample of each device: its losses by copy and champion; then the step."""
        rows = self._fleet.rows
        devices, parts = rows.device[turn], np.split(turn, len(turn))
        copies = [self._copies[d] for d in devices.tolist()]
        own = _losses(np.concatenate(self._logits(parts, [c.params for c in copies])), rows.y[turn])
        champion = _losses(np.concatenate(self._logits(parts, [c.anchor for c in copies])), rows.y[turn])
        work = self._work(parts, [copy.params for copy in copies])
        stepped = self._executor.refit(self._base, work).astype(np.float64)
        for copy, after in zip(copies, stepped, strict=True):
            before, anchor = copy.params.astype(np.float64), copy.anchor.astype(np.float64)
            gradient = (before - after) / self._lr
            copy.params = anchored_step(self._guard, before, anchor, gradient, self._lr).astype(np.float32)
        return list(zip(own.tolist(), champion.tolist(), strict=True))

    def _judge(self, device: int, losses: list[tuple[float, float]], now: float) -> list[Told]:
        """What the guard says of a device after a tick."""
        copy = self._copies[device]
        if not losses and copy.state.status is OnlineStatus.LEARNING:
            return []
        both = np.array(losses, dtype=np.float64).reshape(len(losses), 2)
        distance = float(np.linalg.norm(copy.params.astype(np.float64) - copy.anchor))
        told = []
        evidence = OnlineEvidence(both[:, 0], both[:, 1], distance)
        for event in online.decide(self._guard, copy.state, evidence, now):
            copy.state = online.apply(copy.state, event)
            if isinstance(event, Reverted):
                copy.params = copy.anchor.copy()
            if isinstance(event, (Reverted, Resumed)):
                told.append(Told(device, copy.version, event))
        return told

    def _work(self, parts: list[Ids], params: list[NDArray[np.float32]]) -> list[ClientWork]:
        rows = self._fleet.rows
        devices = [int(rows.device[part[0]]) for part in parts]
        # A sample's randomness (Dropout) is its own: by its row number.
        seeds = seeds_for(self._arm.seed, -1, np.array([part[0] for part in parts]), "online").tolist()
        return [
            ClientWork(ClientId(device), ClientData(rows.x[part], rows.y[part]), own, seed)
            for device, part, own, seed in zip(devices, parts, params, seeds, strict=True)
        ]

    def _logits(self, parts: list[Ids], params: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """``[n, M]`` of each device's rows by its own whole model."""
        return self._executor.predict(self._base, self._work(parts, params), personalized=True)


def _turns(which: Ids, device: Ids) -> list[Ids]:
    """First the first row of each device, then the second of those that have one, and so on."""
    order = np.argsort(device, kind="stable")
    _, starts, counts = np.unique(device[order], return_index=True, return_counts=True)
    place = np.empty(len(which), dtype=np.int64)
    place[order] = np.arange(len(which)) - np.repeat(starts, counts)
    return [which[place == turn] for turn in range(int(counts.max(initial=0)))]


def _losses(logits: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[n]`` half the Brier score of each sample; NaN where an output is not finite."""
    share = class_probabilities(logits).astype(np.float64)
    share[np.arange(len(y)), y] -= 1.0
    loss: NDArray[np.float64] = 0.5 * (share**2).sum(axis=1)
    return loss


def _tensors(tree: Params) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(leaf, dtype=np.float32)) for name, leaf in tree.items()}
