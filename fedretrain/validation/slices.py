"""Time slices and rolling-origin cross-validation: train on what was known, score on what came after.

Rules of this file:
    * Slices are agreed before anybody looks at data, so that devices can count by them without telling their instants.
    * A label trains only if it had *arrived* when the slice under test began: late labels are not known early.
    * Validation never trains: the caller's function is given rows and gives predictions back.

Source: Tashman 2000, "Out-of-sample tests of forecasting accuracy", https://doi.org/10.1016/S0169-2070(00)00065-0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Rows
from fedretrain.validation.statistics import merge_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fedretrain.validation.rows import Labelled, Layout
    from fedretrain.validation.statistics import DeviceStatistics

    FitPredict = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.floating[Any]]]
    """Given the indices of training rows and of test rows, the predictions for the latter."""


def even_cuts(from_at: float, until_at: float, num_slices: int) -> tuple[float, ...]:
    """Instants that cut a period into slices of equal length: one fewer than slices.

    Raises:
        ConfigError: If the period is empty or there is no slice.
    """
    if not from_at < until_at or num_slices < 1:
        raise ConfigError(
            f"{num_slices} slices from {from_at:g} to {until_at:g}", where="validation.num_slices"
        )
    return tuple(float(at) for at in np.linspace(from_at, until_at, num_slices + 1)[1:-1])


@dataclass(frozen=True)
class Fold:
    """One step of the rolling origin.

    Attributes:
        slice: The slice under test.
        from_at: Where it begins: the origin.
        until_at: Where it ends; infinite for the last one.
        gap_s: Rows so shortly before the origin do not train: their windows reach into the test.
    """

    slice: int
    from_at: float
    until_at: float
    gap_s: float = 0.0

    def train(self, labelled: Labelled) -> NDArray[np.int64]:
        """Indices of the rows from before the origin whose labels had arrived by then."""
        known = labelled.at_N + labelled.delay_s_N <= self.from_at
        return np.flatnonzero(known & (labelled.at_N < self.from_at - self.gap_s))

    def test(self, labelled: Labelled) -> NDArray[np.int64]:
        """Indices of the rows under test."""
        return np.flatnonzero((labelled.at_N >= self.from_at) & (labelled.at_N < self.until_at))


def rolling_origin(cuts_at: Sequence[float], *, gap_s: float = 0.0) -> tuple[Fold, ...]:
    """A fold for every slice but the first, which only trains."""
    ends = (*cuts_at[1:], float("inf"))
    return tuple(
        Fold(index + 1, at, until, gap_s) for index, (at, until) in enumerate(zip(cuts_at, ends, strict=True))
    )


def cross_validate(
    layout: Layout, labelled: Labelled, candidate: FitPredict, champion: FitPredict, *, gap_s: float = 0.0
) -> DeviceStatistics:
    """Out-of-time statistics of two ways to make a model (a champion that stays may ignore its training rows).

    Args:
        layout: The cells; its cuts are the origins.
        labelled: One device's rows, or everybody's.
        candidate: Trains on the rows it is given and predicts the others.
        champion: Likewise.
        gap_s: See `Fold`.

    Raises:
        DataError: If there is one slice only, so nothing to train on before a test.
    """
    if not layout.cuts_at:
        raise DataError(
            "one time slice cannot be cross-validated", where="cuts_at", fix="cut the period in two or more"
        )
    parts = []
    for fold in rolling_origin(layout.cuts_at, gap_s=gap_s):
        train, test = fold.train(labelled), fold.test(labelled)
        if len(test):
            rows = Rows(labelled.take(test), candidate(train, test), champion(train, test))
            parts.append(count_rows(layout, rows))
    return merge_all(layout, parts)
