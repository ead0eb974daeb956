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

from collections import Counter
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
    from collections.abc import Iterable

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
        devices: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Epsilon of each device after its DP-SGD steps of all rounds.

        A device whose data grow has an entry for each number of examples that it held.

        Args:
            num_examples: ``[E]`` training examples.
            num_steps: ``[E]`` steps taken with so many; 0 for a device that never trained.
            devices: ``[E]`` whose they are, 0 to D - 1; None: each entry is a device of its own.
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
        whose = np.arange(len(num_steps)) if devices is None else devices
        parts: list[list[tuple[int, int]]] = [[] for _ in range(int(whose.max(initial=-1)) + 1)]
        for device, examples, steps in zip(
            whose.tolist(), num_examples.tolist(), num_steps.tolist(), strict=True
        ):
            if steps:
                parts[device].append((examples, steps))
        profiles = [tuple(sorted(part)) for part in parts]
        found = {profile: self._epsilon(profile, kind) for profile in set(profiles)}
        return np.array([found[profile] for profile in profiles], dtype=np.float64)

    def _epsilon(self, profile: tuple[tuple[int, int], ...], kind: AccountantKind) -> float:
        """Epsilon of a device from its numbers of examples and the steps taken with each."""
        if not profile:
            return 0.0
        if kind is AccountantKind.RDP:
            rates = [(float(self.sampling_rate(examples)), steps) for examples, steps in profile]
            return composed_epsilon([(q, self.noise_multiplier, steps) for q, steps in rates], self.delta)
        spent = Spending()
        for examples, steps in profile:
            spent = spent.charge(self._event(examples), steps)
        return spent.epsilon(self.delta, kind)

    def _event(self, num_examples: int) -> PrivacyEvent:
        """One step of a device with so many examples."""
        return PrivacyEvent(
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


def composed_epsilon(steps: Iterable[tuple[float, float, int]], delta: float) -> float:
    """Epsilon of steps of several kinds on one device's examples.

    Renyi divergences of steps that are chosen in view of earlier outputs add up at each order (arXiv 2008.11193), so this
    serves a budget over campaigns whose settings differ.

    Args:
        steps: ``(q, noise multiplier, how many)`` of each kind.
        delta: In (0, 1).
    """
    total = np.zeros(len(WHOLE_ORDERS))
    for q, noise_multiplier, count in steps:
        total = total + count * sampled_rdp(q, noise_multiplier)
    return rdp_epsilon(WHOLE_ORDERS, total, delta) if total.any() else 0.0


@dataclass(frozen=True)
class ExampleCharge:
    """What one update of a device cost its examples: the durable fact of which epsilon is a function.

    Attributes:
        campaign: Which training.
        round: Its round; a repeated one is charged again.
        num_examples: That the device held.
        num_steps: Releases.
        sample_rate: With which an example joined a batch.
        noise_multiplier: Of each release, in clip norms.
        clip_norm: Of one example's gradient; for audit.
        at: Seconds since the epoch.
    """

    campaign: str
    round: int
    num_examples: int
    num_steps: int
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    at: float

    def __post_init__(self) -> None:
        real = 0 < self.sample_rate <= 1 and self.noise_multiplier > 0 and np.isfinite(self.noise_multiplier)
        if not real or self.num_examples < 1 or self.num_steps < 0:
            raise PrivacyError(f"{self} is no charge", where="example privacy", fix="give positive numbers")


@dataclass(frozen=True)
class ExampleBudget:
    """What a device lets its examples cost.

    Attributes:
        epsilon: The most; 0: charged without a limit.
        delta: Of it; below one over the examples of the device.
    """

    epsilon: float = 0.0
    delta: float = 1e-6

    def __post_init__(self) -> None:
        if not (np.isfinite(self.epsilon) and self.epsilon >= 0 and 0 < self.delta < 1):
            raise PrivacyError(
                f"epsilon {self.epsilon}, delta {self.delta}",
                where="training.example_epsilon, training.example_delta",
                fix="give an epsilon of 0 or more and a delta in (0, 1)",
            )

    def spent(self, charges: Iterable[ExampleCharge]) -> float:
        """Epsilon of all charges."""
        kinds: Counter[tuple[float, float]] = Counter()
        for one in charges:
            kinds[one.sample_rate, one.noise_multiplier] += one.num_steps
        return composed_epsilon(((q, z, count) for (q, z), count in sorted(kinds.items())), self.delta)

    def after(self, charges: Iterable[ExampleCharge], charge: ExampleCharge) -> float:
        """Epsilon once `charge` is added.

        Raises:
            PrivacyError: If that is more than the budget, or the delta is too large for so many examples.
        """
        if self.delta * charge.num_examples >= 1:
            raise PrivacyError(
                f"delta {self.delta:g} is not below 1/{charge.num_examples}, this device's examples",
                where="training.example_delta",
                fix=f"take {1 / (10 * charge.num_examples):.1g} or less",
            )
        epsilon = self.spent([*charges, charge])
        if self.epsilon and epsilon > self.epsilon:
            raise PrivacyError(
                f"the example budget of this device is spent: epsilon would be {epsilon:.3g}, at most "
                f"{self.epsilon:g} is allowed",
                where="training.example_epsilon",
                fix="train without this device, or let its owner allow more",
            )
        return epsilon


EXAMPLE_UNIT, EXAMPLE_RELATION = "one training example", "add_remove"
EXAMPLE_SCOPE = (
    "what this device sends in training, the server included; a device or a person with many examples is protected "
    "less; not telemetry; the number of examples is taken as public"
)


def example_scope_text(worst: float, delta: float) -> str:
    """What stands beside an example-level epsilon."""
    return (
        f"epsilon {worst:.3g} at delta {delta:g} for one training example of a device, being there or not, on the "
        "device with the largest epsilon. Scope: what the device sends, the server included; a device or a person "
        "with many examples is protected less. Apart from the fleet's epsilon."
    )
