"""What runs local training: one protocol, two executors.

Rules of this file:
    * Executors differ in speed and in nothing else: same batches, same numbers to rounding.
    * torch stays inside: what goes in and comes out is numpy.
    * A model that an executor cannot serve is refused by name (`UnsupportedModelError`), never run another way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from fedretrain.core.ids import ClientId
    from fedretrain.core.params import Params
    from fedretrain.core.types import ClientData, UpdateBlock
    from fedretrain.training.config import LocalTraining
    from fedretrain.training.models import ModelBundle
    from fedretrain.training.task import LocalTask


@dataclass(frozen=True)
class ClientWork:
    """One client's part of a round.

    Attributes:
        client: Who.
        data: Its labelled samples.
        personal: ``[Q]`` float32 packed personal state, or None for a device that has none yet.
        seed: 0 to 2**64 - 1, of all its randomness in this round.
    """

    client: ClientId
    data: ClientData
    personal: NDArray[np.float32] | None
    seed: int


class Executor(Protocol):
    """Runs a `LocalTask` for many clients."""

    def train(self, shared: Params, work: Sequence[ClientWork]) -> Iterator[UpdateBlock]:
        """Train every client from the same shared parameters.

        A client without samples takes no step: its delta is 0 and its loss NaN. The loss of a client is the mean over
        the samples of all its steps (the sum of step loss x samples in the batch, by the sum of samples).

        Args:
            shared: The global model: the shared names of the task.
            work: Who trains, on what.

        Yields:
            Blocks of updates; `UpdateBlock.clients` says who is in each. Every client is in one block.
        """
        ...

    def refit(self, shared: Params, work: Sequence[ClientWork]) -> NDArray[np.float32]:
        """Fit personal state alone to the given shared parameters.

        Returns:
            ``[K, Q]`` new personal states, in the order of `work`.
        """
        ...

    def predict(
        self, shared: Params, work: Sequence[ClientWork], *, personalized: bool
    ) -> list[NDArray[np.float32]]:
        """Outputs of each client's model on its own samples; labels are not read.

        Args:
            shared: The global model.
            work: Whose samples.
            personalized: With each client's personal state (a client without any uses the global model), or
                with the global model.

        Returns:
            ``[N, outputs]`` of each client (logits or values), in the order of `work`.
        """
        ...


def executor_for(
    name: str, task: LocalTask, model: ModelBundle, local: LocalTraining, *, secret: bool = False
) -> Executor:
    """The executor of a name.

    Args:
        name: ``"each"`` (reference) or ``"batched"``.
        task: The method, from `methods.make_task`.
        model: The model that the task was made for.
        local: How clients train.
        secret: Whether example-level DP draws from the system's entropy, which `each` alone does.

    Raises:
        ConfigError: If there is no such executor, or it cannot draw so.
        UnsupportedModelError: If it cannot serve the model.
    """
    if name == "each":
        from fedretrain.training.each import EachExecutor

        return EachExecutor(task, model, local, secret=secret)
    if name == "batched" and secret and local.example_dp is not None:
        raise ConfigError(
            "the batched executor draws example-level noise from seeds, for simulation",
            where="plan.executor",
            fix="use each on devices",
        )
    if name == "batched":
        from fedretrain.training.batched import BatchedExecutor

        return BatchedExecutor(task, model, local)
    raise ConfigError(f"there is no executor {name!r}", where="executor", fix="use each or batched")
