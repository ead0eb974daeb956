"""Sequential tests over devices: each device enters once, after a fixed exposure, in randomised order.

Rules of this file:
    * A test is a frozen dataclass of hyperparameters with `init` and `update`; the state is a value. Blocks of devices may be of any size: the answer is
      that of feeding them one by one.
    * Devices enter once. D devices looked at again are not new data: for repeated looks at the same devices use `looks` and `spending`.
    * `Sprt` is for absolute limits only; against a control use the other two.

Sources: Wald 1945, https://doi.org/10.1214/aoms/1177731118; Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory
and asymptotic confidence sequences", arXiv 2103.06476, https://arxiv.org/abs/2103.06476; Turner, Ly, Grunwald, "Generic E-variables for exact
sequential k-sample tests that allow for optional stopping", arXiv 2106.02693, https://arxiv.org/abs/2106.02693.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.verdict import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SprtState:
    """Devices seen and the log likelihood ratio of "beyond" over "within"; it stays where it crossed."""

    num_devices: int = 0
    log_ratio: float = 0.0


@dataclass(frozen=True)
class Sprt:
    """Wald's sequential probability ratio test of a normal mean: within `null`, or beyond `alternative`.

    Attributes:
        null: The mean that is still allowed.
        alternative: The mean that is to be found; above or below `null`.
        spread: Standard deviation between device means, known from before.
        alpha: The chance of FAIL at `null`, at most.
        miss: The chance of PASS at `alternative`, at most.
    """

    null: float
    alternative: float
    spread: float
    alpha: float
    miss: float

    def __post_init__(self) -> None:
        if self.null == self.alternative or not self.spread > 0.0:
            raise ValueError(
                f"{self.null} and {self.alternative} with spread {self.spread} cannot be told apart"
            )
        if not (0.0 < self.alpha < 0.5 and 0.0 < self.miss < 0.5):
            raise ValueError(f"error rates {self.alpha} and {self.miss} are not in (0, 0.5)")

    @property
    def upper(self) -> float:
        """FAIL from this log ratio on: log((1 - miss) / alpha)."""
        return math.log((1.0 - self.miss) / self.alpha)

    @property
    def lower(self) -> float:
        """PASS from this log ratio down: log(miss / (1 - alpha))."""
        return math.log(self.miss / (1.0 - self.alpha))

    def init(self) -> SprtState:
        """No device seen."""
        return SprtState()

    def update(self, state: SprtState, value_K: NDArray[np.float64]) -> SprtState:
        """The state with devices added, in the order given; those after a decision change nothing."""
        if not len(value_K) or self.verdict(state) is not Verdict.INCONCLUSIVE:
            return state
        gap, middle = self.alternative - self.null, 0.5 * (self.alternative + self.null)
        path_K = state.log_ratio + np.cumsum(gap * (value_K - middle)) / self.spread**2
        crossed = np.flatnonzero((path_K >= self.upper) | (path_K <= self.lower))
        last = int(crossed[0]) if len(crossed) else len(path_K) - 1
        return SprtState(state.num_devices + last + 1, float(path_K[last]))

    def verdict(self, state: SprtState) -> Verdict:
        """FAIL beyond the limit, PASS within it."""
        if state.log_ratio >= self.upper:
            return Verdict.FAIL
        return Verdict.PASS if state.log_ratio <= self.lower else Verdict.INCONCLUSIVE


@dataclass(frozen=True)
class Moments:
    """Running count, mean and sum of squared deviations."""

    num_devices: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value_K: NDArray[np.float64]) -> Moments:
        """The moments with values added."""
        if not len(value_K):
            return self
        num, mean = len(value_K), float(value_K.mean())
        total, gap = self.num_devices + num, mean - self.mean
        squares = (
            self.squares + float(((value_K - mean) ** 2).sum()) + gap * gap * self.num_devices * num / total
        )
        return Moments(total, self.mean + gap * num / total, squares)


@dataclass(frozen=True)
class ConfidenceSequence:
    """An asymptotic confidence sequence for a mean: an interval valid at every device count at once.

    Feed it `pseudo_outcomes`: then it is about the difference of two arms.

    Attributes:
        alpha: The chance that the one-sided bound ever fails, for each side.
        tightest_at: The device count at which the bounds are made tightest.
        burn_in: No bounds before this many devices: the theory is a central limit theorem's.
    """

    alpha: float = 0.05
    tightest_at: int = 500
    burn_in: int = 50

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 0.5 or self.tightest_at < 1 or self.burn_in < 2:
            raise ValueError(f"an impossible confidence sequence: {self}")

    def init(self) -> Moments:
        """No device seen."""
        return Moments()

    def update(self, state: Moments, value_K: NDArray[np.float64]) -> Moments:
        """The state with devices added."""
        return state.add(value_K)

    def bounds(self, state: Moments) -> tuple[float, float]:
        """Lower and upper bound of the mean, each valid at all counts from `burn_in` on; infinite before.

        The one-sided boundary of arXiv 2103.06476, appendix B: with rho the mixture's precision,
        sd * sqrt(2 (n rho^2 + 1) / (n^2 rho^2) * log(1 + sqrt(n rho^2 + 1) / (2 alpha))).
        """
        num = state.num_devices
        if num < self.burn_in:
            return -math.inf, math.inf
        grown = num * self._rho_squared + 1.0
        variance = state.squares / num
        log_term = math.log(1.0 + math.sqrt(grown) / (2.0 * self.alpha))
        half = math.sqrt(variance * 2.0 * grown / (num * num * self._rho_squared) * log_term)
        return state.mean - half, state.mean + half

    @property
    def _rho_squared(self) -> float:
        """The precision that is tightest at `tightest_at`, to first order (arXiv 2103.06476, appendix B; 2 alpha for one side)."""
        log_alpha = -2.0 * math.log(2.0 * self.alpha)
        return (log_alpha + math.log(log_alpha + 1.0)) / self.tightest_at


def pseudo_outcomes(
    worse_K: NDArray[np.float64], exposed_K: NDArray[np.bool_], exposed_fraction: float
) -> NDArray[np.float64]:
    """One number per device whose mean is the regression: inverse-propensity weighted outcomes.

    Args:
        worse_K: ``[K]`` the device's outcome, higher is worse, less what is predicted without knowing its arm (its own record from
            before): the prediction removes variance, never the effect.
        exposed_K: ``[K]`` whether it runs the candidate, drawn at random.
        exposed_fraction: The chance of that.
    """
    weight_K = np.where(exposed_K, 1.0 / exposed_fraction, -1.0 / (1.0 - exposed_fraction))
    return weight_K * worse_K


@dataclass(frozen=True)
class BinaryState:
    """What the e-process has seen: successes and failures of each arm, and the log of its wealth.

    Attributes:
        treated: (worse, not worse) of the treated devices.
        control: Likewise of the control.
        log_wealth: Logarithm of the e-value.
        most: Its running maximum.
    """

    treated: tuple[int, int] = (0, 0)
    control: tuple[int, int] = (0, 0)
    log_wealth: float = 0.0
    most: float = 0.0


@dataclass(frozen=True)
class SafeTwoProportions:
    """The two-sample safe e-process for a binary outcome per device ("did worse than its own record", "failed its check").

    Null: the treated arm's chance is the control's. E-values multiply over blocks, and by Ville's inequality the wealth ever reaches 1/alpha
    with chance at most alpha under the null, whatever the looks.

    Attributes:
        alpha: The chance of FAIL under the null.
        prior: Pseudo-count on each side of each arm (0.18 is the authors' choice of least regret).
    """

    alpha: float = 0.05
    prior: float = 0.18

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0 or not self.prior > 0.0:
            raise ValueError(f"an impossible e-process: {self}")

    def init(self) -> BinaryState:
        """No device seen."""
        return BinaryState()

    def update(
        self, state: BinaryState, treated_K: NDArray[np.bool_], control_L: NDArray[np.bool_]
    ) -> BinaryState:
        """The state with one block added: the devices of each arm that entered together, True is worse."""
        num_K, num_L = len(treated_K), len(control_L)
        ones_K, ones_L = int(treated_K.sum()), int(control_L.sum())
        block_K, block_L = (ones_K, num_K - ones_K), (ones_L, num_L - ones_L)
        log_wealth = state.log_wealth
        if num_K and num_L:  # a block with one arm says nothing about the difference
            log_wealth += self._log_e(state, block_K, block_L)
        treated, control = _add(state.treated, block_K), _add(state.control, block_L)
        return BinaryState(treated, control, log_wealth, max(state.most, log_wealth))

    def verdict(self, state: BinaryState) -> Verdict:
        """FAIL once the wealth has reached 1/alpha. It never passes: absence of evidence is not evidence."""
        return Verdict.FAIL if state.most >= -math.log(self.alpha) else Verdict.INCONCLUSIVE

    def _log_e(self, state: BinaryState, block_K: tuple[int, int], block_L: tuple[int, int]) -> float:
        """Log e-value of one block: estimated arms over the one point of the null closest to them.

        The point is the arms' average weighted with their numbers in the block; the estimates use earlier blocks alone, and equal each other where
        the treated arm looks no worse (one-sided: the factor is then 1).
        """
        share_K, share_L = self._estimate(state.treated), self._estimate(state.control)
        if share_K <= share_L:
            return 0.0
        num_K, num_L = sum(block_K), sum(block_L)
        share = (num_K * share_K + num_L * share_L) / (num_K + num_L)
        return _log_likelihood(block_K, share_K, share) + _log_likelihood(block_L, share_L, share)

    def _estimate(self, seen: tuple[int, int]) -> float:
        return (seen[0] + self.prior) / (sum(seen) + 2.0 * self.prior)


def _add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _log_likelihood(block: tuple[int, int], share: float, null: float) -> float:
    """Log likelihood ratio of a block of (ones, zeros) under `share` over that under `null`."""
    return block[0] * math.log(share / null) + block[1] * math.log((1.0 - share) / (1.0 - null))
