"""The retraining policy: when to retrain, how, and what it may cost, as typed data that a person can edit.

Rules of this file:
    * Frozen dataclasses, enums, tuples and plain values only: `core.build.build(RetrainingPolicy, ...)` makes a policy
      from a policy file, and an impossible one is a `ConfigError` that names the key.
    * The shipped triggers and rules are data like anybody's own; code knows none of them by name.
    * In a list of rules the first one that fits is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedretrain.core.checks import as_tuples, fraction, not_negative, positive, require
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.retraining.signals import (
    Condition,
    DriftScope,
    Op,
    Signals,
    SignalType,
    check_signal,
    check_value,
)


class Mode(StrEnum):
    """What makes a policy want a retrain.

    `hybrid` is `metric` with a schedule as its safety net; `personal_only` wants one for the same causes, but all it
    ever does is refresh personal state on the devices; `always` retrains as often as cool-down and labels let it.
    """

    NEVER = "never"
    SCHEDULED = "scheduled"
    METRIC = "metric"
    HYBRID = "hybrid"
    PERSONAL_ONLY = "personal_only"
    ALWAYS = "always"


class Strategy(StrEnum):
    """How a model is retrained."""

    FULL = "full"
    INCREMENTAL = "incremental"
    ONLINE = "online"
    FEDERATED = "federated"
    PERSONAL_ONLY = "personal_only"


class Where(StrEnum):
    """Where the training runs: on a server-held pool, in a federated campaign, or on each device for itself."""

    POOL = "pool"
    FEDERATED = "federated"
    DEVICE = "device"


class Cause(StrEnum):
    """Why a retrain is wanted."""

    NONE = "none"
    SCHEDULE = "schedule"
    ALWAYS = "always"
    PERSON = "person"  # who asks for a retrain waits for no trigger
    FOLLOW_UP = "follow_up"
    DRIFT = "drift"
    SCORE = "score"
    CONFIDENCE = "confidence"
    KPI = "kpi"
    STRUCTURE = "structure"


class Worse(StrEnum):
    """On which side of its level a signal is bad."""

    HIGHER = "higher"
    LOWER = "lower"


class WhenShort(StrEnum):
    """What to do when the privacy budget does not reach for a federated campaign."""

    DEFER = "defer"
    PERSONAL_ONLY = "personal_only"


@dataclass(frozen=True)
class MetricTrigger:
    """One signal with two levels: fires beyond the upper, is armed again beyond the lower.

    Attributes:
        name: Unique in its policy.
        signal: The field of `Signals` it watches.
        fire_at: The level at which it fires (reached counts), or the truth value.
        rearm_at: The level that the signal must have passed, strictly, before it may fire again; None takes the
            policy's `hysteresis`. A truth value is armed again as soon as it is the other one.
        worse: On which side of `fire_at` the signal is bad.
        cause: What a retrain for it is said to be caused by.
        when: What must hold besides.
    """

    name: str
    signal: str
    fire_at: bool | float
    rearm_at: float | None = None
    worse: Worse = Worse.HIGHER
    cause: Cause = Cause.DRIFT
    when: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, ("when",))
        object.__setattr__(self, "worse", Worse(self.worse))
        object.__setattr__(self, "cause", Cause(self.cause))
        require(bool(self.name), "a trigger without a name", key="name")
        kind = check_signal(self.signal, "signal")
        require(kind is not SignalType.WORD, f"{self.signal} is a word: put it under `when`", key="signal")
        check_value(self.signal, self.fire_at, "fire_at")
        require(
            self.cause not in {Cause.NONE, Cause.SCHEDULE, Cause.ALWAYS, Cause.FOLLOW_UP, Cause.PERSON},
            f"{self.cause.value!r} is no cause of a metric",
            key="cause",
        )
        if self.rearm_at is None:
            return
        require(
            kind is SignalType.NUMBER, "a truth value has no second level", key="rearm_at", fix="leave it out"
        )
        check_value(self.signal, self.rearm_at, "rearm_at")
        beyond = self._sign * (self.rearm_at - self.fire_at)
        require(
            beyond <= 0,
            f"{self.name} would be armed again at {self.rearm_at}, on the bad side of {self.fire_at}",
            key="rearm_at",
        )

    @property
    def _sign(self) -> int:
        return 1 if self.worse is Worse.HIGHER else -1

    def fires(self, signals: Signals) -> bool:
        """Whether the signal is at or beyond `fire_at` and all else holds; what is unknown never fires."""
        found = signals.value(self.signal)
        if found is None or not all(condition.holds(signals) for condition in self.when):
            return False
        if isinstance(self.fire_at, bool):
            return found is self.fire_at
        return self._sign * (float(found) - self.fire_at) >= 0

    def level(self, hysteresis: float) -> float:
        """The level beyond which it is armed again."""
        if self.rearm_at is not None:
            return self.rearm_at
        return float(self.fire_at) - self._sign * hysteresis * abs(float(self.fire_at))

    def is_calm(self, signals: Signals, hysteresis: float) -> bool:
        """Whether the signal is back beyond the lower level; what is unknown is not calm."""
        found = signals.value(self.signal)
        if found is None:
            return False
        if isinstance(self.fire_at, bool):
            return found is not self.fire_at
        return self._sign * (float(found) - self.level(hysteresis)) < 0


@dataclass(frozen=True)
class StrategyRule:
    """Under these conditions, retrain like this.

    Attributes:
        name: Unique in its policy; evidence names it.
        strategy: What to do.
        when: All must hold; none always fits.
        causes: For which causes it is meant; empty for every one.
        supersede: Whether it may stop a rollout that is in progress (otherwise the retrain waits for its end).
        min_labels: Labels since the last retrain; None takes the policy's.
        then_federated: Whether what a pool made is the start of a federated campaign.
        use_reserve: Whether it may spend the reserve of the privacy budget.
        when_short: What becomes of it if the privacy budget does not reach; None takes the policy's.
    """

    name: str
    strategy: Strategy
    when: tuple[Condition, ...] = ()
    causes: tuple[Cause, ...] = ()
    supersede: bool = False
    min_labels: int | None = None
    then_federated: bool = False
    use_reserve: bool = False
    when_short: WhenShort | None = None

    def __post_init__(self) -> None:
        as_tuples(self, ("when", "causes"))
        object.__setattr__(self, "strategy", Strategy(self.strategy))
        require(bool(self.name), "a rule without a name", key="name")
        require(
            not self.then_federated or self.strategy in {Strategy.FULL, Strategy.INCREMENTAL},
            f"{self.strategy.value} makes nothing in a pool that a campaign could start from",
            key="then_federated",
            fix="only full and incremental run on a pool",
        )
        if self.min_labels is not None:
            not_negative("min_labels", self.min_labels)


@dataclass(frozen=True)
class BudgetRules:
    """What the privacy budget may be spent on.

    Attributes:
        when_short: What becomes of a federated retrain that the budget does not reach for.
        reserve_epsilon: Kept for rules with `use_reserve`.
    """

    when_short: WhenShort = WhenShort.PERSONAL_ONLY
    reserve_epsilon: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "when_short", WhenShort(self.when_short))
        not_negative("reserve_epsilon", self.reserve_epsilon)


@dataclass(frozen=True)
class OnlineGuard:
    """How far online learning may go from the champion before it is taken back.

    Attributes:
        proximal: Weight of the proximal term that pulls toward the champion.
        max_step: Largest Euclidean norm of one step in parameters.
        max_distance: Largest Euclidean distance from the champion's parameters.
        loss_margin: By how much the mean prequential loss may exceed the champion's on the same samples.
        loss_range: Differences of losses are cut to +- this; 1 for a loss in [0, 1].
        mean_samples_to_false_revert: While the margin is kept, the mean number of samples to a revert is at least this.
        rest_s: How long a reverted model rests before it learns again.
        max_reverts: After so many it learns no more until there is another champion.
    """

    proximal: float = 0.1
    max_step: float = 0.1
    max_distance: float = 10.0
    loss_margin: float = 0.02
    loss_range: float = 1.0
    mean_samples_to_false_revert: float = 10_000.0
    rest_s: float = DAY_S
    max_reverts: int = 3

    def __post_init__(self) -> None:
        for key in ("max_step", "max_distance", "loss_range"):
            positive(key, getattr(self, key))
        for key in ("proximal", "loss_margin", "rest_s"):
            not_negative(key, getattr(self, key))
        require(
            self.loss_margin < self.loss_range,
            f"differences are cut at {self.loss_range}, so none exceeds {self.loss_margin}",
            key="loss_margin",
        )
        require(
            self.mean_samples_to_false_revert > 1,
            f"a false revert every {self.mean_samples_to_false_revert} samples",
            key="mean_samples_to_false_revert",
            fix="give a number above 1",
        )
        require(self.max_reverts >= 1, f"{self.max_reverts} reverts", key="max_reverts", fix="give 1 or more")


TRIGGERS = (
    MetricTrigger("new_feature_set", "schema_changed", True, cause=Cause.STRUCTURE),
    MetricTrigger("structural_change", "structural_change", True, cause=Cause.STRUCTURE),
    MetricTrigger("score", "score_drop_low", 0.03, 0.01, cause=Cause.SCORE),
    MetricTrigger("kpi", "kpi_breached", True, cause=Cause.KPI),
    MetricTrigger(
        "drift",
        "psi_max",
        0.2,
        0.1,
        when=(
            Condition("drift_confirmed", Op.IS, True),
            # One device's broken sensor is a matter of quarantine.
            Condition("drift_scope", Op.IS_NOT, DriftScope.DEVICE),
        ),
    ),
    MetricTrigger("confidence", "confidence_decayed", True, cause=Cause.CONFIDENCE),
)
"""The shipped triggers."""

WELL = (
    Condition("psi_max", Op.BELOW, 0.1),
    Condition("score_drop_high", Op.AT_MOST, 0.02),
    Condition("telemetry_fraction", Op.AT_LEAST, 0.5),
    Condition("label_completeness", Op.AT_LEAST, 0.5),
    Condition("confidence_decayed", Op.IS, False),
    Condition("kpi_breached", Op.IS, False),
)
"""What proves that a scheduled retrain of a hybrid policy can be skipped."""

RULES = (
    # A running rollout of a model for other features, or for labels that mean something else, has lost its purpose.
    StrategyRule(
        "new_feature_set",
        Strategy.FULL,
        (Condition("schema_changed", Op.IS, True),),
        supersede=True,
        use_reserve=True,
        # Personal layers are no remedy for features that the model has never seen.
        when_short=WhenShort.DEFER,
    ),
    StrategyRule(
        "structural_change",
        Strategy.FULL,
        (Condition("structural_change", Op.IS, True),),
        supersede=True,
        use_reserve=True,
    ),
    # A pool knows nothing of drift whose labels stay on the devices.
    StrategyRule("labels_stay", Strategy.FEDERATED, (Condition("labels_leave_devices", Op.IS, False),)),
    StrategyRule("low_latency", Strategy.INCREMENTAL, (Condition("wanted_within_s", Op.AT_MOST, DAY_S),)),
    StrategyRule("personalization", Strategy.FEDERATED, (Condition("personal_gain", Op.AT_LEAST, 0.02),)),
    StrategyRule(
        "light_drift",
        Strategy.INCREMENTAL,
        # PSI above 0.5 is no longer light: by the usual reading 0.25 already is a major shift.
        (Condition("drift_confirmed", Op.IS, True), Condition("psi_max", Op.AT_MOST, 0.5)),
    ),
)
"""The shipped rules of strategy."""


@dataclass(frozen=True)
class RetrainingPolicy:
    """When to retrain and how.

    Attributes:
        mode: What makes it want a retrain.
        interval_s: Time from one retrain (of any cause) to the next scheduled one.
        follow_up_s: So long after a retrain that a trigger caused another one is due, if none came meanwhile: the first had
            few labels of what had changed, and what it left undone is in its own champion's baseline, where no trigger
            sees it. 0: none.
        cool_down_s: Shortest time between two retrains, whatever the cause.
        retry_s: Wait after a retrain that came to nothing; doubles with each in a row.
        max_retry_s: The longest such wait.
        hysteresis: Lower level of a trigger without one of its own, as a fraction of its upper level off.
        min_labels: Labels that must have come back since the last retrain.
        min_pool_rows: A pool with fewer rows is none.
        triggers: What `metric`, `hybrid` and `personal_only` watch.
        well: In `hybrid`, a scheduled retrain is skipped while all of these hold. Empty: never skipped.
        rules: The first that fits gives the strategy.
        default_strategy: The strategy where no rule fits.
        budget: What may be spent of the privacy budget.
        online: The limits of online learning.
    """

    mode: Mode = Mode.HYBRID
    interval_s: float = 30 * DAY_S
    follow_up_s: float = 0.0
    cool_down_s: float = 3 * DAY_S
    retry_s: float = 6 * HOUR_S
    max_retry_s: float = 7 * DAY_S
    hysteresis: float = 0.5
    min_labels: int = 200
    min_pool_rows: int = 1_000
    triggers: tuple[MetricTrigger, ...] = TRIGGERS
    well: tuple[Condition, ...] = WELL
    rules: tuple[StrategyRule, ...] = RULES
    default_strategy: Strategy = Strategy.FEDERATED
    budget: BudgetRules = field(default_factory=BudgetRules)
    online: OnlineGuard = field(default_factory=OnlineGuard)

    def __post_init__(self) -> None:
        as_tuples(self, ("triggers", "well", "rules"))
        object.__setattr__(self, "mode", Mode(self.mode))
        object.__setattr__(self, "default_strategy", Strategy(self.default_strategy))
        positive("interval_s", self.interval_s)
        for key in ("follow_up_s", "cool_down_s", "retry_s", "max_retry_s", "min_labels"):
            not_negative(key, getattr(self, key))
        require(self.min_pool_rows >= 1, "a pool without rows", key="min_pool_rows", fix="give 1 or more")
        fraction("hysteresis", self.hysteresis)
        for key, names in (
            ("triggers", [trigger.name for trigger in self.triggers]),
            ("rules", [rule.name for rule in self.rules]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            require(not twice, f"{twice} named twice", key=key, fix="give each its own name")
