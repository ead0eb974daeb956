"""A job: everything an engine needs to do a case, in a folder, so that any virtual environment can do it.

Rules of this file:
    * Samples lie in the order of the batches (the plan of the reference), so every engine sees the same batches by
      reading from front to back.
    * numpy and the standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """What every engine is asked to do.

    Attributes:
        case: Its name.
        model: Name of the factory in `fedretrain.training.models`.
        model_options: Its hyperparameters.
        input_shape: Of one sample.
        num_outputs: Classes.
        batch_size: B.
        lr: Learning rate of plain SGD.
        rounds: Rounds to measure; one more is run before them as a warm-up.
        personal: Patterns of personal parameters.
        clip_norm: Clip norm of each update; 0: no DP.
        noise_multiplier: Noise standard deviation on the sum, in clip norms.
        block_size: Clients in a block of the batched executor; 0: its own choice.
        advance: True if each round begins from the last one's aggregate (otherwise every round does the same work
            from the same weights).
    """

    case: str
    model: str
    model_options: dict[str, Any]
    input_shape: tuple[int, ...]
    num_outputs: int
    batch_size: int
    lr: float
    rounds: int
    personal: tuple[str, ...] = ()
    clip_norm: float = 0.0
    noise_multiplier: float = 0.0
    block_size: int = 0
    advance: bool = False


@dataclass(frozen=True)
class Problem:
    """The arrays of a job.

    Attributes:
        x: ``[M, *F]`` float32 samples of all clients, client after client, in batch order.
        y: ``[M]`` int64.
        offsets: ``[K + 1]`` where each client begins.
        test_x: ``[T, *F]`` samples for the accuracy (may be empty).
        test_y: ``[T]``.
        weights: Initial parameters by name.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    offsets: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]
    weights: dict[str, NDArray[np.float32]]

    @property
    def num_clients(self) -> int:
        """K."""
        return len(self.offsets) - 1

    def client(self, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Samples and labels of client k, in batch order."""
        rows = slice(int(self.offsets[k]), int(self.offsets[k + 1]))
        return self.x[rows], self.y[rows]


def save(folder: Path, job: Job, problem: Problem) -> None:
    """Write a job."""
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    for name in ("x", "y", "offsets", "test_x", "test_y"):
        np.save(folder / f"{name}.npy", getattr(problem, name))
    np.savez(folder / "weights.npz", **problem.weights)  # type: ignore[arg-type]


def load(folder: Path) -> tuple[Job, Problem]:
    """Read a job; the samples stay mapped to the files."""
    raw = json.loads((folder / "job.json").read_text())
    job = Job(**{**raw, "input_shape": tuple(raw["input_shape"]), "personal": tuple(raw["personal"])})
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="c")
        for name in ("x", "y", "offsets", "test_x", "test_y")
    }
    with np.load(folder / "weights.npz") as stored:
        weights = dict(stored)
    return job, Problem(**arrays, weights=weights)


def save_result(folder: Path, engine: str, result: dict[str, Any], weights: dict[str, NDArray[Any]]) -> None:
    """Write what an engine measured and the weights of its aggregate."""
    np.savez(folder / f"{engine}.npz", **weights)  # type: ignore[arg-type]
    (folder / f"{engine}.json").write_text(json.dumps(result))
