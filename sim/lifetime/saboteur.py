"""What an experiment may change in a life on purpose; the loop asks at each of these moments, and knows nothing of the reasons.

Rules of this file:
    * The saboteur here changes nothing: an honest life is one with it.
    * A saboteur changes what happens (training, packages, predictions, labels), never what is decided.
    * The champion's training and everything before the first decision to retrain stay honest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedretrain.coordinator.cycle import CycleEvent
    from fedretrain.training.executor import Executor
    from sim.arm import Arm
    from sim.lifetime.campaigns import Trained
    from sim.lifetime.loop import Living

    Ids = NDArray[np.int64]


class Saboteur:
    """Changes nothing. Subclasses change what their case says."""

    def attach(self, living: Living) -> None:
        """The life begins: remember it where that is needed."""

    def heard(self, event: CycleEvent) -> None:
        """Something was decided, or happened."""

    def training(self, arm: Arm) -> Arm:
        """What campaigns train with."""
        return arm

    def made(self, trained: Trained) -> Trained:
        """What a retrain made, before anybody sees it."""
        return trained

    def latency_s(self, version: int, usual_s: float) -> float:
        """Median latency of a version's predictions, seconds."""
        del version
        return usual_s

    def size_bytes(self, version: int, usual: int) -> int:
        """Size of a version's package, bytes."""
        del version
        return usual

    def logits(
        self, version: int, rows: Ids, logits: NDArray[np.float32], *, served: bool
    ) -> NDArray[np.float32]:
        """Outputs ``[n, M]`` of a version on rows ``[n]``; `served`: by devices that serve it, not for a trial."""
        del version, rows, served
        return logits

    def installing(self, version: int, executor: Executor) -> Executor:
        """What devices re-fit with, and check themselves by, when they install a version to serve it."""
        del version
        return executor
