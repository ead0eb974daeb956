"""Scores of each client's predictions; numpy only.

Rules of this file:
    * One number for each client; NaN where a score is undefined (no samples, R2 of a constant target).
    * Accuracy, F1 and R2 grow with quality, RMSE and MAE fall; `higher_is_better` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.types import Objective

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Score = Callable[[NDArray[np.float32], NDArray[Any]], float]


def accuracy(outputs: NDArray[np.float32], y: NDArray[Any]) -> float:
    """The fraction of samples whose largest logit is their class.

    Args:
        outputs: ``[N, C]`` logits.
        y: ``[N]`` classes.
    """
    return float(np.mean(outputs.argmax(axis=1) == y)) if len(y) else float("nan")


def macro_f1(outputs: NDArray[np.float32], y: NDArray[Any]) -> float:
    """The mean F1 over the classes that occur among the labels or the predictions; arguments as `accuracy`."""
    if len(y) == 0:
        return float("nan")
    predicted = outputs.argmax(axis=1)
    width = max(outputs.shape[1], int(y.max()) + 1)
    hits = np.bincount(y[predicted == y], minlength=width)
    # F1 = 2 TP / (2 TP + FP + FN): the denominator is how often the class was true plus how often it was said.
    occurrences = np.bincount(y, minlength=width) + np.bincount(predicted, minlength=width)
    met = occurrences > 0
    return float(np.mean(2 * hits[met] / occurrences[met]))


def rmse(outputs: NDArray[np.float32], y: NDArray[Any]) -> float:
    """Root mean square error.

    Args:
        outputs: ``[N, 1]`` values.
        y: ``[N]`` targets.
    """
    return float(np.sqrt(np.mean(np.square(_errors(outputs, y))))) if len(y) else float("nan")


def mae(outputs: NDArray[np.float32], y: NDArray[Any]) -> float:
    """Mean absolute error; arguments as `rmse`."""
    return float(np.mean(np.abs(_errors(outputs, y)))) if len(y) else float("nan")


def r2(outputs: NDArray[np.float32], y: NDArray[Any]) -> float:
    """One minus the share of the targets' variance that is left; arguments as `rmse`."""
    target = y.astype(np.float64)
    spread = float(np.square(target - target.mean()).sum()) if len(y) else 0.0
    return 1.0 - float(np.square(_errors(outputs, y)).sum()) / spread if spread > 0 else float("nan")


_SCORES: dict[Objective, dict[str, Score]] = {
    Objective.CLASSIFICATION: {"accuracy": accuracy, "macro_f1": macro_f1},
    Objective.REGRESSION: {"rmse": rmse, "mae": mae, "r2": r2},
}
_FALLING = frozenset({"rmse", "mae"})


def client_scores(
    objective: Objective, outputs: Sequence[NDArray[np.float32]], labels: Sequence[NDArray[Any]]
) -> dict[str, NDArray[np.float64]]:
    """Every score of the objective for each client.

    Args:
        objective: Which scores.
        outputs: ``[N, C]`` or ``[N, 1]`` of each client.
        labels: ``[N]`` of each client.

    Returns:
        ``[K]`` by name: accuracy and macro_f1, or rmse, mae and r2.
    """
    return {
        name: np.array([score(o, y) for o, y in zip(outputs, labels, strict=True)], dtype=np.float64)
        for name, score in _SCORES[objective].items()
    }


def higher_is_better(name: str) -> bool:
    """Whether a score grows with quality."""
    return name not in _FALLING


def quality(objective: Objective) -> Score:
    """The score, growing with quality, that a device compares two of its models by: accuracy, or minus RMSE."""
    if objective is Objective.CLASSIFICATION:
        return accuracy
    return lambda outputs, y: -rmse(outputs, y)


def _errors(outputs: NDArray[np.float32], y: NDArray[Any]) -> NDArray[np.float64]:
    errors: NDArray[np.float64] = outputs.reshape(len(y)).astype(np.float64) - y
    return errors
