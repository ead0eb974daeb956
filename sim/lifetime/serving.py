"""What every device serves, and what it predicts: the vectorised inference of a whole fleet.

Rules of this file:
    * A prediction is made when its row is taken, by the version and personal state that the device serves at that
      instant; it never changes afterwards.
    * Rows are predicted a span of ticks ahead for speed; a device whose version or personal state changes is
      predicted again from that instant on.
    * A device installs by itself what it is assigned once it is online: it re-fits its personal state on its own buffer
      (`training.blend`) and stays where it was, saying so, if its own held-out score falls. What it has run before lies
      verified in its slots, and the rules need no slot: no check on the way back.
    * A device that serves the rules keeps the model that it served last, with its personal state, and re-fits from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.decision import NOT_FINITE, class_probabilities, decide
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seeds_for
from fedretrain.core.types import ClientData
from fedretrain.rollout.stops import RULES_BASELINE
from fedretrain.training.blend import blend, distance
from fedretrain.training.executor import ClientWork
from fedretrain.training.keep import Verdict
from sim.lifetime.personal_log import PersonalLog
from sim.lifetime.rules import rules_logits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from fedretrain.training.blend import Blended
    from fedretrain.training.executor import Executor
    from sim.arm import Arm
    from sim.lifetime.rows import LifeRows
    from sim.lifetime.saboteur import Saboteur
    from sim.personal_store import Rows

    Ids = NDArray[np.int64]


@dataclass
class Outputs:
    """Predictions of R rows.

    Attributes:
        label: ``[R]`` int16 predicted class, `NOT_FINITE` where there is none.
        confidence: ``[R]`` float32, of the predicted class.
        entropy: ``[R]`` float32 of the class probabilities, over log M.
    """

    label: NDArray[np.int16]
    confidence: NDArray[np.float32]
    entropy: NDArray[np.float32]

    @classmethod
    def empty(cls, num_rows: int) -> Outputs:
        """Nothing predicted yet."""
        return cls(
            np.full(num_rows, NOT_FINITE, np.int16),
            np.zeros(num_rows, np.float32),
            np.ones(num_rows, np.float32),
        )

    def put(self, rows: Ids, logits: NDArray[np.float32]) -> None:
        """Keep what logits ``[n, M]`` of the given rows say."""
        answers = decide(logits)
        self.label[rows], self.confidence[rows] = answers.label, answers.confidence
        self.entropy[rows] = answers.entropy


@dataclass
class Versions:
    """Every version ever made: shared parameters, and the personal states that devices hold for it.

    Attributes:
        shared: Version -> shared parameters.
        personal: Version -> device -> packed personal state.
    """

    shared: dict[int, Params] = field(default_factory=dict)
    personal: dict[int, Rows] = field(default_factory=dict)

    def add(self, version: int, shared: Params, personal: Rows) -> None:
        """A new version."""
        self.shared[version], self.personal[version] = shared, dict(personal)


@dataclass(frozen=True)
class Installed:
    """What became of some installs.

    Attributes:
        devices: ``[K]`` that acted.
        refused: ``[K]`` True where the device's own check failed and it stays where it was.
    """

    devices: Ids
    refused: NDArray[np.bool_]


class Serving:
    """Versions, who serves which, and predictions.

    Args:
        arm: World, model and method.
        rows: Every row of the life.
        saboteur: May change what versions say, and what devices install them with.
    """

    def __init__(self, arm: Arm, rows: LifeRows, saboteur: Saboteur) -> None:
        self._arm, self._rows, self._saboteur = arm, rows, saboteur
        self.versions = Versions()
        num = arm.world.fleet.num_devices
        self.version = np.zeros(num, dtype=np.int64)
        self._model = np.zeros(num, dtype=np.int64)
        self._ran: dict[int, NDArray[np.bool_]] = {}
        self._rules = rules_logits(rows, arm.world.fleet.num_outputs)
        self.target = np.zeros(num, dtype=np.int64)
        self.outputs = Outputs.empty(len(rows))
        self.row_version = np.zeros(len(rows), dtype=np.int32)
        self.candidate_outputs = Outputs.empty(len(rows))
        self.told = PersonalLog(num)

    def serve(self, version: int) -> None:
        """Every device serves a version from now on (the first champion, before the life begins)."""
        self.target[:] = version
        self._switch(np.arange(len(self.version)), version)

    def has_run(self, version: int) -> NDArray[np.bool_]:
        """``[D]`` whose slots hold a version, verified; the rules are everywhere."""
        everywhere = version == RULES_BASELINE
        return np.full(len(self.version), everywhere) if everywhere else self._ran_of(version).copy()

    def _ran_of(self, version: int) -> NDArray[np.bool_]:
        return self._ran.setdefault(version, np.zeros(len(self.version), dtype=np.bool_))

    def _switch(self, devices: Ids, version: int) -> None:
        self.version[devices] = version
        if version != RULES_BASELINE:
            self._model[devices] = version
            self._ran_of(version)[devices] = True

    def predict(self, rows: Ids, versions: Ids, outputs: Outputs) -> None:
        """Predict rows ``[n]`` with the given version of each row's device, ``[n]``."""
        for version in np.unique(versions).tolist():
            mine = rows[versions == version]
            for part, logits in self._logits(mine, version, served=outputs is self.outputs):
                outputs.put(part, logits)

    def predict_served(self, rows: Ids) -> None:
        """Predict rows ``[n]`` with what their devices serve."""
        versions = self.version[self._rows.device[rows]]
        self.predict(rows, versions, self.outputs)
        self.row_version[rows] = versions

    def probabilities(self, rows: Ids, version: int, *, served: bool = False) -> NDArray[np.float32]:
        """Class probabilities of rows ``[n]`` by a version, with the personal states that devices hold for it."""
        found = np.full((len(rows), self._arm.world.fleet.num_outputs), np.nan, dtype=np.float32)
        place = np.full(len(self._rows), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        for part, logits in self._logits(rows, version, served=served):
            found[place[part]] = class_probabilities(logits)
        return found

    def of_inputs(self, inputs: NDArray[np.float32], version: int, executor: Executor) -> NDArray[np.float32]:
        """Outputs ``[n, M]`` of a version's global model on inputs that are no device's."""
        data = ClientData(inputs, np.zeros(len(inputs), dtype=np.int64))
        work = [ClientWork(ClientId(0), data, None, 0)]
        return executor.predict(self.versions.shared[version], work, personalized=False)[0]

    def _logits(
        self, rows: Ids, version: int, *, served: bool = False
    ) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Outputs of rows ``[n]`` by a version, in parts."""
        for part, logits in self._own_logits(rows, version):
            yield part, self._saboteur.logits(version, part, logits, served=served)

    def _own_logits(self, rows: Ids, version: int) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Those of devices without a personal state, and the others'; the rules' are alike for all."""
        if version == RULES_BASELINE:
            yield rows, np.tile(self._rules, (len(rows), 1))
            return
        shared, executor = self.versions.shared[version], self._arm.executor
        personal = self.versions.personal[version] if self._arm.task.personal.size else {}
        owner = self._rows.device[rows]
        own = np.isin(owner, np.fromiter(personal, np.int64, len(personal)))
        plain, kept = rows[~own], rows[own]
        if len(plain):  # one client holds everybody without a personal state
            data = ClientData(self._rows.x[plain], self._rows.y[plain])
            work = [ClientWork(ClientId(0), data, None, 0)]
            yield plain, executor.predict(shared, work, personalized=False)[0]
        if not len(kept):
            return
        order = np.argsort(owner[own], kind="stable")
        kept = kept[order]
        owners, starts = np.unique(owner[own][order], return_index=True)
        work = [
            ClientWork(ClientId(d), ClientData(self._rows.x[part], self._rows.y[part]), personal[d], 0)
            for d, part in zip(owners.tolist(), np.split(kept, starts[1:]), strict=True)
        ]
        yield kept, np.concatenate(executor.predict(shared, work, personalized=True))

    def personal_before(self, devices: Ids, version: int) -> Rows:
        """The personal states that devices hold for a version, else those of the model that they served last."""
        held = self.versions.personal.get(version, {})
        found: Rows = {}
        for device in devices.tolist():
            own = held.get(device)
            if own is None:
                own = self.versions.personal[int(self._model[device])].get(device)
            if own is not None:
                found[device] = own
        return found

    def personal_now(self) -> Rows:
        """The personal state of each device that has one for the model that it served last."""
        found: Rows = {}
        for device, version in enumerate(self._model.tolist()):
            own = self.versions.personal[version].get(device)
            if own is not None:
                found[device] = own
        return found

    def install(self, devices: Ids, version: int, *, at: float, left: int | None = None) -> Installed:
        """Devices switch to a version, each after its own check; where it has run before, to its verified slot.

        Args:
            devices: Whom.
            version: To what.
            at: Instant.
            left: What may not be kept: its devices switch whatever their check says.
        """
        refused = np.zeros(len(devices), dtype=np.bool_)
        new = ~self.has_run(version)[devices]
        for old in np.unique(self._model[devices[new]]).tolist():
            mine = new & (self._model[devices] == old)
            executor = self._saboteur.installing(version, self._arm.executor)
            refused[mine] = self._adopt(devices[mine], version, old, at, executor)
        refused &= self.version[devices] != left
        self.told.asked(devices[new], refused[new])
        self._switch(devices[~refused], version)
        return Installed(devices, refused)

    def prepare(self, devices: Ids, version: int, *, at: float) -> None:
        """Devices re-fit their personal state to a version that they do not serve yet (shadow)."""
        if self._arm.task.personal.size:
            for old in np.unique(self._model[devices]).tolist():
                self._adopt(devices[self._model[devices] == old], version, old, at)

    def refit(self, devices: Ids, *, at: float) -> int:
        """Personal-only: devices re-fit their personal state to the model that they served last; how many kept it."""
        if not self._arm.task.personal.size:
            return 0
        kept = 0
        for version in np.unique(self._model[devices]).tolist():
            mine = devices[self._model[devices] == version]
            kept += int((~self._adopt(mine, version, version, at)).sum())
        return kept

    def _adopt(
        self, devices: Ids, version: int, old: int, at: float, executor: Executor | None = None
    ) -> NDArray[np.bool_]:
        """Re-fit personal states to a version where that pays: ``[K]`` True where the device refuses the version."""
        arm = self._arm
        before = self.personal_before(devices, version)
        data = arm.world.fleet.trainable(devices, at)
        seeds = seeds_for(arm.seed, version, devices, "install").tolist()
        work = [
            ClientWork(ClientId(d), held, before.get(d), seed)
            for d, held, seed in zip(devices.tolist(), data, seeds, strict=True)
        ]
        shared, serving = self.versions.shared[version], self.versions.shared[old]
        found = blend(
            executor or arm.executor,
            shared,
            work,
            arm.world.fleet.objective,
            arm.config.blend,
            serving=serving,
        )
        fell = np.array([one in (Verdict.FELL, Verdict.NONFINITE) for one in found.verdicts], dtype=np.bool_)
        personal = self.versions.personal[version]
        for device, row, stays in zip(devices.tolist(), found.personal, fell.tolist(), strict=True):
            if row is not None and row.size and not stays:
                personal[device] = row
        if executor is not None or version == old:  # what is served, or was refused; not what is only scored
            self._tell(devices, version, found)
        return fell

    def _tell(self, devices: Ids, version: int, found: Blended) -> None:
        """What devices will report of their personal models."""
        task, shared = self._arm.task, self.versions.shared[version]
        if not task.personal.size:
            return
        self.told.gained(devices, found.gain)
        held = [
            (device, distance(task, shared, row))
            for device, row in zip(devices.tolist(), found.personal, strict=True)
            if row is not None and np.isfinite(row).all()
        ]
        self.told.apart(np.array([d for d, _ in held], np.int64), np.array([far for _, far in held]))
