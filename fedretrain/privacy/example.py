"""Epsilon of DP-SGD on a device: the unit is one example of that device.

Rules of this file:
    * Accounted for each device and reported apart from the fleet's epsilon: another unit, another adversary (here
      even the server that sees the device's update).
    * Batches are Poisson draws of a fixed *expected* size (arXiv:1607.00133): q = expected batch / examples. The
      number of examples is taken as public; under add/remove it changes by one, and q is that of the device's
      own count, as Opacus takes it.
    * A device's steps are declared, not chosen in view of its data; its rounds add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.accountant import (
    WHOLE_ORDERS,
    AccountantKind,
    Spending,
    rdp_epsilon,
    sampled_rdp,
)
from fedretrain.privacy.event import EVERYBODY, PrivacyEvent, Sampling
from fedretrain.privacy.mechanism import Relation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ExampleDp:
    """DP-SGD's settings.

    Attributes:
        noise_multiplier: Noise standard deviation on the sum of clipped gradients, in clip norms.
        clip_norm: Of one example's gradient.
        expected_batch: Expected batch size.
        delta: Below 1 / examples on each device.
    """

    noise_multiplier: float
    clip_norm: float
    expected_batch: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        numbers = (self.noise_multiplier, self.clip_norm, self.expected_batch)
        if not all(np.isfinite(n) and n > 0 for n in numbers) or not 0 < self.delta < 1:
            raise PrivacyError(
                f"{self} cannot be run", where="privacy.example", fix="positive numbers, delta in (0, 1)"
            )

    def sampling_rate(self, num_examples: ArrayLike) -> NDArray[np.float64]:
        """Q of devices with so many examples: at most 1."""
        count = np.maximum(np.asarray(num_examples, np.float64), 1.0)
        return np.minimum(self.expected_batch / count, 1.0)

    def epsilons(
        self,
        num_examples: NDArray[np.int64],
        num_steps: NDArray[np.int64],
        kind: AccountantKind = AccountantKind.RDP,
    ) -> NDArray[np.float64]:
        """Epsilon of each device after its DP-SGD steps of all rounds.

        Args:
            num_examples: ``[D]`` training examples.
            num_steps: ``[D]`` steps taken so far; 0 for a device that never trained.
            kind: Accountant; RDP takes whole orders only, loose where epsilon is in the tens.

        Returns:
            float64 ``[D]``.

        Raises:
            PrivacyError: If delta is not below 1 / examples for a device that trained.
        """
        most = int(np.max(np.where(num_steps > 0, num_examples, 0), initial=0))
        if most * self.delta >= 1:
            raise PrivacyError(
                f"delta {self.delta:g} is not below 1/{most}, the largest device's examples",
                where="privacy.example.delta",
                fix=f"take {1 / (10 * most):.1g} or less",
            )
        pairs, inverse = np.unique(np.stack([num_examples, num_steps], axis=1), axis=0, return_inverse=True)
        each = [self._epsilon(int(examples), int(steps), kind) for examples, steps in pairs]
        return np.asarray(each, np.float64)[inverse.reshape(-1)]

    def _epsilon(self, num_examples: int, num_steps: int, kind: AccountantKind) -> float:
        if num_steps == 0:
            return 0.0
        if kind is AccountantKind.RDP:
            divergences = num_steps * sampled_rdp(
                float(self.sampling_rate(num_examples)), self.noise_multiplier
            )
            return rdp_epsilon(WHOLE_ORDERS, divergences, self.delta)
        event = PrivacyEvent(
            population="device",
            campaign="",
            round=0,
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            relation=Relation.ADD_REMOVE,
            sampling=Sampling.POISSON,
            units=EVERYBODY,
            sampling_fraction=float(self.sampling_rate(num_examples)),
            amplified=True,
            purpose="example",
        )
        return Spending().charge(event, num_steps).epsilon(self.delta, kind)


def example_scope_text(worst: float, delta: float) -> str:
    """What stands beside an example-level epsilon."""
    return (
        f"epsilon {worst:.3g} at delta {delta:g} for one training example of a device, being there or not, on the "
        "device with the largest epsilon. Scope: what the device sends, the server included; a device or a person "
        "with many examples is protected less. Apart from the fleet's epsilon."
    )
