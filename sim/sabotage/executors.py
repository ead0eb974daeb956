"""Executors that do what an honest one does, and something wrong besides.

Rules of this file:
    * They wrap an executor; what they do not name they leave to it.
    * Which rows and clients are hit depends on seeds alone, never on how clients are batched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.types import ClientData
from sim.arm import Arm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from fedretrain.core.types import UpdateBlock
    from fedretrain.training.executor import ClientWork, Executor


class Wrapped:
    """Does what another executor does.

    Args:
        executor: The other one.
    """

    def __init__(self, executor: Executor) -> None:
        self._inner = executor

    def train(self, shared: Params, work: Sequence[ClientWork]) -> Iterator[UpdateBlock]:
        """See `Executor`."""
        yield from self._inner.train(shared, work)

    def refit(self, shared: Params, work: Sequence[ClientWork]) -> NDArray[np.float32]:
        """See `Executor`."""
        return self._inner.refit(shared, work)

    def predict(
        self, shared: Params, work: Sequence[ClientWork], *, personalized: bool
    ) -> list[NDArray[np.float32]]:
        """See `Executor`."""
        return self._inner.predict(shared, work, personalized=personalized)


class Mislabelled(Wrapped):
    """Trains on labels of which a share was replaced by the next class.

    Args:
        executor: Trains.
        share: Of the labels of every client.
        num_classes: M.
    """

    def __init__(self, executor: Executor, share: float, num_classes: int) -> None:
        super().__init__(executor)
        self._share, self._num_classes = share, num_classes

    def train(self, shared: Params, work: Sequence[ClientWork]) -> Iterator[UpdateBlock]:
        """See `Executor`."""
        yield from self._inner.train(shared, [self._flip(one) for one in work])

    def _flip(self, one: ClientWork) -> ClientWork:
        draw = rng.uniforms(rng.seeds_for(0, -1, [int(one.client)], "flipped labels"), len(one.data))[0]
        wrong = (one.data.y + 1) % self._num_classes
        y = np.where(draw < self._share, wrong, one.data.y).astype(one.data.y.dtype)
        return replace(one, data=ClientData(one.data.x, y))


class Poisoned(Wrapped):
    """A share of the clients sends its update times a factor.

    Args:
        executor: Trains.
        share: Of the clients; the same ones in every round.
        factor: Below 0: inverted.
    """

    def __init__(self, executor: Executor, share: float, factor: float) -> None:
        super().__init__(executor)
        self._share, self._factor = share, factor

    def train(self, shared: Params, work: Sequence[ClientWork]) -> Iterator[UpdateBlock]:
        """See `Executor`."""
        for block in self._inner.train(shared, work):
            draw = rng.uniforms(rng.seeds_for(0, -1, block.clients, "poisoned clients"), 1)[:, 0]
            factor_K = np.where(draw < self._share, self._factor, 1.0).astype(np.float32)
            yield replace(block, delta_KP=block.delta_KP * factor_K[:, None])


class Garbling(Wrapped):
    """Re-fits personal state to garbage.

    Args:
        executor: Re-fits, before its result is garbled.
        spread: Standard deviation of what is added to every number.
    """

    def __init__(self, executor: Executor, spread: float) -> None:
        super().__init__(executor)
        self._spread = spread

    def refit(self, shared: Params, work: Sequence[ClientWork]) -> NDArray[np.float32]:
        """See `Executor`."""
        fitted = self._inner.refit(shared, work)
        seeds = rng.seeds_for(0, -1, [int(one.client) for one in work], "garbled")
        noise = rng.normals(seeds, fitted.shape[1])
        return (fitted + self._spread * noise).astype(np.float32)


@dataclass(frozen=True)
class TamperedArm(Arm):
    """An arm whose executor is tampered with.

    Attributes:
        tamper: What the executor becomes.
    """

    tamper: Callable[[Executor], Executor]

    @cached_property
    def executor(self) -> Executor:
        """What trains clients."""
        return self.tamper(super().executor)
