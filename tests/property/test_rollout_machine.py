"""The rollout under arbitrary evidence, commands and forged events.

No path to CHAMPION without every gate; illegal events leave the state unchanged; exposure falls only by a rollback; replay gives the same state.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedretrain.rollout.causes import ApprovalPoint, Cause, Change, EventKind, Phase, RollbackKind
from fedretrain.rollout.compose import create, order_of, write
from fedretrain.rollout.config import (
    HOUR_S,
    ApprovalRules,
    HoldbackRules,
    OnBrokenSource,
    OnLimit,
    RolloutPolicy,
    Step,
)
from fedretrain.rollout.effects import due, effects
from fedretrain.rollout.events import RolloutEvent, from_record
from fedretrain.rollout.evidence import (
    Answer,
    Approval,
    Command,
    Coverage,
    Exposure,
    Operator,
    RolloutEvidence,
)
from fedretrain.rollout.machine import IllegalTransition, apply, begin, decide, replay
from fedretrain.rollout.transitions import FALLING
from fedretrain.rollout.verdict import Verdict
from tests.rollout_cases import COVERED, DEAD, FAIL, PASS, UNSURE

GATES = st.sampled_from([PASS, UNSURE, None, DEAD, PASS, UNSURE, DEAD, FAIL])
LESS_OFTEN = (Command.UNFREEZE, Command.RESUME) * 4
NAMES = st.sampled_from(["", "ada", "bob"])


@st.composite
def policies(draw: st.DrawFn) -> RolloutPolicy:
    """Policies that differ in all that steers."""
    fractions = sorted(draw(st.sets(st.sampled_from([0.01, 0.02, 0.1, 0.3, 0.5]), max_size=4)))
    return RolloutPolicy(
        steps=tuple(Step(f, HOUR_S, 4 * HOUR_S) for f in fractions),
        tiny_fleet=not fractions,
        approvals=ApprovalRules(
            tuple(draw(st.sets(st.sampled_from(list(ApprovalPoint)), min_size=1))),
            draw(st.sampled_from([1, 2])),
            draw(st.sampled_from([(), (Change.INCREMENTAL,)])),
            draw(st.sampled_from([False, False, True])),
        ),
        holdback=HoldbackRules(draw(st.sampled_from([0.0, 0.1])), 10 * HOUR_S),
        default_rollback=draw(st.sampled_from(list(RollbackKind))),
        on_inconclusive=draw(st.sampled_from(list(OnLimit))),
        on_broken_source=draw(st.sampled_from(list(OnBrokenSource))),
    )


@st.composite
def exposures(draw: st.DrawFn, counter: int) -> Exposure:
    """What devices may say, of this order or of another."""
    parts = draw(
        st.sampled_from([(20, 0, 0, 0), (20, 0, 0, 0), (10, 5, 5, 0), (0, 0, 20, 0), (10, 0, 0, 10)])
    )
    about = draw(st.sampled_from([counter, counter, counter, counter - 1, None]))
    return Exposure(sum(parts), *parts, num_offline=draw(st.integers(0, parts[2])), counter=about)


class Rollouts(RuleBasedStateMachine):
    """Drives one rollout with whatever the world may bring."""

    @initialize(policy=policies(), champion=st.sampled_from([0, 3]), times=st.integers(0, 9))
    def start(self, policy: RolloutPolicy, champion: int, times: int) -> None:
        self.policy, self.now = policy, 0.0
        self.log: list[RolloutEvent] = [create(policy, "r1", 7, champion, 0.0)]
        self.state = begin(self.log[0])
        self.honest: set[str] = (
            set()
        )  # gates that evidence let pass, kept apart from the machine's own record

    def _take(self, evidence: RolloutEvidence) -> None:
        before = self.state
        if evidence.validation is Verdict.PASS:
            self.honest.add("validation")
        for event in decide(self.policy, before, evidence, self.now):
            if event.kind is EventKind.GATE_PASSED:
                assert evidence.gate is PASS
                assert evidence.gate_for == (event.step, event.attempt)
                self.honest.add(f"{event.step}/{event.attempt}")
            if event.kind is EventKind.UNFROZEN:
                self.honest = {"validation"}
            old, self.state = self.state, apply(self.state, event)
            if self.state.exposure_fraction < old.exposure_fraction:
                assert event.kind in FALLING
                assert event.cause is not None
            assert [effect.key for effect in effects(event)] == [effect.key for effect in effects(event)]
            self.log.append(event)
        assert decide(self.policy, self.state, evidence, self.now) == ()

    @rule(
        hours=st.sampled_from([1.0, 5.0, 0.0, 8.0, 30.0]),
        gate=GATES,
        data=st.data(),
        full=st.sampled_from([True, True, False]),
        validation=st.sampled_from([Verdict.PASS, Verdict.PASS, Verdict.INCONCLUSIVE]),
        answer=st.sampled_from(list(Answer)),
        by=NAMES,
        stale=st.sampled_from([False, False, True]),
    )
    def tick(
        self,
        hours: float,
        gate: object,
        data: st.DataObject,
        full: bool,
        validation: Verdict,
        answer: Answer,
        by: str,
        stale: bool,
    ) -> None:
        self.now += hours * HOUR_S
        self._take(
            RolloutEvidence(
                gate=gate,
                gate_for=(self.state.step, self.state.attempt - stale),
                coverage=COVERED if full else Coverage(),
                exposure=data.draw(exposures(self.state.counter)),
                validation=validation,
                approval=Approval(answer, by, self.now),
            )
        )

    @rule(times=st.integers(1, 6))
    def all_is_well(self, times: int) -> None:
        for _ in range(times):
            self.now += 25 * HOUR_S if self.state.phase is Phase.SHADOW else HOUR_S
            for by in ("ada", "bob"):
                self._take(
                    RolloutEvidence(
                        gate=PASS,
                        gate_for=(self.state.step, self.state.attempt),
                        coverage=COVERED,
                        exposure=Exposure(20, 20, counter=self.state.counter),
                        validation=Verdict.PASS,
                        approval=Approval(Answer.GRANTED, by, self.now),
                    )
                )

    @rule(command=st.sampled_from([*Command, *LESS_OFTEN]), by=NAMES)
    def command(self, command: Command, by: str) -> None:
        before = self.state
        self._take(RolloutEvidence(operator=Operator(command, by)))
        if not by and before.phase is Phase.FROZEN:
            assert self.state.phase is Phase.FROZEN

    @rule(
        what=st.sampled_from(["kill", "safe_mode", "champion_withdrawn"]),
        good=st.sampled_from([None, 1]),
        really=st.sampled_from([False] * 5 + [True]),
    )
    def emergency(self, what: str, good: int | None, really: bool) -> None:
        assume(really)
        live = self.state.phase not in (Phase.CHAMPION, Phase.FROZEN)
        self._take(RolloutEvidence(last_good=good, **{what: True}))
        assert not live or self.state.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)

    @rule(cause=st.sampled_from([None, Cause.OPERATOR]), by=NAMES)
    def forged(self, cause: Cause | None, by: str) -> None:
        """Events that nobody decided: refused, or legal and harmless to every promise; the state at hand never changes."""
        before, copy = self.state, replace(self.state)
        for kind, fraction in product(EventKind, [None, 0.0, 1.0, *before.plan.fractions]):
            order = None if fraction is None else order_of(self.policy, before, self.now, fraction)
            event = write(before, kind, self.now, "forged", cause=cause, by=by, order=order)
            try:
                after = apply(before, event)
            except IllegalTransition:
                after = before
            assert before == copy
            assert after.passed in (before.passed, ("validation",) if kind is EventKind.UNFROZEN else ())
            if after.step > before.step:
                assert before.gate_passed
                assert not before.paused_by
            if after.exposure_fraction < before.exposure_fraction:
                assert kind in FALLING

    @invariant()
    def no_champion_without_every_gate(self) -> None:
        assert self.state.passed == self.state.plan.gates[: len(self.state.passed)]
        if self.state.phase is Phase.CHAMPION:
            assert self.state.passed == self.state.plan.gates
            assert "validation" in self.honest
            assert {key.split("/")[0] for key in self.honest - {"validation"}} >= {
                str(step) for step in range(self.state.last_step + 1)
            }

    @invariant()
    def exposure_is_the_phases(self) -> None:
        share, phase = self.state.exposure_fraction, self.state.phase
        if phase in (Phase.PENDING, Phase.SHADOW, Phase.FROZEN, Phase.ROLLING_BACK, Phase.ROLLED_BACK):
            assert share == 0.0
        elif phase is Phase.CHAMPION:
            assert share == 1.0
        elif self.state.step:
            assert share == self.state.plan.fractions[self.state.step - 1]

    @invariant()
    def the_log_says_it_all(self) -> None:
        records = json.loads(json.dumps([event.to_record() for event in self.log], allow_nan=False))
        again = [from_record(record) for record in records]
        assert again == self.log
        assert replay(again) == self.state

    @invariant()
    def keys_are_never_used_twice(self) -> None:
        keys = [effect.key for event in self.log for effect in effects(event)]
        assert len(keys) == len(set(keys))
        assert due(self.log, keys) == ()


Rollouts.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
test_rollouts = Rollouts.TestCase
