"""What the coordinator carries from one released round to the next, and what a round ended in.

Rules of this file:
    * Values only; a round makes a new state or hands back the very same one.
    * `ServerState.to_arrays` is all that a checkpoint needs: a flat dictionary of arrays, ready for safetensors.
    * Under Poisson amplification the sizes of cohorts and of what answered are secret: a `RoundResult` is for the
      coordinator's operator and is not published.
    * Whatever a result says of single clients or of un-noised counts is the simulator's oracle and named so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.coordinator.ports import Oracle
from fedretrain.coordinator.sampling import Participation
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fedretrain.aggregation.server_optimizer import OptimizerState, ServerOptimizer
    from fedretrain.core.params import Layout, Params
    from fedretrain.core.types import ClientFailure, FailureKind


@dataclass(frozen=True)
class ServerState:
    """The coordinator's state.

    Attributes:
        layout: Names and shapes of the shared parameters.
        params: ``[P]`` float32, packed.
        optimizer: The server optimizer's state.
        history: Who took part in charged or released rounds.
        clip_norm: C of the next round; None where updates are not clipped.
        version: How many releases made `params`.
    """

    layout: Layout
    params: NDArray[np.float32]
    optimizer: OptimizerState
    history: Participation
    clip_norm: float | None = None
    version: int = 0

    @classmethod
    def first(
        cls,
        layout: Layout,
        base: Params,
        optimizer: ServerOptimizer,
        population: int,
        clip_norm: float | None = None,
    ) -> ServerState:
        """The state before the first round, for a population of so many devices."""
        return cls(
            layout, layout.pack(base), optimizer.init(layout.size), Participation.none(population), clip_norm
        )

    @property
    def tree(self) -> dict[str, NDArray[np.float32]]:
        """The shared parameters, unpacked (copies)."""
        return self.layout.unpack(self.params)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For a checkpoint: everything but the layout."""
        clip_norm = np.nan if self.clip_norm is None else self.clip_norm
        return {
            "params": self.params,
            "clip_norm": np.array([clip_norm], dtype=np.float64),
            "version": np.array([self.version], dtype=np.int64),
            **{f"optimizer.{name}": leaf for name, leaf in self.optimizer.items()},
            **{f"history.{name}": leaf for name, leaf in self.history.to_arrays().items()},
        }

    @classmethod
    def from_arrays(cls, layout: Layout, arrays: Mapping[str, NDArray[Any]]) -> ServerState:
        """The state of `to_arrays`.

        Raises:
            DataError: If an array is missing or has another shape than the model.
        """
        missing = [
            n
            for n in ("params", "clip_norm", "version", "history.last_round", "history.count")
            if n not in arrays
        ]
        if missing:
            raise DataError(
                f"the checkpoint lacks {missing}", where="server state", fix="use a whole checkpoint"
            )
        if arrays["params"].shape != (layout.size,):
            raise DataError(
                f"the checkpoint has {arrays['params'].size} parameters, the model {layout.size}",
                where="server state",
                fix="resume with the model that made the checkpoint",
            )
        clip_norm = float(arrays["clip_norm"][0])
        return cls(
            layout,
            arrays["params"].astype(np.float32),
            _below(arrays, "optimizer."),
            Participation.from_arrays(_below(arrays, "history.")),
            None if np.isnan(clip_norm) else clip_norm,
            int(arrays["version"][0]),
        )

    def with_participants(self, clients: NDArray[np.int64], round_: int) -> ServerState:
        """The same but for the history: a charged round counts, released or not."""
        return replace(self, history=self.history.record(clients, round_))


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): leaf for name, leaf in arrays.items() if name.startswith(prefix)}


class Outcome(StrEnum):
    """How a round ended."""

    RELEASED = "released"
    ABANDONED = "abandoned"  # below quorum: nothing released, nothing charged, the state as it was
    BUDGET_SPENT = "budget_spent"  # refused before anybody was asked
    DIVERGED = "diverged"  # the step was not finite: not released; with DP it stays charged


@dataclass(frozen=True)
class RoundResult:
    """What is known of a round.

    Attributes:
        round: Its index.
        outcome: How it ended.
        reason: One line for a person where it was not released, or where the cohort was short.
        num_asked: The cohort.
        num_contributed: Updates in the sum.
        failures: One per client that was asked and contributed nothing, by client.
        num_duplicates: Second updates of a client, refused.
        num_shards_refused: Shards that came twice or named strangers, not added.
        clip_norm: C of this round; None where updates are not clipped.
        next_clip_norm: C of the next.
        noise_multiplier: z; 0 without DP.
        noise_stddev: Standard deviation of the noise on each parameter of the released update.
        epsilon: Epsilon after this round's charge, if there is a budget.
        update_norm: Norm of the released update (noise included).
        clip_fraction_oracle: The un-noised fraction of updates that were clipped; outside epsilon.
        oracle: The simulator's knowledge of single clients; outside epsilon.
        bytes_down: Sent to devices.
        bytes_up: Received from devices.
        busy_s: Processor or device seconds of the cohort.
        reply_s: Seconds from asked to replied of those who contributed, by client; empty where nobody measured them.
    """

    round: int
    outcome: Outcome
    reason: str = ""
    num_asked: int = 0
    num_contributed: int = 0
    failures: tuple[ClientFailure, ...] = ()
    num_duplicates: int = 0
    num_shards_refused: int = 0
    clip_norm: float | None = None
    next_clip_norm: float | None = None
    noise_multiplier: float = 0.0
    noise_stddev: float = 0.0
    epsilon: float | None = None
    update_norm: float = 0.0
    clip_fraction_oracle: float = 0.0
    oracle: Oracle = field(default_factory=Oracle)
    bytes_down: int = 0
    bytes_up: int = 0
    busy_s: float = 0.0
    reply_s: Mapping[int, float] = field(default_factory=dict)

    @property
    def failure_counts(self) -> dict[FailureKind, int]:
        """How many clients failed in which way."""
        return dict(Counter(failure.kind for failure in self.failures))
