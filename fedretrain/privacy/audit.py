"""Lower bounds on epsilon from what a mechanism really releases.

A privacy proof says "at most"; an audit says "at least". An audit above the claim shows a defect in the mechanism or
in its accounting; one below it proves nothing, but shows by how much a defect could hide.

Rules of this file:
    * Every bound holds with the stated confidence whatever the scores are.
    * A threshold is chosen on one half of the scores and judged on the other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def threshold_audit(
    scores_in: NDArray[np.float64], scores_out: NDArray[np.float64], delta: float, confidence: float = 0.95
) -> float:
    """A lower bound on epsilon from independent runs with and without a canary.

    Any (epsilon, delta)-private mechanism obeys TPR <= e^epsilon FPR + delta and the same for the complements (Kairouz
    et al. 2015), so Clopper-Pearson bounds on both rates bound epsilon from below (arXiv:2101.04535, section 5).

    Args:
        scores_in: ``[N]`` one score of each run with the canary, larger where it seems present.
        scores_out: ``[N]`` without it.
        delta: The claim's delta.
        confidence: That the bound holds.

    Returns:
        The bound, 0 if nothing can be said.
    """
    from scipy.stats import beta

    half_in, half_out = len(scores_in) // 2, len(scores_out) // 2
    risk = (1 - confidence) / 4  # two rates, two directions

    def bound(hits: int, false: int, num_in: int, num_out: int) -> float:
        low = float(beta.ppf(risk, hits, num_in - hits + 1)) if hits else 0.0
        high = float(beta.ppf(1 - risk, false + 1, num_out - false)) if false < num_out else 1.0
        return math.log((low - delta) / high) if low > delta else 0.0

    def both(
        threshold: float, inside: NDArray[np.float64], outside: NDArray[np.float64]
    ) -> tuple[float, float]:
        n_in, n_out = len(inside), len(outside)
        hits, false = int(np.sum(inside > threshold)), int(np.sum(outside > threshold))
        return bound(hits, false, n_in, n_out), bound(n_out - false, n_in - hits, n_out, n_in)

    candidates = np.quantile(
        np.concatenate([scores_in[:half_in], scores_out[:half_out]]), np.linspace(0.01, 0.99, 99)
    )
    best = max(candidates, key=lambda t: max(both(float(t), scores_in[:half_in], scores_out[:half_out])))
    return max(0.0, *both(float(best), scores_in[half_in:], scores_out[half_out:]))


def one_run_audit(
    num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float = 0.95
) -> float:
    """A lower bound on epsilon from one run with many canaries, each in or out by its own fair coin.

    Steinke, Nasr and Jagielski, arXiv:2305.08846, theorem 5.2: against an (epsilon, delta)-private mechanism the number
    of correct guesses is, up to a term in delta, dominated by Binomial(guesses, e^epsilon / (1 + e^epsilon)).

    Args:
        num_canaries: m, coins tossed.
        num_guesses: r, coins on which the auditor committed itself; it may abstain on the rest.
        num_correct: v of them right.
        delta: The claim's delta.
        confidence: That the bound holds.
    """

    def rejected(epsilon: float) -> bool:
        return _p_value(num_canaries, num_guesses, num_correct, epsilon, delta) < 1 - confidence

    if not rejected(0.0):
        return 0.0
    return _largest(rejected)


def _p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """How likely at least `v` right guesses of `r` are under (epsilon, delta); the paper's appendix D."""
    from scipy.stats import binom

    q = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(v - 1, r, q))
    reached = np.cumsum(binom.pmf(v - np.arange(1, v + 1), r, q))
    alpha = float(np.max(reached / np.arange(1, v + 1), initial=0.0))
    return min(1.0, tail + 2 * m * delta * alpha)


def _largest(rejected: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    while rejected(high) and high < 64:
        low, high = high, high * 2
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def guess(scores: NDArray[np.float64], num_each: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An auditor's guesses: ``(canaries guessed in, canaries guessed out)``, the surest `num_each` of either."""
    order = np.argsort(scores, kind="stable")
    return order[len(order) - num_each :], order[:num_each]
