"""Backtest on historical sequences, with critical segments that may not regress.

Rules of this file:
    * A sequence is replayed whole and in its order, one device at a time, through models given as callables: what runs
      here in a pool runs on the device that recorded it.
    * A critical segment is a fixed piece of history and asks what the candidate does on exactly these rows, so it is
      compared exactly: no interval, no chance. A segment that never occurred is INCONCLUSIVE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.validation.config import CheckName
from fedretrain.validation.count import count_rows
from fedretrain.validation.report import Check, Verdict
from fedretrain.validation.rows import Rows
from fedretrain.validation.statistics import CANDIDATE, CHAMPION, merge_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from fedretrain.validation.config import ValidationPolicy
    from fedretrain.validation.rows import Labelled, Layout
    from fedretrain.validation.statistics import DeviceStatistics

    Predict = Callable[[NDArray[Any]], NDArray[np.floating[Any]]]
    """From a device's inputs ``[N, ...]`` in their order to ``[N, M]`` probabilities, or ``[N]`` values."""


@dataclass(frozen=True)
class History:
    """One device's recorded sequence.

    Attributes:
        labelled: ``[N]`` in order of time.
        x: ``[N, ...]`` the models' inputs.
    """

    labelled: Labelled
    x: NDArray[Any]


def backtest(
    layout: Layout, histories: Iterable[History], candidate: Predict, champion: Predict
) -> DeviceStatistics:
    """The statistics of two models over recorded sequences.

    Raises:
        DataError: If a sequence goes back in time.
    """
    return merge_all(layout, [_replay(layout, history, candidate, champion) for history in histories])


def _replay(layout: Layout, history: History, candidate: Predict, champion: Predict) -> DeviceStatistics:
    if np.any(np.diff(history.labelled.at_N) < 0.0):
        raise DataError("a recorded sequence goes back in time", where="at_N", fix="sort it by its instants")
    return count_rows(layout, Rows(history.labelled, candidate(history.x), champion(history.x)))


def check_segments(policy: ValidationPolicy, stats: DeviceStatistics) -> tuple[Check, ...]:
    """One check for each critical segment."""
    return tuple(_check_segment(policy, stats, q) for q in range(len(stats.layout.segments)))


def _check_segment(policy: ValidationPolicy, stats: DeviceStatistics, q: int) -> Check:
    segment, counts = stats.layout.segments[q], stats.segment_DQ4[:, q]
    rows = int(counts.sum())
    if not rows:
        verdict, reason, change = Verdict.INCONCLUSIVE, "no row of it in the data", math.nan
    else:
        change = _change(stats, q)
        verdict = Verdict.PASS if change >= -segment.max_fall else Verdict.FAIL
        won, lost = int(counts[:, 1].sum()), int(counts[:, 2].sum())
        moved = (
            f", {won:,} rows won and {lost:,} lost" if stats.layout.num_classes else " of the squared error"
        )
        reason = (
            f"{change:+.4f} on exactly these {rows:,} rows{moved}; at most {segment.max_fall:g} may be lost"
        )
    return Check(
        name=CheckName.CRITICAL,
        part=segment.name,
        verdict=verdict,
        reason=reason,
        required=CheckName.CRITICAL in policy.required,
        estimate=change,
        margin=segment.max_fall,
        num_devices=int(np.count_nonzero(counts.sum(axis=1))),
        num_rows=rows,
    )


def _change(stats: DeviceStatistics, q: int) -> float:
    """Candidate minus champion on a segment: a share of its rows, or of the champion's squared error."""
    counts = stats.segment_DQ4[:, q].sum(axis=0)
    if stats.layout.num_classes:
        return float(counts[1] - counts[2]) / float(counts.sum())
    loss = stats.segment_loss_DQ2[:, q].sum(axis=0)
    lost = int(loss[CHAMPION] - loss[CANDIDATE])
    return lost / max(1, int(loss[CHAMPION]))
