"""What a person decides about a rollout beforehand: the `rollout` part of a policy file.

Rules of this file:
    * Every time, share and limit of a rollout is here; the machine has no numbers of its own.
    * Nothing unsafe by omission: a fleet without canary steps must say `tiny_fleet`, and a rollback for a safety cause
      is immediate whatever the file says.
    * What can be built from YAML: dataclasses, enums, tuples, dictionaries, scalars.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from fedretrain.core.checks import as_tuples, fraction, not_negative, positive, require
from fedretrain.rollout.causes import ALWAYS_IMMEDIATE, ApprovalPoint, Cause, Change, RollbackKind
from fedretrain.rollout.metrics import MetricRule  # noqa: TC001 - read by `build` at run time
from fedretrain.rollout.simulation import SimulationRules
from fedretrain.rollout.verdict import Role

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
LONGEST_SHADOW_S = 3 * DAY_S


class OnLimit(StrEnum):
    """What happens to a step that is still inconclusive at its limit."""

    ROLL_BACK = "roll_back"
    ASK = "ask"  # a person may give it one more attempt, never a pass


class OnBrokenSource(StrEnum):
    """What happens when a metric source stays broken beyond its limit. Never a quarantine: the model is not at fault."""

    HOLD = "hold"
    ROLL_BACK = "roll_back"


class OnSecond(StrEnum):
    """What happens to a second rollout while one is on."""

    REFUSE = "refuse"
    QUEUE = "queue"


class OnRetrain(StrEnum):
    """What happens to the rollout that is on when a retrain brings a newer candidate."""

    SUPERSEDE = "supersede"  # the older candidate goes back, the newer starts once it has
    FINISH = "finish"  # the newer one waits or is refused, as `on_second` says


class OnUnderpowered(StrEnum):
    """What happens where a step cannot detect a regression as small as its limit, or has too few devices to be judged at all."""

    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Step:
    """One step of exposure.

    Attributes:
        exposure_fraction: Share of each stratum that serves the candidate; a control must be left.
        min_s: A PASS moves on no earlier than this after the step's devices confirmed what they run.
        max_s: The limit of an inconclusive step, from the same instant on.
    """

    exposure_fraction: float
    min_s: float = DAY_S
    max_s: float = 3 * DAY_S

    def __post_init__(self) -> None:
        inside = 0 < self.exposure_fraction < 1
        require(
            inside,
            f"{self.exposure_fraction} leaves nobody exposed, or no concurrent control",
            key="exposure_fraction",
            fix="give a number between 0 and 1; everybody comes with CHAMPION",
        )
        positive("min_s", self.min_s)
        require(
            self.min_s <= self.max_s < float("inf"),
            f"max_s={self.max_s} is below min_s={self.min_s}, or endless",
            key="max_s",
        )


@dataclass(frozen=True)
class ShadowRules:
    """How long a candidate is scored without being served.

    Attributes:
        fraction: Share of the devices that score it.
        min_s: At least this long.
        max_s: The limit of an inconclusive shadow; 72 hours at most.
        every_hour: Whether each hour of the day must have been seen.
        every_type: Whether each device type must have been seen.
    """

    fraction: float = 1.0
    min_s: float = DAY_S
    max_s: float = LONGEST_SHADOW_S
    every_hour: bool = True
    every_type: bool = True

    def __post_init__(self) -> None:
        fraction("shadow.fraction", self.fraction)
        positive("shadow.fraction", self.fraction)
        positive("shadow.min_s", self.min_s)
        ok = self.min_s <= self.max_s <= LONGEST_SHADOW_S
        require(ok, f"a shadow of {self.min_s} to {self.max_s} s", key="shadow.max_s", fix="at most 72 hours")
        require(
            not self.every_hour or self.max_s >= DAY_S,
            "every hour of the day cannot be seen in less than a day",
            key="shadow.every_hour",
            fix="set max_s to 86400 or more, or every_hour to false",
        )


@dataclass(frozen=True)
class Needed:
    """The approvals that one rollout needs.

    Attributes:
        before: What needs an approval before it begins.
        people: How many different people.
        four_eyes: Why it is two of them, neither of whom proposed it; empty where one is enough.
    """

    before: tuple[ApprovalPoint, ...]
    people: int = 1
    four_eyes: str = ""


@dataclass(frozen=True)
class ApprovalRules:
    """Where a person has to agree.

    Attributes:
        before: What needs an approval before it begins.
        people: How many different people: 2 is four eyes.
        waived: Classes of change of low risk, which need nobody; four eyes are never waived.
        safety_critical: Whether harm of these models is harm to people or plant: each change needs four eyes.
        valid_s: An approval is good for this long.
        wait_s: A question nobody answers for this long is a no.
    """

    before: tuple[ApprovalPoint, ...] = (ApprovalPoint.CHAMPION,)
    people: int = 1
    waived: tuple[Change, ...] = ()
    safety_critical: bool = False
    valid_s: float = DAY_S
    wait_s: float = 3 * DAY_S

    def __post_init__(self) -> None:
        as_tuples(self, ["before", "waived"])
        require(
            bool(self.before),
            "nobody would ever agree to a promotion",
            key="approvals.before",
            fix="name canary, ramp or champion, and under `waived` the classes of change that need nobody",
        )
        require(
            Change.RESUBMITTED not in self.waived,
            "a version that failed before is no change of low risk",
            key="approvals.waived",
            fix="name incremental, full or imported",
        )
        require(self.people in (1, 2), f"{self.people} people", key="approvals.people", fix="give 1 or 2")
        positive("approvals.valid_s", self.valid_s)
        positive("approvals.wait_s", self.wait_s)

    def needed(self, change: Change, *, decides_otherwise: bool) -> Needed:
        """What a rollout needs.

        Args:
            change: How its candidate came about.
            decides_otherwise: Whether the candidate's calibration, thresholds or class weights differ from the champion's.
        """
        why = "the model is safety-critical" if self.safety_critical else ""
        why = why or ("its decision thresholds are others" if decides_otherwise else "")
        if why:
            before = (
                self.before
                if ApprovalPoint.CHAMPION in self.before
                else (*self.before, ApprovalPoint.CHAMPION)
            )
            return Needed(before, 2, why)
        if change in self.waived:
            return Needed(())
        return Needed(self.before, self.people, "the policy asks for two" if self.people > 1 else "")


@dataclass(frozen=True)
class HoldbackRules:
    """Devices that keep an older version for a while after everybody else has the new one: the long-term control.

    Attributes:
        fraction: Share of each stratum; 0 is no holdback.
        duration_s: How long after the promotion.
        version: What they serve; None is the champion from before the rollout.
    """

    fraction: float = 0.0
    duration_s: float = 14 * DAY_S
    version: int | None = None

    def __post_init__(self) -> None:
        ok = 0 <= self.fraction < 1
        require(ok, f"a holdback of {self.fraction}", key="holdback.fraction", fix="give 0 to below 1")
        positive("holdback.duration_s", self.duration_s)
        not_negative("holdback.version", self.version or 0)


@dataclass(frozen=True)
class InstallRules:
    """When a step counts as installed: by the devices' own word only.

    Attributes:
        min_confirmed_fraction: Share of the *reachable* targets that must run the digest.
        min_reachable_fraction: Where fewer targets than this can be reached, the step holds.
        min_failed: Fewer devices than this whose health check refused the candidate never abort.
        max_failed_fraction: Above this share of the devices that answered, the candidate goes back.
        limit_s: A step not installed after this long is inconclusive.
        expiry_s: How long an assignment is good for; a device silent for longer is expired and counts nowhere.
    """

    min_confirmed_fraction: float = 0.9
    min_reachable_fraction: float = 0.25
    min_failed: int = 5
    max_failed_fraction: float = 0.1
    limit_s: float = 2 * DAY_S
    expiry_s: float = 3 * DAY_S

    def __post_init__(self) -> None:
        fraction("installs.min_confirmed_fraction", self.min_confirmed_fraction)
        positive("installs.min_confirmed_fraction", self.min_confirmed_fraction)
        fraction("installs.min_reachable_fraction", self.min_reachable_fraction)
        fraction("installs.max_failed_fraction", self.max_failed_fraction)
        require(self.min_failed >= 1, f"{self.min_failed} failed devices", key="installs.min_failed")
        positive("installs.limit_s", self.limit_s)
        positive("installs.expiry_s", self.expiry_s)


@dataclass(frozen=True)
class RolloutPolicy:
    """Everything a rollout is judged by.

    Attributes:
        simulation: What comes before shadow: the campaign replayed in simulation.
        shadow: Scoring without serving.
        steps: The canary, then the ramp.
        tiny_fleet: Says that there are no steps on purpose: straight from shadow to champion.
        metrics: What the gates demand.
        alpha: The rollout's one probability of a false alarm, split over guardrails, phases and steps.
        kpis: Which metrics are business KPIs: their regression rolls back by itself.
        kpi_regression_limit: Largest tolerated relative regression of a KPI.
        approvals: Where a person has to agree.
        holdback: The long-term control.
        installs: When a step counts as installed.
        rollback: How each cause is rolled back; `Cause.*` not named here take `default_rollback`.
        default_rollback: See `rollback`.
        de_escalation_step_s: How long a gradual rollback stays at each step on its way down.
        pending_limit_s: A candidate whose validation is undecided for this long is given up.
        on_inconclusive: What happens at a limit.
        max_extensions: How many further attempts a person may grant.
        source_limit_s: A metric source broken for longer is an incident.
        on_broken_source: What happens then.
        on_second: A second rollout while one is on.
        on_retrain: A newer candidate while one is on.
        on_underpowered: Where a step cannot see a regression as small as the limit, or exposes fewer devices than a guardrail's
            `min_devices`.
    """

    simulation: SimulationRules = field(default_factory=SimulationRules)
    shadow: ShadowRules = field(default_factory=ShadowRules)
    steps: tuple[Step, ...] = (
        # By Monte-Carlo (`python -m sim.gates`): little exposure to harm, and a decision within two weeks.
        Step(0.02, 12 * HOUR_S, 2 * DAY_S),
        Step(0.24, DAY_S, 2 * DAY_S),
        Step(0.5, 2 * DAY_S, 8 * DAY_S),
    )
    tiny_fleet: bool = False
    metrics: tuple[MetricRule, ...] = ()
    alpha: float = 0.05
    kpis: tuple[str, ...] = ()
    kpi_regression_limit: float = 0.02
    approvals: ApprovalRules = field(default_factory=ApprovalRules)
    holdback: HoldbackRules = field(default_factory=HoldbackRules)
    installs: InstallRules = field(default_factory=InstallRules)
    rollback: dict[str, RollbackKind] = field(default_factory=dict)
    default_rollback: RollbackKind = RollbackKind.IMMEDIATE
    de_escalation_step_s: float = 6 * HOUR_S
    pending_limit_s: float = 7 * DAY_S
    on_inconclusive: OnLimit = OnLimit.ROLL_BACK
    max_extensions: int = 1
    source_limit_s: float = 6 * HOUR_S
    on_broken_source: OnBrokenSource = OnBrokenSource.HOLD
    on_second: OnSecond = OnSecond.REFUSE
    on_retrain: OnRetrain = OnRetrain.SUPERSEDE
    on_underpowered: OnUnderpowered = OnUnderpowered.WARN

    def __post_init__(self) -> None:
        as_tuples(self, ["steps", "metrics", "kpis"])
        ok = 0 < self.alpha < 1
        require(ok, f"alpha {self.alpha}", key="rollout.alpha", fix="give a number between 0 and 1")
        positive("rollout.de_escalation_step_s", self.de_escalation_step_s)
        positive("rollout.pending_limit_s", self.pending_limit_s)
        positive("rollout.source_limit_s", self.source_limit_s)
        require(self.max_extensions >= 0, "a negative number of extensions", key="rollout.max_extensions")
        self._check_steps()
        self._check_kpis()
        self._check_rollback()

    def _check_steps(self) -> None:
        """Steps grow, leave a control beside the holdback, and are missing only on purpose."""
        require(
            bool(self.steps) != self.tiny_fleet,
            "a rollout without steps must say so, and one with steps is no tiny fleet",
            key="rollout.tiny_fleet",
            fix="steps: [] together with tiny_fleet: true, or steps and tiny_fleet: false",
        )
        fractions = [step.exposure_fraction for step in self.steps]
        grows = all(a < b for a, b in pairwise(fractions))
        require(grows, f"exposure {fractions} does not grow", key="rollout.steps", fix="list them upwards")
        require(
            not fractions or fractions[-1] + self.holdback.fraction < 1,
            "the last step and the holdback leave no concurrent control",
            key="rollout.steps",
            fix="make the last exposure_fraction or the holdback smaller",
        )

    def _check_kpis(self) -> None:
        """A KPI has a rule with a relative margin no wider than the limit."""
        positive("rollout.kpi_regression_limit", self.kpi_regression_limit)
        rules = {rule.metric: rule for rule in self.metrics}
        require(len(rules) == len(self.metrics), "a metric with two rules", key="rollout.metrics")
        for name in self.kpis:
            require(
                name in rules, f"the KPI {name!r} has no rule", key="rollout.kpis", fix="add it to metrics"
            )
            rule = rules[name]
            ok = rule.role is not Role.INFO and rule.relative and rule.margin <= self.kpi_regression_limit
            require(
                ok,
                f"the rule of the KPI {name!r} is for information, absolute, or wider than kpi_regression_limit",
                key="rollout.kpis",
                fix=f"role guardrail or signal, relative, margin at most {self.kpi_regression_limit}",
            )

    def _check_rollback(self) -> None:
        """Only known causes are named, and safety causes are immediate."""
        known = ", ".join(Cause)
        for name, kind in self.rollback.items():
            require(name in set(Cause), f"no cause {name!r}", key="rollout.rollback", fix=f"known: {known}")
            immediate = kind is RollbackKind.IMMEDIATE or name not in ALWAYS_IMMEDIATE
            require(immediate, f"{name} always rolls back at once", key="rollout.rollback", fix="immediate")

    @property
    def longest_stage_s(self) -> float:
        """How long evidence of one stage has to be kept: it grows from the stage's beginning on."""
        return max(self.shadow.max_s, *(step.max_s for step in self.steps), 0.0)

    def rollback_of(self, cause: Cause) -> RollbackKind:
        """How `cause` is rolled back."""
        if cause in ALWAYS_IMMEDIATE:
            return RollbackKind.IMMEDIATE
        return self.rollback.get(cause, self.default_rollback)
