"""How much worse the treated devices are than the control, and how sure that is.

Rules of this file:
    * A contrast is a regression: positive is worse, in the metric's own unit.
    * A small arm is tested by permutation too and the larger p-value counts: exact under randomised exposure, and robust where the variances differ.
      The permutation is only drawn where Student's t alone would reject.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.adjust import adjust
from fedretrain.rollout.permutation import sign_flip_p, two_sample_p
from fedretrain.rollout.tails import student_above, student_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.rollout.metrics import DeviceMeans

MOST_PERMUTATIONS = 1_000_000
_PER_LEVEL = 5.0  # relabellings expected beyond a p-value at its level: it is valid for any number, and sharper for more


@dataclass(frozen=True)
class Exactness:
    """When and how to permute.

    Attributes:
        below: Arms of fewer devices are permuted too.
        num_permutations: At least as many.
        seed: Of the permutations.
        proof_below: Likewise where a proof is wanted; None: as for harm.
    """

    below: int
    num_permutations: int
    seed: int
    proof_below: int | None = None


@dataclass(frozen=True)
class Contrast:
    """A regression with its error.

    Attributes:
        worse_K: ``[K]`` what the treated devices lost: values turned so that higher is worse (paired: the differences).
        worse_L: ``[L]`` the control's; None where paired.
        estimate: Mean regression.
        error: Its standard error.
        dof: Degrees of freedom of Student's t.
        reference: The control's mean in the metric's own direction: what a relative margin is a fraction of.
    """

    worse_K: NDArray[np.float64]
    worse_L: NDArray[np.float64] | None
    estimate: float
    error: float
    dof: float
    reference: float

    def bound(self, level: float) -> float:
        """Half width of a one-sided confidence bound at `level`."""
        return self.error * student_quantile(level, round(self.dof, 1)) if self.error > 0.0 else 0.0

    def harm_p(self, level: float, exact: Exactness) -> float:
        """P-value of "the regression is not above 0"; exact where it matters to a decision at `level`."""
        p = _student_p(self.estimate, self.error, self.dof)
        if p > level:
            return p
        return max(p, self._permuted(self.worse_K, self.worse_L, level, exact, exact.below))

    def proof_p(self, margin: float, level: float, exact: Exactness) -> float:
        """P-value of "the regression is not below `margin`"; exact where it matters to a decision at `level`."""
        p = _student_p(margin - self.estimate, self.error, self.dof)
        if p > level:
            return p
        spared_K = margin - self.worse_K
        spared_L = None if self.worse_L is None else -self.worse_L
        below = exact.below if exact.proof_below is None else exact.proof_below
        return max(p, self._permuted(spared_K, spared_L, level, exact, below))

    def _permuted(
        self,
        first_K: NDArray[np.float64],
        second_L: NDArray[np.float64] | None,
        level: float,
        exact: Exactness,
        below: int,
    ) -> float:
        smaller = len(first_K) if second_L is None else min(len(first_K), len(second_L))
        if smaller >= below:
            return 0.0
        num = int(min(max(exact.num_permutations, _PER_LEVEL / level), MOST_PERMUTATIONS))
        if second_L is None:
            return sign_flip_p(first_K, num_permutations=num, seed=exact.seed)
        return two_sample_p(first_K, second_L, num_permutations=num, seed=exact.seed)


def unpaired(treated: DeviceMeans, control: DeviceMeans, sign: float) -> Contrast:
    """Welch's comparison of two arms, each device adjusted by its own record from before.

    Args:
        treated: At least 2 devices with finite values.
        control: Likewise.
        sign: +1 where higher is worse, -1 where lower is.
    """
    adjusted = adjust(treated, control)
    worse_K, worse_L = sign * adjusted.treated_K, sign * adjusted.control_L
    num_K, num_L = len(worse_K), len(worse_L)
    part_K, part_L = float(worse_K.var(ddof=1)) / num_K, float(worse_L.var(ddof=1)) / num_L
    error = math.sqrt(part_K + part_L)
    below = part_K**2 / (num_K - 1) + part_L**2 / (num_L - 1)
    dof = (part_K + part_L) ** 2 / below if below > 0.0 else float(num_K + num_L - 2)
    estimate = float(worse_K.mean() - worse_L.mean())
    return Contrast(worse_K, worse_L, estimate, error, dof, float(adjusted.control_L.mean()))


def paired(treated: DeviceMeans, control: DeviceMeans, sign: float) -> Contrast:
    """Both models on the same devices' input: one difference per device.

    Args:
        treated: At least 2 devices with finite values.
        control: The same devices in the same order.
        sign: +1 where higher is worse, -1 where lower is.
    """
    worse_K = sign * (treated.value_K - control.value_K)
    num = len(worse_K)
    error = math.sqrt(float(worse_K.var(ddof=1)) / num)
    return Contrast(worse_K, None, float(worse_K.mean()), error, num - 1.0, float(control.value_K.mean()))


def align(treated: DeviceMeans, control: DeviceMeans) -> tuple[DeviceMeans, DeviceMeans]:
    """The devices that both arms have, in one order."""
    if np.array_equal(treated.device_K, control.device_K):
        return treated, control
    _, at_K, at_L = np.intersect1d(treated.device_K, control.device_K, return_indices=True)
    return treated.take(at_K), control.take(at_L)


def _student_p(estimate: float, error: float, dof: float) -> float:
    if error > 0.0:
        return student_above(estimate / error, dof)
    return 0.5 if estimate == 0.0 else float(estimate < 0.0)
