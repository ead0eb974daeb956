"""When a rollout is looked at, and what each look may spend: all fixed before it starts.

Rules of this file:
    * Stage 0 is shadow, the others are exposure steps: a stage's index is the rollout's step.
    * One alpha per rollout. A candidate that does no harm is rolled back with at most this chance. It is split over the stages, within a stage over
      its looks by alpha spending, and within a look over the guardrails and a smaller part over device clusters (`clusters`).
    * Shares of alpha: 0.05 for shadow (paired over the whole fleet, it needs no more), 0.15 for the stages that prove (what they let by still
      has to be proven harmless), 0.2 in reserve for a stage that a person lets start again, and the rest for the steps between, in proportion to the
      square root of their information f (1 - f): short and wide steps find harm at the least exposure.
    * A candidate beyond its limit is promoted with at most the same chance. Only the proving stages can promote, so they share it; it is not split
      over guardrails, because every one of them must be proven (an intersection-union test).
    * A stage measures afresh: its window begins when it does. Looks that a late tick missed are lost, and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedretrain.core.checks import positive, require
from fedretrain.rollout.clusters import ClusterRules
from fedretrain.rollout.spending import Spending, levels

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESERVE = 0.2
_SHADOW_SHARE = 0.05
_PROVING_SHARE = 0.15


@dataclass(frozen=True)
class GatePolicy:
    """How gates spend their error rate.

    Attributes:
        alpha: The chance of rolling back a candidate that does no harm, and of promoting one at its limit; per rollout, one-sided.
        look_every_s: Time between looks at a stage.
        proof_every_s: Time between looks that may prove, from a stage's shortest time on: few, so that each may spend more.
        harm_spending: How a stage's share of harm's alpha is spent over its looks.
        proof_spending: Likewise for proofs of non-inferiority.
        hold_p: A stage that does not prove is held, up to its longest time, while harm's p-value is below this.
        exact_below: Arms of fewer devices are tested by permutation too, and the larger p-value counts.
        num_permutations: At least as many; a look at a small level draws more.
        sprt_miss: The chance that the test of an absolute limit accepts a candidate beyond it by its margin.
        power: What "can be detected" means when a plan states the smallest detectable regression.
        clusters: What is demanded of each site and device type.
    """

    alpha: float = 0.05
    look_every_s: float = 43_200.0
    proof_every_s: float = 86_400.0
    harm_spending: Spending = Spending.EARLY
    proof_spending: Spending = Spending.OBRIEN_FLEMING
    hold_p: float = 0.03
    exact_below: int = 200
    num_permutations: int = 2_000
    sprt_miss: float = 0.05
    power: float = 0.8
    clusters: ClusterRules = field(default_factory=ClusterRules)

    def __post_init__(self) -> None:
        require(0.0 < self.alpha < 0.5, f"alpha is {self.alpha}", key="gate.alpha", fix="give 0.001 to 0.2")
        positive("gate.look_every_s", self.look_every_s)
        positive("gate.proof_every_s", self.proof_every_s)
        require(0.0 <= self.hold_p <= 0.5, f"{self.hold_p} is not in 0 to 0.5", key="gate.hold_p")
        require(self.exact_below >= 0, f"{self.exact_below} devices", key="gate.exact_below")
        require(
            100 <= self.num_permutations <= 100_000,
            f"{self.num_permutations} permutations",
            key="gate.num_permutations",
            fix="give 100 to 100000",
        )
        require(0.0 < self.sprt_miss < 0.5, f"{self.sprt_miss} is not in (0, 0.5)", key="gate.sprt_miss")
        require(0.0 < self.power < 1.0, f"{self.power} is not in (0, 1)", key="gate.power")


@dataclass(frozen=True)
class Stage:
    """A part of a rollout that is judged: shadow, or one exposure step.

    Attributes:
        name: For people, for example ``"canary"``.
        fraction: Devices that run the candidate (in shadow: that score it), 0 to 1.
        min_s: It passes no sooner.
        max_s: It is looked at no later.
        proves: Whether passing it needs proof that the regression is below the limit.
    """

    name: str
    fraction: float
    min_s: float
    max_s: float
    proves: bool = False

    def __post_init__(self) -> None:
        require(0.0 < self.fraction <= 1.0, f"fraction {self.fraction}", key=f"rollout.{self.name}")
        require(
            0.0 < self.min_s <= self.max_s,
            f"lasts from {self.min_s} to {self.max_s} s",
            key=f"rollout.{self.name}",
            fix="give 0 < min_s <= max_s",
        )


@dataclass(frozen=True)
class Look:
    """One look at one stage.

    Attributes:
        stage: Index of the stage.
        at_s: Time since the stage began.
        harm_level: Nominal one-sided level of harm, of all guardrails and clusters together.
        proof_level: Nominal one-sided level of each guardrail's proof; 0 where the stage does not prove or may not pass yet.
        may_pass: Whether the stage has lasted long enough to pass.
        last: Whether it is the stage's last look.
    """

    stage: int
    at_s: float
    harm_level: float
    proof_level: float
    may_pass: bool
    last: bool


@dataclass(frozen=True)
class LookPlan:
    """Every look of a rollout, in order.

    Attributes:
        policy: How the levels came about.
        stages: What is judged.
        looks: In order of stage and time.
        seed: Of the permutations.
    """

    policy: GatePolicy
    stages: tuple[Stage, ...]
    looks: tuple[Look, ...]
    seed: int = 0

    def due(self, stage: int, elapsed_s: float) -> int | None:
        """Index of the newest look that is due in a stage that has lasted `elapsed_s`; None before its first."""
        found = None
        for index, look in enumerate(self.looks):
            if look.stage == stage and look.at_s <= elapsed_s:
                found = index
        return found


def plan_looks(policy: GatePolicy, stages: Sequence[Stage], *, seed: int = 0) -> LookPlan:
    """Fix the looks and their levels before the start.

    Args:
        policy: How the error rate is spent.
        stages: What is judged, in order.
        seed: Of the permutations.

    Raises:
        ConfigError: If there is no stage, or none proves.
    """
    require(bool(stages), "a rollout without a stage", key="rollout.steps")
    num_proving = sum(stage.proves for stage in stages)
    require(
        num_proving > 0,
        "no stage proves that the candidate is not worse",
        key="rollout.steps",
        fix="let the last step prove",
    )
    looks: list[Look] = []
    for index, (stage, share) in enumerate(zip(stages, _shares(stages), strict=True)):
        proof = policy.alpha / num_proving if stage.proves else 0.0
        looks += _looks(policy, index, stage, policy.alpha * share, proof)
    return LookPlan(policy, tuple(stages), tuple(looks), seed)


def _shares(stages: Sequence[Stage]) -> list[float]:
    """Each stage's share of harm's alpha."""
    proving = [index for index, stage in enumerate(stages) if index and stage.proves]
    others = [index for index, stage in enumerate(stages) if index and not stage.proves]
    shares = [_SHADOW_SHARE if index == 0 else 0.0 for index in range(len(stages))]
    left = 1.0 - _RESERVE - (_SHADOW_SHARE if len(stages) > 1 else 0.0)
    if len(stages) == 1:
        return [left]
    for index in proving:
        shares[index] = (_PROVING_SHARE if others else left) / len(proving)
    left -= _PROVING_SHARE if proving else 0.0
    weights = {index: math.sqrt(stages[index].fraction * (1.0 - stages[index].fraction)) for index in others}
    for index, weight in weights.items():
        shares[index] = left * weight / sum(weights.values())
    return shares


def _looks(policy: GatePolicy, index: int, stage: Stage, harm: float, proof: float) -> list[Look]:
    """The looks of one stage: at regular times, when it may first pass, and at its end."""
    proving = _times(policy.proof_every_s, stage.min_s, stage.max_s) if proof else ()
    times = sorted({*_times(policy.look_every_s, 0.0, stage.max_s), stage.min_s, *proving})
    harm_levels = levels(policy.harm_spending, tuple(at / stage.max_s for at in times), harm)
    proof_levels: tuple[float, ...] = ()
    if proof:
        proof_levels = levels(policy.proof_spending, tuple(at / stage.max_s for at in proving), proof)
    proof_of = dict(zip(proving, proof_levels, strict=True))
    return [
        Look(index, at, level, proof_of.get(at, 0.0), at >= stage.min_s, at == times[-1])
        for at, level in zip(times, harm_levels, strict=True)
    ]


def _times(every_s: float, start_s: float, end_s: float) -> tuple[float, ...]:
    """Multiples of `every_s` after `start_s` (itself one if positive), and `end_s`."""
    steps = range(1, math.ceil((end_s - start_s) / every_s))
    first = (start_s,) if start_s > 0.0 else ()
    return tuple(sorted({*first, *(start_s + every_s * k for k in steps), end_s}))
