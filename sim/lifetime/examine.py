"""The offline validation of a candidate in the simulator: both models on the same labelled rows of every device.

Rules of this file:
    * Statistics are counted and judged by `fedretrain.validation`; here rows are gathered and predicted.
    * Rows are the newest labelled ones of each device that nobody trains on, where the life holds some out. Those of devices
      that are kept out are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.training.executor import executor_for
from fedretrain.validation.checks import Footprint, Inspection, evaluate
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.sanity import check_sanity, make_vectors
from fedretrain.validation.slices import even_cuts
from sim.schema import ExecutorKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.validation.config import ValidationPolicy
    from fedretrain.validation.report import EvaluationReport
    from fedretrain.validation.sanity import SanityOutcome
    from sim.arm import Arm
    from sim.lifetime.rows import LifeFleet
    from sim.lifetime.serving import Serving

_SANITY_ROWS = 32
_TOLERANCE = 1e-3  # of logits, between two executors in float32


class Examiner:
    """Validates candidates.

    Args:
        policy: Margins and required checks.
        arm: Model and method.
        fleet: The life's devices.
        serving: Their models.
        window_s: How far back labelled rows are taken.
        costs: Median latency in seconds of a version, and the size in bytes of its package.
    """

    def __init__(
        self,
        policy: ValidationPolicy,
        arm: Arm,
        fleet: LifeFleet,
        serving: Serving,
        window_s: float,
        costs: tuple[Callable[[int], float], Callable[[int], int]],
    ) -> None:
        self._policy, self._arm, self._fleet, self._serving = policy, arm, fleet, serving
        self._reference = executor_for(ExecutorKind.EACH, arm.task, arm.model, arm.training)
        self._window_s, self._costs = window_s, costs

    def report(
        self, candidate: int, champion: int, now: float, counted: NDArray[np.bool_]
    ) -> EvaluationReport:
        """Validate a version against the champion on what is labelled by now, on the devices that count ``[D]``."""
        rows, serving = self._fleet.rows, self._serving
        which = self._labelled(now)
        which = which[counted[rows.device[which]]]
        at = rows.event_at[which]
        layout = Layout.of(self._policy, self._fleet.num_outputs, self._cuts(at))
        device = rows.device[which]
        traits = self._fleet.traits(np.arange(self._fleet.num_devices))
        statistics = count_rows(
            layout,
            Rows(
                Labelled(
                    device, traits.site[device].astype(np.int64), at, rows.label_at[which] - at, rows.y[which]
                ),
                serving.probabilities(which, candidate),
                serving.probabilities(which, champion),
            ),
        )
        found = self._inspect(candidate, champion)
        return evaluate(self._policy, statistics, found, candidate=candidate, champion=champion)

    def _labelled(self, now: float) -> NDArray[np.int64]:
        """Rows with a label by now, of the window, held out where there are such."""
        rows = self._fleet.rows
        taken = rows.between(now - self._window_s, now)
        which = np.arange(taken.start, taken.stop)[rows.label_at[taken] <= now]
        held = self._fleet.held_out[which]
        return which[held] if self._fleet.held_out.any() else which

    def _cuts(self, at: NDArray[np.float64]) -> tuple[float, ...]:
        if len(at) < 2 or at.min() == at.max():
            return ()
        return even_cuts(float(at.min()), float(at.max()), self._policy.num_slices)

    def _inspect(self, candidate: int, champion: int) -> Inspection:
        serving = self._serving
        weights = serving.versions.shared[candidate]
        broken = sum(int((~np.isfinite(leaf)).sum()) for leaf in weights.values())
        return Inspection(
            nonfinite_weights=broken,
            sanity=None if broken else self._sanity(candidate),
            footprint=self._footprint(candidate),
            champion_footprint=self._footprint(champion),
        )

    def _footprint(self, version: int) -> Footprint:
        latency_of, size_of = self._costs
        return Footprint(latency_of(version), size_of(version))

    def _sanity(self, candidate: int) -> SanityOutcome | None:
        """Vectors made with the executor that trained, run with the reference one."""
        serving, arm = self._serving, self._arm
        # Synthetic inputs in the range of the model's, never a device's samples (DESIGN section 6).
        shape = (_SANITY_ROWS, *self._fleet.rows.x.shape[1:])
        x = np.cos(np.arange(np.prod(shape), dtype=np.float32) * 0.7).reshape(shape).astype(np.float32)
        outputs = np.sort(serving.of_inputs(x, candidate, arm.executor), axis=1)
        clear = x[outputs[:, -1] - outputs[:, -2] > 4 * _TOLERANCE]
        if not len(clear) or not np.isfinite(outputs).all():
            return None
        vectors = make_vectors(
            lambda one: serving.of_inputs(one, candidate, arm.executor), clear, tolerance=_TOLERANCE
        )
        return check_sanity(lambda one: serving.of_inputs(one, candidate, self._reference), vectors)
