"""The bins of a fleet: fixed with the champion, so that counts of any device and hour can be added.

Rules of this file:
    * Edges are quantiles of the champion's baseline, never equal widths: one outlier moves one edge, while it would
      push all the rest of an equal-width histogram into a single bin.
    * The outer bins are open and a missing value has a cell of its own: no value is ever dropped or clamped, so the
      counts of a feature add up to the rows seen.
    * Bins are told apart by their content (`digest`); counts on different bins are never added.

Shapes: N rows, F features, B bins, E = B + 1 edges, C = B + 3 cells.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

MAX_BINS = 250
"""The most bins of a feature: a cell's index fits into a byte."""


@dataclass(frozen=True, eq=False)
class Bins:
    """Where each feature's cells begin and end.

    A numeric feature has the cells ``[under, b_1 .. b_B, over, missing]``: under is ``x < e_0``, ``b_i`` holds
    ``e_{i-1} <= x < e_i`` (``b_B`` its upper edge too), over is ``x > e_B``, missing is NaN. Repeated edges leave a
    cell empty. A categorical feature has ``[code_1 .. code_B, other, unseen, missing]``: its B most frequent codes (cells
    without a code stay empty), any other code of the baseline, a code that the baseline lacks, NaN.

    Attributes:
        names: F names.
        edges_FE: ``[F, B + 1]`` ascending edges in the feature's unit; NaN in the row of a categorical feature.
        low_F: ``[F]`` the least value that the schema allows, -inf where it is open.
        high_F: ``[F]`` the greatest, inf where it is open.
        categories: For each categorical feature, every code of the baseline, the most frequent first.
    """

    names: tuple[str, ...]
    edges_FE: NDArray[np.float64]
    low_F: NDArray[np.float64]
    high_F: NDArray[np.float64]
    categories: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.names)
        if (
            not count
            or self.edges_FE.ndim != 2
            or len(self.edges_FE) != count
            or not self.low_F.shape == self.high_F.shape == (count,)
        ):
            raise DataError(f"bins of {count} names, edges {self.edges_FE.shape}", where="bins")
        if len(set(self.names)) != count or not set(self.categories) <= set(self.names):
            raise DataError("the names of the bins are not unique, or lack a categorical one", where="bins")
        numeric = self.edges_FE[self.is_numeric]
        if not np.all(np.isfinite(numeric)) or np.any(np.diff(numeric, axis=1) < 0):
            raise DataError("the edges of a feature do not ascend", where="bins")
        _check_num_bins(self.edges_FE.shape[1] - 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bins) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.names)

    @property
    def num_cells(self) -> int:
        """C: the bins, under, over and missing."""
        return int(self.edges_FE.shape[1]) + 2

    @cached_property
    def is_numeric(self) -> NDArray[np.bool_]:
        """``[F]`` which features are numeric."""
        return np.array([name not in self.categories for name in self.names], dtype=bool)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything above, 64 hexadecimal digits: equal bins, and only those, share it."""
        content = hashlib.sha256()
        for position, name in enumerate(self.names):
            limits = [*self.edges_FE[position], self.low_F[position], self.high_F[position]]
            codes = self.categories.get(name)
            words = [name, *(float(limit).hex() for limit in limits)]
            if codes is not None:
                words += ["categorical", *(float(code).hex() for code in codes)]
            # Lengths first, so that no name can be mistaken for a number of the feature before it.
            content.update(repr([len(words), *words]).encode())
        return content.hexdigest()


def fit_bins(
    x_NF: NDArray[np.floating],
    names: Sequence[str],
    *,
    num_bins: int = 10,
    low_F: ArrayLike | None = None,
    high_F: ArrayLike | None = None,
    categorical: Sequence[str] = (),
) -> Bins:
    """Bins with about as many baseline rows in each.

    Args:
        x_NF: ``[N, F]`` the champion's baseline; NaN is missing. Infinities are counted but shape no edge.
        names: F names.
        num_bins: B, also how many codes of a categorical feature get a cell of their own.
        low_F: ``[F]`` least values allowed by the schema; none if left out.
        high_F: ``[F]`` greatest values allowed.
        categorical: Names of the features whose values are codes.

    Raises:
        ConfigError: If there are too many bins or too few.
        DataError: If the shapes do not fit, a name is unknown or a feature has no finite value at all.
    """
    _check_num_bins(num_bins)
    x_NF = np.asarray(x_NF)
    names = tuple(names)
    if x_NF.ndim != 2 or x_NF.shape[1] != len(names):
        raise DataError(f"a baseline of shape {x_NF.shape} for {len(names)} names", where="baseline")
    if not set(categorical) <= set(names):
        unknown = sorted(set(categorical) - set(names))
        raise DataError(f"no feature is called {unknown[0]!r}", where="categorical")
    edges_FE = np.full((len(names), num_bins + 1), np.nan)
    categories = {}
    for position, name in enumerate(names):
        column_N = x_NF[:, position].astype(np.float64)
        column_N = column_N[np.isfinite(column_N)]
        if not column_N.size:
            raise DataError(
                "the baseline has no value", where=f"feature {name!r}", fix="leave the feature out"
            )
        if name in categorical:
            categories[name] = _by_frequency(column_N)
        else:
            quantiles_E = np.quantile(column_N, np.linspace(0.0, 1.0, num_bins + 1))
            edges_FE[position] = np.maximum.accumulate(quantiles_E)  # interpolation rounds
    return Bins(names, edges_FE, _limits(low_F, -np.inf, names), _limits(high_F, np.inf, names), categories)


def _check_num_bins(num_bins: int) -> None:
    if not 2 <= num_bins <= MAX_BINS:
        raise ConfigError(f"{num_bins} bins", where="num_bins", fix=f"give a number from 2 to {MAX_BINS}")


def _by_frequency(codes_N: NDArray[np.float64]) -> tuple[float, ...]:
    """The distinct codes, the most frequent first, ties by value."""
    codes, counts = np.unique(codes_N, return_counts=True)
    return tuple(codes[np.argsort(-counts, kind="stable")].tolist())


def _limits(given: ArrayLike | None, default: float, names: Sequence[str]) -> NDArray[np.float64]:
    """``[F]`` limits of the schema; NaN is open."""
    limits_F = np.full(len(names), default) if given is None else np.array(given, dtype=np.float64)
    limits_F[np.isnan(limits_F)] = default
    return limits_F
