"""Named statistics of a window, vectorised over rows and channels; numpy only.

Each function takes windows ``[N, T, C]`` (finite) and returns ``[N, K, C]``: K values for each channel.
The layout of the answer is statistic-major, so that a model reads "mean of every channel, then std ...".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Windows = NDArray[np.floating[Any]]

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
NUM_BANDS = 6
AUTOCORRELATION_LAGS = (0.05, 0.1, 0.2, 0.4)  # of the window's length: 0.2 s to 1.6 s of a 4-second window


def _zero_crossings(x: Windows) -> Windows:
    """Share of neighbouring samples on different sides of the window's mean."""
    above = x > x.mean(axis=1, keepdims=True)
    crossings: Windows = (above[:, 1:] != above[:, :-1]).mean(axis=1, dtype=np.float64)[:, None]
    return crossings


def band_edges(length: int, num_bands: int = NUM_BANDS) -> NDArray[np.int64]:
    """Edges of the frequency bands in bins of the real FFT of `length` samples, roughly octaves.

    The bin 0 (the mean) belongs to no band. Band b holds the bins ``edges[b] .. edges[b + 1] - 1``.
    """
    top = length // 2 + 1
    edges = np.round(np.geomspace(1, top, num_bands + 1)).astype(np.int64)
    return np.maximum.accumulate(np.maximum(edges, np.minimum(np.arange(1, num_bands + 2), top)))


def _bands(x: Windows) -> Windows:
    """Power in roughly octave-wide frequency bands, as a share of the variance's scale (root mean square)."""
    power = np.abs(np.fft.rfft(x, axis=1)) ** 2 * (2.0 / x.shape[1] ** 2)
    edges = band_edges(x.shape[1])
    sums = np.concatenate([np.zeros_like(power[:, :1]), np.cumsum(power, axis=1)], axis=1)
    bands: Windows = np.sqrt(np.maximum(sums[:, edges[1:]] - sums[:, edges[:-1]], 0.0))
    return bands


def _autocorrelation(x: Windows) -> Windows:
    """Correlation of the window with itself a few lags later."""
    centred = x - x.mean(axis=1, keepdims=True)
    scale = np.square(centred).mean(axis=1) + 1e-12
    lags = [max(1, round(lag * x.shape[1])) for lag in AUTOCORRELATION_LAGS]
    found: Windows = np.stack(
        [(centred[:, lag:] * centred[:, :-lag]).mean(axis=1) / scale for lag in lags], axis=1
    )
    return found


def _quantiles(x: Windows) -> Windows:
    """A few quantiles."""
    quantiles: Windows = np.quantile(x, QUANTILES, axis=1).transpose(1, 0, 2)
    return quantiles


def _skewness(x: Windows) -> Windows:
    """Third standardised moment, 0 for a constant window."""
    centred = x - x.mean(axis=1, keepdims=True)
    std = np.sqrt(np.square(centred).mean(axis=1)) + 1e-6
    skewness: Windows = ((centred**3).mean(axis=1) / std**3)[:, None]
    return skewness


def _correlations(x: Windows) -> Windows:
    """Pearson correlation of every pair of channels: ``[N, pairs, 1]``; 0 where a channel is constant."""
    centred = x - x.mean(axis=1, keepdims=True)
    unit = centred / (np.sqrt(np.square(centred).sum(axis=1, keepdims=True)) + 1e-9)
    first, second = np.triu_indices(x.shape[2], 1)
    pairs: Windows = np.einsum("ntc,ntd->ncd", unit, unit)[:, first, second]
    return pairs[:, :, None]


FUNCTIONS: dict[str, Callable[[Windows], Windows]] = {
    "mean": lambda x: x.mean(axis=1)[:, None],
    "std": lambda x: x.std(axis=1)[:, None],
    "min": lambda x: x.min(axis=1)[:, None],
    "max": lambda x: x.max(axis=1)[:, None],
    "median": lambda x: np.median(x, axis=1)[:, None],
    "quantiles": _quantiles,
    "energy": lambda x: np.square(x).mean(axis=1)[:, None],
    "rms": lambda x: np.sqrt(np.square(x).mean(axis=1))[:, None],
    "jerk": lambda x: np.abs(np.diff(x, axis=1)).mean(axis=1)[:, None],
    "skewness": _skewness,
    "zero_crossings": _zero_crossings,
    "bands": _bands,
    "autocorrelation": _autocorrelation,
    "correlations": _correlations,
}
"""Every statistic by name."""

_PARTS = {
    "quantiles": tuple(f"q{round(100 * q)}" for q in QUANTILES),
    "bands": tuple(f"band{b}" for b in range(NUM_BANDS)),
    "autocorrelation": tuple(f"acf{round(100 * lag)}" for lag in AUTOCORRELATION_LAGS),
}


def names_of(function: str, channels: Sequence[str]) -> list[str]:
    """The names of a statistic's values, in the order in which `compute` gives them."""
    if function == "correlations":
        return [f"corr({a},{b})" for i, a in enumerate(channels) for b in channels[i + 1 :]]
    return [f"{part}({channel})" for part in _PARTS.get(function, (function,)) for channel in channels]


def check(functions: Sequence[str]) -> None:
    """Refuse an unknown statistic.

    Raises:
        ConfigError: Naming it and the known ones.
    """
    for name in functions:
        if name not in FUNCTIONS:
            raise ConfigError(f"there is no statistic {name!r}", fix=f"choose from {', '.join(FUNCTIONS)}")


def compute(x: Windows, functions: Sequence[str]) -> NDArray[np.float32]:
    """The named statistics of every window, side by side: ``[N, F]``.

    Args:
        x: ``[N, T, C]`` finite windows.
        functions: Names out of `FUNCTIONS`.
    """
    if not len(x):
        width = sum(FUNCTIONS[name](np.zeros((1, *x.shape[1:]))).size for name in functions)
        return np.zeros((0, width), dtype=np.float32)
    parts = [FUNCTIONS[name](x).reshape(len(x), -1) for name in functions]
    return np.concatenate(parts, axis=1).astype(np.float32)
