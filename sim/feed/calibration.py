"""How far sensors must shift for a model of the laboratory to feel it: worlds of different seeds take the same shift very differently.

Rules of this file:
    * The yardstick is a linear model of the laboratory's rows (multinomial logistic regression), scored on those rows as drifted sensors
      would report them. It is not the model that is deployed: that one loses about as much, not exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

_STEPS, _RATE = 300, 1.0
_OFFSETS = np.arange(1, 31) / 10.0


def offset_that_costs(loss: float, x: Matrix, y: NDArray[np.int64], *, gain: float, channels: int) -> float:
    """The least offset that costs a linear model so much accuracy.

    Args:
        loss: Of accuracy: 0.35 is 35 points.
        x: ``[N, C]`` the laboratory's rows.
        y: ``[N]`` their classes.
        gain: Relative change of the drifting channels, which comes first.
        channels: The first so many drift.

    Returns:
        In standard deviations of `x`: 0.1 to 3; if none of these costs so much, the one that costs most.
    """
    center, std = x.mean(axis=0), x.std(axis=0)
    weights = _fit((x - center) / std, y)

    def accuracy(offset: float, scale: float) -> float:
        seen = x.copy()
        seen[:, :channels] = scale * x[:, :channels] + offset * std[:channels]
        return float((_scores((seen - center) / std, weights).argmax(axis=1) == y).mean())

    costs = np.array([accuracy(0.0, 1.0) - accuracy(offset, 1.0 + gain) for offset in _OFFSETS])
    enough = np.flatnonzero(costs >= loss)
    return float(_OFFSETS[enough[0] if len(enough) else costs.argmax()])


def _fit(z: Matrix, y: NDArray[np.int64]) -> Matrix:
    """``[C + 1, classes]`` by gradient descent from zero."""
    truth = np.eye(int(y.max()) + 1)[y]
    weights = np.zeros((z.shape[1] + 1, truth.shape[1]))
    rows = np.column_stack([z, np.ones(len(z))])
    for _ in range(_STEPS):
        scores = rows @ weights
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights -= _RATE * (rows.T @ (odds / odds.sum(axis=1, keepdims=True) - truth)) / len(rows)
    return weights


def _scores(z: Matrix, weights: Matrix) -> Matrix:
    scores: Matrix = z @ weights[:-1] + weights[-1]
    return scores
