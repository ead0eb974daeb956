"""Sanity vectors: known raw inputs give known decisions, and the same ones twice.

Rules of this file:
    * Vectors run from raw samples to decision, through whatever the package holds in between.
    * Outputs may differ by a stated tolerance (another processor rounds otherwise), decisions may not differ at all. So a
      vector whose decision hangs by less than the tolerance is refused when it is made.
    * On one machine nothing may differ from one run to the next, not by a bit.
    * Inputs are never a device's samples: they are written or synthetic, for the package carries them everywhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Predict = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class SanityVectors:
    """What a model must answer.

    Attributes:
        inputs: ``[V, ...]`` raw samples.
        outputs: ``[V, M]`` scores of the classes, or ``[V]`` values.
        tolerance: What an output may differ by.
    """

    inputs: NDArray[Any]
    outputs: NDArray[np.float64]
    tolerance: float

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def digest(self) -> str:
        """SHA-256 of inputs, outputs and tolerance, in hex."""
        content = hashlib.sha256(
            repr((self.inputs.dtype.str, self.inputs.shape, self.outputs.shape)).encode()
        )
        for part in (self.inputs, self.outputs.astype(np.float64), np.float64(self.tolerance)):
            content.update(np.ascontiguousarray(part).tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class SanityOutcome:
    """What a model answered.

    Attributes:
        digest: Of the vectors.
        num_vectors: V.
        num_wrong: Vectors with another decision.
        num_off: Vectors with an output off by more than the tolerance.
        num_nonfinite: Vectors with an output that is no finite number.
        largest_error: Over the finite outputs.
        repeatable: Whether a second run gave the same bits.
    """

    digest: str
    num_vectors: int
    num_wrong: int
    num_off: int
    num_nonfinite: int
    largest_error: float
    repeatable: bool

    @property
    def ok(self) -> bool:
        """Whether the model may be installed."""
        return not (self.num_wrong or self.num_off or self.num_nonfinite) and self.repeatable


def make_vectors(predict: Predict, inputs: NDArray[Any], *, tolerance: float = 1e-4) -> SanityVectors:
    """Sanity vectors of a model: its answers to `inputs`.

    Raises:
        DataError: If an answer is not finite, or if a decision is closer than the tolerance allows.
    """
    outputs = np.asarray(predict(inputs), dtype=np.float64)
    if not np.isfinite(outputs).all():
        raise DataError("a sanity vector's output is no finite number", where="sanity.inputs")
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        ranked = np.sort(outputs, axis=1)
        close = np.flatnonzero(ranked[:, -1] - ranked[:, -2] <= 2.0 * tolerance)
        if len(close):
            raise DataError(
                f"the decision of sanity vector {close[0]} is closer than twice the tolerance {tolerance:g}",
                where="sanity.inputs",
                fix="take inputs with clear decisions, or a smaller tolerance",
            )
    return SanityVectors(inputs, outputs, tolerance)


def check_sanity(predict: Predict, vectors: SanityVectors) -> SanityOutcome:
    """Run the vectors twice and compare.

    Args:
        predict: The installed model, from raw samples ``[V, ...]`` to outputs of the vectors' shape.
        vectors: What it must answer.

    Raises:
        DataError: If the outputs have another shape.
    """
    first, second = (np.asarray(predict(vectors.inputs.copy())) for _ in range(2))
    if first.shape != vectors.outputs.shape:
        raise DataError(f"outputs of the shape {first.shape}, not {vectors.outputs.shape}", where="sanity")
    found = first.astype(np.float64).reshape(len(vectors), -1)
    wanted = vectors.outputs.reshape(len(vectors), -1)
    finite = np.isfinite(found).all(axis=1)
    error = np.abs(found[finite] - wanted[finite])
    wrong = found[finite].argmax(axis=1) != wanted[finite].argmax(axis=1)
    return SanityOutcome(
        digest=vectors.digest,
        num_vectors=len(vectors),
        num_wrong=int(np.count_nonzero(wrong)),
        num_off=int(np.count_nonzero((error > vectors.tolerance).any(axis=1))),
        num_nonfinite=int(np.count_nonzero(~finite)),
        largest_error=float(error.max(initial=0.0)),
        repeatable=first.shape == second.shape and first.tobytes() == second.tobytes(),
    )


def count_nonfinite(params: Mapping[str, NDArray[Any]]) -> int:
    """How many weights are NaN or infinite."""
    return sum(int(np.count_nonzero(~np.isfinite(values))) for values in params.values())
