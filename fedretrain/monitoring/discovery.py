"""Which of many features' p-values to believe: false-discovery control.

Rules of this file:
    * The tests of one decision are along the last axis; what is before it are decisions of their own.
    * A feature without a p-value (NaN: no telemetry) is not tested: never chosen, and it does not count among the tests.

Sources: Benjamini and Hochberg 1995, "Controlling the false discovery rate", JRSS B 57(1)
(https://doi.org/10.1111/j.2517-6161.1995.tb02031.x); Benjamini and Yekutieli 2001, "The control of the false discovery
rate in multiple testing under dependency", Annals of Statistics 29(4) (https://doi.org/10.1214/aos/1013699998).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray


def benjamini_hochberg(p_F: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """The features whose null is rejected, with at most a fraction `alpha` of false ones among them in the mean.

    For features that are independent or positively dependent, as sensors of one environment are.

    Args:
        p_F: ``[..., F]`` p-values, NaN where a feature was not tested.
        alpha: The false-discovery rate, between 0 and 1.

    Returns:
        ``[..., F]``.

    Raises:
        ConfigError: If `alpha` is not between 0 and 1.
    """
    return _step_up(np.asarray(p_F, dtype=np.float64), alpha, np.ones_like)


def benjamini_yekutieli(p_F: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """As `benjamini_hochberg`, whatever the dependence of the features, at a price of a factor of about ln F.

    Raises:
        ConfigError: If `alpha` is not between 0 and 1.
    """
    return _step_up(np.asarray(p_F, dtype=np.float64), alpha, _harmonic)


def _harmonic(tested: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of 1/i up to each number of tests, 1 for none."""
    most = int(tested.max(initial=0))
    sums = np.concatenate([[1.0], np.cumsum(1.0 / np.arange(1, most + 1))])
    return np.asarray(sums[tested.astype(np.int64)])


def _step_up(
    p_F: NDArray[np.float64],
    alpha: float,
    penalty: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.bool_]:
    """Reject up to the largest rank k with p_(k) <= alpha k / (m penalty(m))."""
    if not 0.0 < alpha < 1.0:
        raise ConfigError(
            f"a false-discovery rate of {alpha}", where="alpha", fix="give a number between 0 and 1"
        )
    tested = np.sum(~np.isnan(p_F), axis=-1, keepdims=True).astype(np.float64)
    ordered_F = np.sort(p_F, axis=-1)  # NaN last
    rank_F = np.arange(1, p_F.shape[-1] + 1)
    passes_F = ordered_F * tested * penalty(tested) <= alpha * rank_F
    largest = np.max(np.where(passes_F, ordered_F, -1.0), axis=-1, keepdims=True, initial=-1.0)
    rejected_F: NDArray[np.bool_] = p_F <= largest
    return rejected_F
