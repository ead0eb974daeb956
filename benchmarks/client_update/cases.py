"""The cases: what every engine is asked to do, on which synthetic data.

Rules of this file:
    * Costs do not depend on the samples' values, so they are drawn; `cold_start` draws a problem that can be learnt.
    * A case is the same for every engine, number of clients included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.client_update.job import Job, Problem
from fedretrain.core.rng import generator
from fedretrain.training import models

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_CLASSES = 6
_SAMPLES = 50


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        job: What to do.
        num_clients: K.
        sizes: From K to each client's number of samples.
        learnable: True for a problem with something to learn, and test samples.
        note: What to know when reading the figures.
    """

    job: Job
    num_clients: int
    sizes: Callable[[int], NDArray[np.int64]]
    learnable: bool = False
    note: str = ""

    def problem(self) -> Problem:
        """The arrays of the case; always the same."""
        random, sizes = generator(7), self.sizes(self.num_clients)
        count, shape = int(sizes.sum()), self.job.input_shape
        test = 2000 if self.learnable else 0
        y = random.integers(0, _CLASSES, count + test)
        x = random.normal(size=(count + test, *shape))
        if self.learnable:  # classes are shifted along directions of their own, clients a little along theirs
            centres = random.normal(size=(_CLASSES, *shape)) * 0.35
            x += centres[y]
            owners = np.repeat(np.arange(len(sizes)), sizes)
            x[:count] += (random.normal(size=(len(sizes), *shape)) * 0.2)[owners]
        bundle = getattr(models, self.job.model)(shape, _CLASSES, 1, **self.job.model_options)
        return Problem(
            x[:count].astype(np.float32),
            y[:count],
            np.concatenate([[0], np.cumsum(sizes)]),
            x[count:].astype(np.float32),
            y[count:],
            {name: leaf.numpy() for name, leaf in bundle.first.items()},
        )


def _equal(num_clients: int) -> NDArray[np.int64]:
    return np.full(num_clients, _SAMPLES)


def _ragged(num_clients: int) -> NDArray[np.int64]:
    """Lognormal sizes with a mean near 50 samples: from a few to several hundred."""
    drawn = np.exp(generator(3).normal(-0.32, 0.8, num_clients)) * _SAMPLES
    return np.maximum(1, drawn.astype(np.int64))


_MLP = Job("mlp", "mlp", {"hidden": [64]}, (64,), _CLASSES, batch_size=10, lr=0.05, rounds=5)
_CNN = Job("cnn1d", "cnn1d", {"channels": [32, 64, 72]}, (6, 128), _CLASSES, batch_size=10, lr=0.05, rounds=3)
_CNN_STRIDED = replace(
    _CNN, case="cnn1d_strided", input_shape=(6, 64), model_options={"channels": [32, 64, 72], "stride": 3}
)
_GRU = Job("gru", "gru", {"hidden": 32}, (6, 32), _CLASSES, batch_size=10, lr=0.05, rounds=3)


def _with_dp(name: str) -> Job:
    return replace(_MLP, case=name, clip_norm=1.0, noise_multiplier=1.0)


CASES: dict[str, Case] = {
    case.job.case: case
    for case in (
        Case(_MLP, 400, _equal, note="64-64-6, 4,550 parameters"),
        Case(
            _CNN,
            32,
            _equal,
            note="stride 1, three layers of width 5, 35k parameters, 88 MFLOP forward a step",
        ),
        Case(_CNN_STRIDED, 96, _equal, note="stride 3, three layers of width 5, 35k parameters"),
        Case(_GRU, 96, _equal, note="32 times of 6 channels, hidden 32"),
        Case(replace(_MLP, case="mlp_ragged"), 400, _ragged),
        Case(
            replace(_MLP, case="mlp_fedper", personal=("head.*",)),
            400,
            _equal,
            note="pfl has no personal layers",
        ),
        Case(_with_dp("mlp_dp"), 400, _equal, note="clip and noise on client updates"),
        Case(_with_dp("mlp_ragged_dp"), 400, _ragged, note="clip and noise on client updates"),
        Case(
            replace(_MLP, case="cold_start", rounds=100, advance=True, lr=0.1),
            400,
            _equal,
            learnable=True,
            note="a whole training of 101 rounds, imports and start included",
        ),
    )
}
