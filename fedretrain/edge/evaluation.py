"""Two versions on one device's own labelled rows: what it counts for a federated evaluation. The counting is `validation`'s.

Rules of this file:
    * No row is scored by a state that has seen it. Where a version is personalised here, its head is re-fitted for each time
      slice on what was labelled before it (`validation.slices`); the first slice then only trains. Otherwise the whole history
      is replayed (`validation.backtest`).
    * Both versions are treated alike: each with the personal state that the device would have had, or the global model.
    * The rules baseline answers with the shares of the labels that were known before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.inference import Predictor
from fedretrain.core.types import ClientData
from fedretrain.edge.refit import can_refit, refitted
from fedretrain.validation.backtest import History, backtest
from fedretrain.validation.rows import Labelled
from fedretrain.validation.slices import cross_validate

if TYPE_CHECKING:
    from typing import Any, Protocol

    from numpy.typing import NDArray

    from fedretrain.artifacts.package import Package
    from fedretrain.core.params import Params
    from fedretrain.edge.config import RefitConfig
    from fedretrain.edge.example_reads import HeldRows
    from fedretrain.validation.rows import Layout
    from fedretrain.validation.statistics import DeviceStatistics

    class Contender(Protocol):
        """One of the two that are compared."""

        @property
        def learns(self) -> bool:
            """Whether what it answers depends on what was labelled before."""
            ...

        def answers(self, known: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
            """``[A, M]`` probabilities of the asked rows, given the rows whose labels were known."""
            ...


@dataclass(frozen=True, eq=False)
class Version:
    """A model version with this device's personal state.

    Attributes:
        package: Verified.
        rows: What it is asked about.
        config: How personal layers are re-fitted.
        personal: The state that it serves with, where the device cannot re-fit it.
    """

    package: Package
    rows: HeldRows
    config: RefitConfig
    personal: Params

    @property
    def learns(self) -> bool:
        """Whether its personal layers are re-fitted here."""
        return can_refit(self.package)

    def answers(self, known: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Contender`."""
        params = self.personal
        if self.learns:
            data = ClientData(self.rows.x[known], self.rows.y[known])
            params = refitted(self.package, data, self.config)
        predictor = Predictor.of(self.package, personal=params)
        return predictor.judged(self.rows.x[asked])


@dataclass(frozen=True, eq=False)
class Baseline:
    """The rules: the most frequent label, as shares.

    Attributes:
        rows: What it is asked about.
        num_classes: M.
    """

    rows: HeldRows
    num_classes: int
    learns = True

    def answers(self, known: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `Contender`; every class alike before any label was known."""
        count = np.bincount(self.rows.y[known], minlength=self.num_classes)
        share = count / len(known) if len(known) else np.full(self.num_classes, 1.0 / self.num_classes)
        return np.tile(share, (len(asked), 1))


def count_here(
    layout: Layout, rows: HeldRows, candidate: Contender, champion: Contender, *, device: int, group: int
) -> DeviceStatistics:
    """The statistics of one device; of no row where all of them only train.

    Args:
        layout: The cells.
        rows: The device's, in the order of time.
        candidate: Under trial.
        champion: What it is held against.
        device: Number of the device.
        group: Of its device type.

    Raises:
        DataError: If a label is no class of the layout, or a version cannot be run on the rows.
    """
    num = len(rows)
    delay = np.maximum(rows.label_at_N - rows.at_N, 0.0)
    labelled = Labelled(np.full(num, device), np.full(num, group), rows.at_N, delay, rows.y)
    if layout.cuts_at and (candidate.learns or champion.learns):
        return cross_validate(layout, labelled, candidate.answers, champion.answers)
    nothing, everything = np.zeros(0, np.int64), np.arange(num)
    history = History(labelled, rows.x)
    return backtest(
        layout,
        [history],
        lambda _: candidate.answers(nothing, everything),
        lambda _: champion.answers(nothing, everything),
    )
