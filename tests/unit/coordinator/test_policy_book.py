"""A policy file whose decision thresholds changed: two people, one digest, and the old policy until then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedretrain.coordinator.policy import OnDecay, Policy, TelemetryMode
from fedretrain.coordinator.policy_book import (
    Answered,
    Offered,
    PolicyBook,
    Taken,
    apply,
    changes,
    current,
    decide,
    refusal,
)
from fedretrain.coordinator.roles import Right, Role, Roles
from fedretrain.retraining.config import RetrainingPolicy
from fedretrain.rollout.config import RolloutPolicy, Step
from fedretrain.rollout.evidence import Answer
from fedretrain.rollout.looks import GatePolicy
from fedretrain.rollout.safety import SafetyLimit, SafetyRules

OLD = Policy(rollout=RolloutPolicy(steps=(Step(0.1), Step(0.5))))
NEW = replace(OLD, gate=replace(OLD.gate, alpha=0.2), rollout=replace(OLD.rollout, alpha=0.2))
ANYBODY = Roles()
ROLES = Roles(
    {
        "safety": Role((Right.APPROVE_CRITICAL,), ("ada", "bob", "cyd")),
        "operators": Role((Right.OPERATE,), ("dan",)),
    }
)
DAY = OLD.rollout.approvals.valid_s


class Log:
    """The fold, with a clock."""

    def __init__(self, roles: Roles = ANYBODY) -> None:
        self.book, self.roles, self.now = PolicyBook(), roles, 0.0

    def reads(self, file: Policy) -> list[str]:
        """A coordinator starts, or looks again; what follows, in words."""
        events = decide(self.book, file, self.roles, self.now)
        for event in events:
            self.book = apply(self.book, event, self.now)
        return [type(event).__name__ for event in events]

    def says(self, by: str, answer: Answer = Answer.GRANTED, policy: Policy = NEW) -> None:
        self.book = apply(self.book, Answered(policy.digest, by, answer), self.now)


def waiting(roles: Roles = ANYBODY) -> Log:
    log = Log(roles)
    assert log.reads(OLD) == ["Taken"]
    assert log.reads(NEW) == ["Offered"]
    return log


def test_the_first_policy_is_taken_as_it_is_and_the_same_one_is_no_news() -> None:
    log = Log()
    assert log.reads(OLD) == ["Taken"]
    assert log.book == PolicyBook(OLD)
    assert log.reads(OLD) == []


@pytest.mark.parametrize(
    "free",
    [
        {"name": "renamed"},
        {"retraining": RetrainingPolicy(min_labels=7)},
    ],
)
def test_what_decides_nothing_about_a_version_goes_through(free: dict[str, object]) -> None:
    log = Log()
    log.reads(OLD)
    new = replace(OLD, **free)  # type: ignore[arg-type]
    assert changes(OLD, new) == ()
    assert current(log.book, new) is new
    assert log.reads(new) == ["Taken"]
    assert log.book.in_force == new


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (NEW, ("rollout.alpha: 0.05 -> 0.2", "gate.alpha: 0.05 -> 0.2")),
        (
            replace(OLD, rollout=replace(OLD.rollout, steps=(Step(0.1), Step(0.6)))),
            ("rollout.steps[1].exposure_fraction: 0.5 -> 0.6",),
        ),
        (replace(OLD, on_decay=OnDecay.CHAMPION), ("on_decay: last_good -> champion",)),
        (replace(OLD, telemetry=TelemetryMode.OFF), ("telemetry: operational -> off",)),
        (
            replace(OLD, monitoring=replace(OLD.monitoring, drift=replace(OLD.monitoring.drift, psi=9.0))),
            ("monitoring.drift.psi: 0.2 -> 9.0",),
        ),
    ],
)
def test_thresholds_wait_and_say_what_they_change(new: Policy, said: tuple[str, ...]) -> None:
    log = Log()
    log.reads(OLD)
    (event,) = decide(log.book, new, ANYBODY, 0.0)
    assert event == Offered(new, said)
    assert current(log.book, new) is OLD
    assert log.reads(new) == ["Offered"]
    assert log.reads(new) == []  # it is offered once
    assert log.book.in_force == OLD


def test_a_limit_that_is_taken_away_is_a_change() -> None:
    limited = replace(OLD, safety=SafetyRules((SafetyLimit("blind", "missing_fraction", above=0.9),)))
    (said,) = changes(limited, OLD)
    assert said.startswith("safety.limits: ")


def test_two_different_people_put_it_in_force() -> None:
    log = waiting(ROLES)
    log.says("ada")
    log.says("ada")
    assert log.reads(NEW) == []
    log.says("dan")  # who may not
    assert log.reads(NEW) == []
    log.says("bob")
    assert decide(log.book, NEW, ROLES, log.now) == (Taken(NEW, ("ada", "bob")),)
    assert log.reads(NEW) == ["Taken"]
    assert log.book == PolicyBook(NEW)
    assert log.reads(NEW) == []


def test_a_no_takes_every_yes_back_and_people_may_agree_anew() -> None:
    log = waiting()
    log.says("ada")
    log.says("bob", Answer.REFUSED)
    log.says("bob")
    assert log.reads(NEW) == []
    log.says("cyd")
    assert log.reads(NEW) == ["Taken"]


def test_a_yes_is_good_for_as_long_as_the_policy_in_force_says() -> None:
    log = waiting()
    log.says("ada")
    log.now = DAY + 1.0
    log.says("bob")
    assert log.reads(NEW) == []
    log.says("ada")
    assert log.reads(NEW) == ["Taken"]


def test_whoever_lost_the_right_meanwhile_does_not_count() -> None:
    log = waiting(ROLES)
    log.says("ada")
    log.says("bob")
    log.roles = Roles({"safety": Role((Right.APPROVE_CRITICAL,), ("bob", "cyd"))})
    assert log.reads(NEW) == []


def test_a_word_is_about_one_file_and_the_old_file_ends_the_question() -> None:
    log = waiting()
    log.says("ada")
    log.says("bob", policy=OLD)
    assert log.reads(NEW) == []
    other = replace(NEW, name="once more")
    assert log.reads(other) == ["Offered"]
    assert log.book.agreed == ()
    assert log.reads(OLD) == ["Taken"]
    assert log.book == PolicyBook(OLD)
    assert decide(log.book, replace(OLD, gate=GatePolicy()), ANYBODY, 0.0) == ()


def test_who_may_answer_is_told_why_not() -> None:
    log = waiting(ROLES)
    yes = Answered(NEW.digest, "ada", Answer.GRANTED)

    def why(said: Answered, book: PolicyBook = log.book, account: str | None = None) -> str:
        return refusal(book, ROLES, said, 0.0, account)

    assert why(yes) == ""
    assert "no policy waits" in why(yes, PolicyBook(OLD))
    assert "restart the coordinator" in why(replace(yes, digest=OLD.digest))
    assert "lacks the right approve_critical" in why(replace(yes, by="dan"))
    assert "lacks the right" in why(replace(yes, by="dan", answer=Answer.REFUSED))
    log.says("ada")
    assert "agreed already" in why(yes, log.book)
    assert why(replace(yes, answer=Answer.REFUSED), log.book) == ""
