"""The state machine: the way up, the ways back, what holds, who is asked."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from fedretrain.core.build import build
from fedretrain.core.errors import ConfigError
from fedretrain.rollout.causes import ApprovalPoint, Cause, EventKind, Phase, RollbackKind
from fedretrain.rollout.compose import TINY_FLEET, create
from fedretrain.rollout.config import (
    DAY_S,
    HOUR_S,
    ApprovalRules,
    HoldbackRules,
    OnBrokenSource,
    OnLimit,
    OnRetrain,
    OnUnderpowered,
    RolloutPolicy,
    SimulationRules,
    Step,
)
from fedretrain.rollout.effects import EffectKind
from fedretrain.rollout.events import from_record
from fedretrain.rollout.evidence import Command, Coverage, Exposure
from fedretrain.rollout.incident import write_incident
from fedretrain.rollout.machine import IllegalTransition, apply, begin, decide, replay
from fedretrain.rollout.metrics import MetricRule
from fedretrain.rollout.power import ClusterPower
from fedretrain.rollout.verdict import Check, Reason, Role, Verdict, combine
from tests.rollout_cases import (
    COVERED,
    DEAD,
    FAIL,
    NOBODY,
    PASS,
    POLICY,
    UNSURE,
    Drive,
    confirmed,
    gate_of,
    no,
    said,
    well,
    yes,
)


def test_a_good_candidate_goes_up_step_by_step_and_is_champion() -> None:
    drive = Drive().to(Phase.CHAMPION)
    moves = [k for k in drive.kinds() if k not in ("installed", "gate_passed")]
    assert moves == [
        "created",
        "shadow_started",
        "canary_started",
        "ramp_started",
        "ramp_started",
        "promoted",
    ]
    assert drive.state.passed == ("validation", "shadow", "canary", "ramp 2", "ramp 3")
    fractions = [order["fraction"] for order in drive.payloads(EffectKind.ASSIGN)]
    assert fractions == [0.0, 0.02, 0.1, 0.5, 1.0]
    assert {"version": 7, "alias": "champion"} in drive.payloads(EffectKind.TAG)


def test_shadow_lasts_a_day_and_sees_every_hour_and_type() -> None:
    drive = Drive().to(Phase.SHADOW)
    assert drive.tick(23.9) == []
    blind = Coverage(frozenset(range(23)), frozenset({0, 1}), frozenset({0, 1}))
    assert drive.tick(0.2, coverage=blind) == ["held"]
    assert drive.state.held is Cause.NOT_COVERED
    assert drive.tick(0.1, coverage=replace(COVERED, device_types=frozenset({0}))) == []
    assert (
        drive.tick(0.1, coverage=Coverage(frozenset(range(24)))) == []
    )  # which types there are is not known
    assert drive.tick(0.1) == ["gate_passed", "canary_started"]


def test_a_step_holds_while_inconclusive_and_rolls_back_at_its_limit_without_blame() -> None:
    drive = Drive().to(Phase.CANARY)
    assert drive.tick(0.0, gate=None) == ["installed"]
    assert drive.tick(2.0, gate=UNSURE) == ["held"]
    assert drive.tick(21.9, gate=None) == []
    assert drive.tick(0.2, gate=None) == ["rollback_started"]
    assert drive.state.cause is Cause.INCONCLUSIVE
    assert not drive.payloads(EffectKind.QUARANTINE)
    assert drive.payloads(EffectKind.OPEN_INCIDENT)[0]["kind"] == "undecided"


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.CANARY])
def test_a_pass_at_the_last_look_counts_at_the_limit_itself(phase: Phase) -> None:
    drive = Drive().to(phase)
    drive.tick(0.0, gate=UNSURE)
    assert "gate_passed" in drive.tick(72.0 if phase is Phase.SHADOW else 24.0)
    late = Drive()
    assert late.tick(168.0) == ["shadow_started"]
    slow = Drive().to(Phase.CANARY)
    assert slow.tick(48.0, gate=None) == ["installed"]


def test_at_the_limit_a_person_may_grant_one_more_attempt_but_no_pass() -> None:
    drive = Drive(replace(POLICY, on_inconclusive=OnLimit.ASK)).to(Phase.CANARY)
    drive.tick(0.0, gate=None)
    assert drive.tick(24.0, gate=UNSURE) == ["asked"]
    assert drive.payloads(EffectKind.ASK)
    before = yes("ada", drive.now - 1)
    assert drive.tick(1.0, gate=UNSURE, approval=before) == []  # an answer from before the question
    assert drive.tick(1.0, gate=UNSURE, approval=yes("", drive.now)) == []  # nobody's
    assert drive.tick(1.0, gate=UNSURE, approval=yes("ada", drive.now)) == ["extended"]
    assert (drive.state.phase, drive.state.attempt, drive.state.passed[-1]) == (Phase.CANARY, 1, "shadow")
    assert drive.tick(2.0, gate_for=(1, 0)) == ["held"]  # the old attempt's PASS is none
    assert drive.tick(23.0, gate=UNSURE) == ["rollback_started"]  # one extension is all the policy gives


def test_an_unanswered_question_rolls_back() -> None:
    drive = Drive(replace(POLICY, on_inconclusive=OnLimit.ASK)).to(Phase.CANARY)
    drive.tick(0.0, gate=None)
    drive.tick(24.0, gate=UNSURE)
    assert drive.tick(71.9, gate=UNSURE) == []
    assert drive.tick(0.2, gate=UNSURE) == ["rollback_started"]
    refused = Drive(replace(POLICY, on_inconclusive=OnLimit.ASK)).to(Phase.CANARY)
    refused.tick(0.0, gate=None)
    refused.tick(24.0, gate=UNSURE)
    assert refused.tick(0.0, gate=UNSURE, approval=no("eve", refused.now)) == ["rollback_started"]
    assert refused.state.cause is Cause.APPROVAL_REFUSED


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.CANARY, Phase.RAMP])
def test_a_failed_gate_takes_the_candidate_back_and_quarantines_it(phase: Phase) -> None:
    drive = Drive().to(phase)
    bad = gate_of(Verdict.FAIL, metric="errors")
    exposed = drive.state.exposure_fraction
    assert drive.tick(0.0, gate=bad)[0] == "rollback_started"
    assert drive.state.cause is Cause.GATE_FAILED
    assert drive.payloads(EffectKind.QUARANTINE)[0]["version"] == 7
    assert drive.state.phase is (Phase.ROLLING_BACK if exposed else Phase.ROLLED_BACK)
    drive.tick(1.0)
    assert drive.state.phase is Phase.ROLLED_BACK


def test_a_kpi_beyond_its_limit_rolls_back_by_itself_even_as_a_signal() -> None:
    guardrail = Drive().to(Phase.CANARY)
    guardrail.tick(0.0, gate=FAIL)
    assert guardrail.state.cause is Cause.KPI_REGRESSION
    beyond = gate_of(Verdict.FAIL, role=Role.SIGNAL, estimate=0.05, low=0.03)
    signal = Drive().to(Phase.CANARY)
    signal.tick(0.0, gate=replace(beyond, verdict=Verdict.INCONCLUSIVE))
    assert signal.state.cause is Cause.KPI_REGRESSION
    within = gate_of(Verdict.FAIL, role=Role.SIGNAL, estimate=0.02, low=0.015)
    held = Drive().to(Phase.CANARY)
    assert held.tick(0.0, gate=replace(within, verdict=Verdict.INCONCLUSIVE)) == ["installed"]


def test_a_gradual_rollback_walks_down_the_steps() -> None:
    slow = replace(POLICY, default_rollback=RollbackKind.GRADUAL)
    drive = Drive(slow).to(Phase.RAMP, 3)
    assert drive.tick(0.0, gate=FAIL) == ["de_escalation_started"]
    assert drive.state.exposure_fraction == 0.1
    assert drive.tick(5.9, gate=FAIL) == []
    assert drive.tick(0.2) == ["stepped_down"]
    assert drive.state.exposure_fraction == 0.02
    assert drive.tick(6.0) == ["rollback_started"]
    assert drive.tick(1.0, exposure=Exposure(50, 49, 0, 1, counter=drive.state.counter)) == []
    assert drive.tick(1.0) == ["rolled_back"]
    assert drive.state.cause is Cause.KPI_REGRESSION
    opened = {effect["incident"] for effect in drive.payloads(EffectKind.OPEN_INCIDENT)}
    assert opened == {"r1/kpi_regression"}


def test_a_gradual_rollback_is_hastened_by_a_new_cause_that_wants_that() -> None:
    drive = Drive(replace(POLICY, rollback={"operator": RollbackKind.GRADUAL})).to(Phase.RAMP, 3)
    assert drive.tick(0.0, operator=said(Command.DE_ESCALATE)) == ["de_escalation_started"]
    assert drive.tick(0.1, operator=said(Command.DE_ESCALATE)) == []
    assert drive.tick(0.1, gate=FAIL) == ["rollback_started"]


def test_gradual_from_the_canary_is_at_once_for_there_is_no_step_below() -> None:
    drive = Drive(replace(POLICY, default_rollback=RollbackKind.GRADUAL)).to(Phase.CANARY)
    assert drive.tick(0.0, gate=FAIL) == ["rollback_started"]


def test_frozen_is_shadow_only_and_leaves_by_a_person_with_every_gate_before_it() -> None:
    drive = Drive(replace(POLICY, default_rollback=RollbackKind.FREEZE)).to(Phase.RAMP)
    assert drive.tick(0.0, gate=FAIL) == ["frozen"]
    order = drive.payloads(EffectKind.ASSIGN)[-1]
    assert (order["fraction"], order["shadow_fraction"]) == (0.0, 1.0)
    assert not drive.payloads(EffectKind.QUARANTINE)
    for change in ({}, {"kill": True}, {"gate": FAIL}, {"operator": said(Command.UNFREEZE, by="")}):
        assert drive.tick(100.0, **change) == []
    assert drive.tick(0.0, operator=said(Command.UNFREEZE)) == ["unfrozen"]
    assert (drive.state.phase, drive.state.passed) == (Phase.SHADOW, ("validation",))
    assert drive.state.attempt == 1
    assert drive.to(Phase.CHAMPION).state.passed == drive.state.plan.gates


def test_frozen_can_be_given_up_with_the_cause_that_froze_it() -> None:
    drive = Drive(replace(POLICY, default_rollback=RollbackKind.FREEZE)).to(Phase.CANARY)
    drive.tick(0.0, gate=FAIL)
    assert drive.tick(1.0, operator=said(Command.ROLL_BACK)) == ["rollback_started"]
    assert drive.payloads(EffectKind.QUARANTINE)[0]["version"] == 7
    assert drive.tick(1.0) == ["rolled_back"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"kill": True}, Cause.KILL), ({"safe_mode": True}, Cause.SAFE_MODE)],
)
def test_emergencies_are_immediate_whatever_the_policy_says(change: dict[str, bool], cause: Cause) -> None:
    drive = Drive(replace(POLICY, default_rollback=RollbackKind.GRADUAL)).to(Phase.RAMP, 3)
    assert drive.tick(0.0, **change) == ["rollback_started"]
    assert drive.state.cause is cause
    assert not drive.payloads(EffectKind.QUARANTINE)
    with pytest.raises(ConfigError, match="always rolls back at once"):
        RolloutPolicy(rollback={cause.value: RollbackKind.GRADUAL})


def test_stopped_installs_hold_the_way_up_and_leave_the_way_back_open() -> None:
    waiting = Drive()
    assert waiting.tick(1.0, installs_stopped=True) == []
    drive = waiting.to(Phase.CANARY)
    silent = Exposure(20, 0, 0, 20, counter=drive.state.counter)
    assert drive.tick(60.0, installs_stopped=True, exposure=silent) == ["held"]
    assert drive.tick(0.0, installs_stopped=True) == ["installed"]
    assert drive.tick(1.0, installs_stopped=True) == ["gate_passed"]
    assert drive.tick(1.0, installs_stopped=True, gate=FAIL) == ["rollback_started"]
    assert drive.tick(1.0, installs_stopped=True) == ["rolled_back"]


def test_a_rollback_stays_open_until_every_exposed_device_confirmed_or_expired() -> None:
    drive = Drive().to(Phase.RAMP, 3)
    drive.tick(0.0, gate=FAIL, exposure=confirmed(drive.state))
    assert drive.state.phase is Phase.ROLLING_BACK
    now = drive.state.counter
    assert drive.tick(1.0, exposure=Exposure(10, 10, counter=now - 1)) == []  # word of the way up
    assert drive.tick(1.0, exposure=Exposure()) == []  # nothing known
    assert drive.tick(1.0, exposure=Exposure(10, 8, 0, 2, counter=now)) == []
    assert drive.tick(1.0, exposure=Exposure(10, 9, 0, 0, 1, counter=now)) == []  # one refuses the fallback
    assert drive.tick(1.0, exposure=Exposure(10, 9, 1, 0, counter=now)) == ["rolled_back"]


def test_a_champion_withdrawn_during_a_ramp_falls_back_to_the_last_good_version() -> None:
    drive = Drive().to(Phase.RAMP)
    assert drive.tick(0.0, champion_withdrawn=True, last_good=2) == ["rollback_started"]
    assert drive.payloads(EffectKind.ASSIGN)[-1]["fallback"] == 2
    assert drive.state.cause is Cause.CHAMPION_WITHDRAWN
    assert not drive.payloads(EffectKind.QUARANTINE)
    assert not drive.payloads(EffectKind.SAFE_MODE)
    assert drive.tick(1.0, champion_withdrawn=True, last_good=2) == ["rolled_back"]


@pytest.mark.parametrize("unusable", [None, 3, 7])
def test_a_champion_withdrawn_without_a_good_version_means_the_rules_in_safe_mode(
    unusable: int | None,
) -> None:
    drive = Drive().to(Phase.RAMP)
    drive.tick(0.0, champion_withdrawn=True, last_good=unusable)
    assert drive.state.fallback == 0
    assert drive.payloads(EffectKind.SAFE_MODE)


def test_a_champion_withdrawn_while_going_back_changes_where_to() -> None:
    drive = Drive().to(Phase.RAMP)
    drive.tick(0.0, gate=FAIL)
    key = drive.effects[-1].key
    assert drive.tick(1.0, champion_withdrawn=True, last_good=2, exposure=Exposure()) == ["retargeted"]
    assert drive.tick(1.0, champion_withdrawn=True, last_good=2, exposure=Exposure()) == []
    assert drive.state.fallback == 2
    assert key not in [effect.key for effect in drive.effects[-2:]]
    assert drive.tick(1.0, champion_withdrawn=True, last_good=2) == ["rolled_back"]


def test_a_retrain_supersedes_or_waits() -> None:
    drive = Drive().to(Phase.RAMP)
    drive.tick(0.0, superseded_by=8)
    assert drive.state.cause is Cause.SUPERSEDED
    assert not drive.payloads(EffectKind.QUARANTINE)
    assert not drive.payloads(EffectKind.OPEN_INCIDENT)
    finishing = Drive(replace(POLICY, on_retrain=OnRetrain.FINISH)).to(Phase.RAMP)
    finishing.tick(0.0, superseded_by=8)
    assert finishing.to(Phase.CHAMPION, superseded_by=8).state.cause is None


def test_a_failed_or_missing_validation_never_reaches_shadow() -> None:
    drive = Drive()
    assert drive.tick(1.0, validation=Verdict.INCONCLUSIVE) == []
    assert drive.tick(0.0, validation=Verdict.FAIL) == ["rollback_started", "rolled_back"]
    assert drive.payloads(EffectKind.QUARANTINE)
    stale = Drive()
    assert stale.tick(168.0, validation=Verdict.INCONCLUSIVE) == ["rollback_started", "rolled_back"]
    assert not stale.payloads(EffectKind.QUARANTINE)


SIMULATED = replace(POLICY, simulation=SimulationRules(required=True, limit_s=DAY_S))


def test_where_the_policy_wants_it_shadow_waits_for_the_simulation_gate() -> None:
    drive = Drive(SIMULATED, simulated=True)
    assert drive.state.plan.gates[:3] == ("validation", "simulation", "shadow")
    assert drive.tick(1.0) == []
    assert drive.tick(1.0, simulation=Verdict.PASS, validation=Verdict.INCONCLUSIVE) == []
    assert drive.tick(1.0, simulation=Verdict.PASS) == ["shadow_started"]
    drive.to(Phase.CHAMPION)
    assert drive.state.passed == ("validation", "simulation", "shadow", "canary", "ramp 2", "ramp 3")


def test_a_failed_simulation_ends_in_quarantine_with_an_incident_and_an_undecided_one_without_blame() -> None:
    bad = Drive(SIMULATED, simulated=True)
    assert bad.tick(1.0, simulation=Verdict.FAIL) == ["rollback_started", "rolled_back"]
    assert bad.state.cause is Cause.SIMULATION_FAILED
    assert bad.payloads(EffectKind.QUARANTINE)
    assert [one["kind"] for one in bad.payloads(EffectKind.OPEN_INCIDENT)] == ["model"]
    undecided = Drive(SIMULATED, simulated=True)
    assert undecided.tick(23.0, simulation=Verdict.INCONCLUSIVE) == []
    assert undecided.tick(1.0, simulation=Verdict.INCONCLUSIVE) == ["rollback_started", "rolled_back"]
    assert undecided.state.cause is Cause.NOT_SIMULATED
    assert not undecided.payloads(EffectKind.QUARANTINE)
    assert [one["kind"] for one in undecided.payloads(EffectKind.OPEN_INCIDENT)] == ["undecided"]


def test_without_a_campaign_to_replay_or_where_the_policy_does_not_want_it_nobody_asks_for_a_simulation() -> (
    None
):
    for drive in (Drive(SIMULATED), Drive(POLICY, simulated=True)):
        assert not drive.state.plan.simulation
        assert drive.tick(1.0, simulation=Verdict.FAIL) == ["shadow_started"]


def test_a_log_in_which_the_simulation_gate_was_passed_over_does_not_replay() -> None:
    drive = Drive(SIMULATED, simulated=True)
    drive.tick(1.0, simulation=Verdict.PASS)
    started = drive.log[1]
    assert started.evidence == {"validation": "pass", "simulation": "pass"}
    with pytest.raises(IllegalTransition, match="simulation"):
        replay([drive.log[0], replace(started, evidence={"validation": "pass"})])


def test_a_broken_metric_source_is_counted_apart_from_a_bad_model() -> None:
    drive = Drive().to(Phase.CANARY)
    assert drive.tick(0.0, gate=DEAD) == ["source_broke", "installed"]
    assert drive.tick(5.9, gate=DEAD) == []
    assert drive.tick(0.1, gate=DEAD) == ["source_overdue"]
    assert drive.payloads(EffectKind.OPEN_INCIDENT) == [
        {
            "incident": "r1/metric_source",
            "kind": "metric_source",
            "cause": "metric_source",
            "reason": "broken for 21600 s; held until it is back",
        }
    ]
    assert drive.tick(100.0, gate=None) == []  # no word is no mending, and the step's limit stands still
    assert drive.tick(0.0, gate=DEAD) == []
    assert drive.tick(0.0, gate=UNSURE) == ["source_mended"]
    assert not drive.payloads(EffectKind.QUARANTINE)
    assert drive.payloads(EffectKind.CLOSE_INCIDENT)
    assert drive.tick(0.5) == []  # the outage does not count towards the shortest time either
    assert drive.tick(0.5) == ["gate_passed", "ramp_started"]


def test_a_broken_source_may_roll_back_by_policy_and_still_does_not_blame_the_model() -> None:
    drive = Drive(replace(POLICY, on_broken_source=OnBrokenSource.ROLL_BACK)).to(Phase.CANARY)
    drive.tick(0.0, gate=DEAD)
    assert drive.tick(6.0, gate=None) == ["rollback_started"]
    assert drive.state.cause is Cause.METRIC_SOURCE
    assert not drive.payloads(EffectKind.QUARANTINE)


def test_a_source_that_only_informs_holds_nothing() -> None:
    drive = Drive().to(Phase.CANARY)
    checks = (
        *PASS.checks,
        *gate_of(Verdict.INCONCLUSIVE, Reason.DEAD_SOURCE, "extra", role=Role.INFO).checks,
    )
    drive.tick(0.0)
    assert drive.tick(1.0, gate=replace(PASS, checks=checks)) == ["gate_passed", "ramp_started"]


def test_approvals_name_people_and_expire() -> None:
    rules = ApprovalRules((ApprovalPoint.CANARY, ApprovalPoint.CHAMPION), people=2)
    drive = Drive(replace(POLICY, approvals=rules)).to(Phase.APPROVAL)
    asked_at = drive.now
    assert drive.tick(1.0, approval=yes("ada", asked_at - 1)) == []
    assert drive.tick(1.0, approval=yes("ada", drive.now + DAY_S)) == []  # nor may it come from tomorrow
    assert drive.tick(1.0, approval=yes("ada", drive.now)) == ["approved"]
    assert drive.tick(1.0, approval=yes("ada", drive.now)) == []  # four eyes, not the same two twice
    assert drive.tick(25.0, approval=yes("bob", drive.now + 25 * HOUR_S)) == ["approved"]  # ada's has expired
    assert drive.tick(1.0, approval=yes("ada", drive.now)) == ["approved", "canary_started"]
    assert drive.log[-1].by == "bob, ada"
    assert drive.to(Phase.APPROVAL).state.exposure_fraction == 0.5
    assert drive.tick(0.0, approval=yes("bob", asked_at)) == []  # the canary's answer is not the champion's
    assert drive.tick(0.0, gate=FAIL) == ["rollback_started"]  # and gates are looked at while people think


def test_an_approval_refused_or_never_given_goes_back_without_an_incident() -> None:
    rules = ApprovalRules((ApprovalPoint.RAMP,))
    for answer, name, hours, cause in (
        (no, "ada", 0.0, Cause.APPROVAL_REFUSED),
        (yes, "", 72.0, Cause.APPROVAL_EXPIRED),
    ):
        drive = Drive(replace(POLICY, approvals=rules)).to(Phase.APPROVAL)
        assert drive.tick(hours, approval=answer(name, drive.now)) == ["rollback_started"]
        assert drive.state.cause is cause
        assert not drive.payloads(EffectKind.OPEN_INCIDENT)


def test_a_holdback_keeps_its_named_version_for_its_time() -> None:
    policy = replace(POLICY, holdback=HoldbackRules(0.05, 100 * 3600.0, version=2))
    drive = Drive(policy).to(Phase.CHAMPION)
    last = drive.payloads(EffectKind.ASSIGN)[-1]
    assert (last["fraction"], last["holdback_fraction"], last["holdback_version"]) == (1.0, 0.05, 2)
    assert drive.tick(99.9, gate=None) == []
    assert drive.tick(0.2, gate=None) == ["holdback_ended"]
    assert drive.payloads(EffectKind.ASSIGN)[-1]["holdback_fraction"] == 0.0
    assert drive.tick(1.0, gate=FAIL) == []  # without a control there is no evidence against a champion
    watched = Drive(policy).to(Phase.CHAMPION)
    assert watched.tick(1.0, gate=FAIL) == ["rollback_started"]
    kept = Drive(replace(policy, holdback=HoldbackRules(0.05))).to(Phase.CHAMPION)
    assert kept.tick(1.0, gate=None, champion_withdrawn=True) == ["holdback_ended"]


def test_a_champion_goes_back_by_a_person() -> None:
    drive = Drive().to(Phase.CHAMPION)
    assert drive.tick(1.0, kill=True, safe_mode=True) == []
    assert drive.tick(1.0, operator=said(Command.ROLL_BACK, reason="late labels")) == ["rollback_started"]
    assert drive.payloads(EffectKind.ASSIGN)[-1]["fallback"] == 3


def test_a_tiny_fleet_goes_straight_from_shadow_and_says_so() -> None:
    tiny = RolloutPolicy(steps=(), tiny_fleet=True, approvals=NOBODY)
    drive = Drive(tiny)
    assert drive.state.warnings == (TINY_FLEET,)
    drive.to(Phase.CHAMPION)
    assert drive.state.passed == ("validation", "shadow")
    for steps, said_tiny in (((), False), ((Step(0.1),), True)):
        with pytest.raises(ConfigError, match="must say so"):
            RolloutPolicy(steps=steps, tiny_fleet=said_tiny)


def test_a_fleet_without_a_model_has_the_rules_as_its_champion() -> None:
    drive = Drive(champion=0).to(Phase.RAMP)
    drive.tick(0.0, gate=FAIL)
    assert drive.payloads(EffectKind.ASSIGN)[-1]["fallback"] == 0
    assert not drive.payloads(EffectKind.SAFE_MODE)  # the rules were serving; nothing is withdrawn


def test_what_a_step_can_detect_is_said_before_the_start_or_refused() -> None:
    drive = Drive(detectable=(0.05, 0.03, 0.01))
    assert drive.state.warnings == (
        "canary cannot detect a regression below 5.00%, the limit is 2.00%",
        "ramp 2 cannot detect a regression below 3.00%, the limit is 2.00%",
    )
    strict = replace(POLICY, on_underpowered=OnUnderpowered.REFUSE)
    with pytest.raises(ConfigError, match="canary cannot detect"):
        create(strict, "r", 7, 3, 0.0, detectable=(0.05, 0.03, 0.01))
    assert Drive().state.warnings == ("nobody has computed what each step can detect",)


@pytest.mark.parametrize(
    ("num_devices", "what"),
    [
        (500, ()),  # 2 % of 500 devices are the ten that the rule asks for
        (499, ()),
        (474, ("canary can never pass: 9 devices of 474, hits is judged from 10",)),
        (
            15,
            (
                "canary can never pass: 0 devices of 15, hits is judged from 10",
                "ramp 2 can never pass: 1 devices of 15, hits is judged from 10",
                "ramp 3 can never pass: 7 devices of 15, hits is judged from 10",
            ),
        ),
    ],
)
def test_a_step_with_too_few_devices_to_be_judged_is_said_before_the_start_or_refused(
    num_devices: int, what: tuple[str, ...]
) -> None:
    seen = {"detectable": (0.01, 0.01, 0.01), "num_devices": num_devices}
    assert Drive(**seen).state.warnings == what
    strict = replace(POLICY, on_underpowered=OnUnderpowered.REFUSE)
    if not what:
        assert Drive(strict, **seen).state.warnings == ()
        return
    with pytest.raises(ConfigError, match=what[0]):
        create(strict, "r", 7, 3, 0.0, **seen)


def test_shadow_and_control_need_devices_too_and_only_guardrails_ask_for_them() -> None:
    tiny = RolloutPolicy(steps=(), tiny_fleet=True, metrics=(MetricRule("hits"),))
    assert Drive(tiny, num_devices=9).state.warnings == (
        TINY_FLEET,
        "shadow can never pass: 9 devices of 9, hits is judged from 10",
    )
    wide = replace(POLICY, steps=(Step(0.8),))
    said = Drive(wide, detectable=(0.01,), num_devices=40).state.warnings
    assert said == ("canary can never pass: 8 devices in control of 40, hits is judged from 10",)
    signal = replace(POLICY, metrics=(MetricRule("hits", Role.SIGNAL),), kpis=())
    assert Drive(signal, detectable=(0.01, 0.01, 0.01), num_devices=15).state.warnings == ()


@pytest.mark.parametrize(
    ("candidate", "champion", "more", "what"),
    [
        (3, 3, {}, "is the champion"),
        (0, 3, {}, "is no model"),
        (7, 3, {"quarantined": {7}}, "is quarantined"),
        (7, 3, {"detectable": (0.1,)}, "1 detectable regressions for 3 steps"),
    ],
)
def test_what_is_no_candidate_is_refused(candidate: int, champion: int, more: dict, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        create(POLICY, "r", candidate, champion, 0.0, **more)


def test_replay_and_json_give_the_same_state() -> None:
    drive = Drive(replace(POLICY, default_rollback=RollbackKind.GRADUAL), detectable=(0.1, 0.1, 0.1))
    drive.to(Phase.RAMP, 3).tick(1.0, gate=gate_of(Verdict.FAIL, low=float("nan"), high=float("inf")))
    drive.to(Phase.ROLLED_BACK)
    records = json.loads(json.dumps([event.to_record() for event in drive.log], allow_nan=False))
    assert [from_record(record) for record in records] == drive.log
    assert replay(drive.log) == drive.state


def test_damaged_logs_are_refused() -> None:
    drive = Drive().to(Phase.CHAMPION)
    log = drive.log
    for broken in ([], log[1:], [*log[:3], *log[4:]], [*log[:3], log[2], *log[3:]]):
        with pytest.raises(IllegalTransition):
            replay(broken)
    with pytest.raises(IllegalTransition, match="before the last event"):
        apply(begin(log[0]), replace(log[1], at=-1.0))
    with pytest.raises(IllegalTransition, match="an event of r2"):
        apply(begin(log[0]), replace(log[1], rollout="r2"))


def test_an_event_with_a_forged_order_or_gate_is_illegal() -> None:
    drive = Drive().to(Phase.SHADOW)
    (passed, started) = decide(POLICY, drive.state, well(drive.state), drive.now + 86400)
    with pytest.raises(IllegalTransition, match="gates passed so far"):
        apply(drive.state, replace(started, sequence=passed.sequence))
    with pytest.raises(IllegalTransition, match="no PASS of the gate"):
        apply(drive.state, replace(passed, evidence={"gate": "canary", "verdict": "pass"}))
    with pytest.raises(IllegalTransition, match="no PASS of the gate"):
        apply(drive.state, replace(passed, evidence={"gate": "shadow", "verdict": "inconclusive"}))
    with pytest.raises(IllegalTransition, match="where none belongs"):
        apply(drive.state, replace(passed, order=started.order))
    with pytest.raises(IllegalTransition, match="step and attempt"):
        apply(drive.state, replace(passed, attempt=1))
    state = apply(drive.state, passed)
    assert started.order is not None
    for change, what in (
        ({"fraction": 0.5}, "the next step of the plan"),
        ({"candidate": 8}, "version 8"),
        ({"counter": 9}, "order 9"),
        ({"fallback": 1}, "only on the way back"),
    ):
        with pytest.raises(IllegalTransition, match=what):
            apply(state, replace(started, order=replace(started.order, **change)))


def test_a_policy_changed_under_way_is_refused() -> None:
    drive = Drive()
    other = replace(POLICY, steps=(Step(0.3),))
    with pytest.raises(ConfigError, match="not those the rollout began with"):
        decide(other, drive.state, well(drive.state), 1.0)


def test_the_policy_is_built_from_plain_values() -> None:
    built = build(
        RolloutPolicy,
        {
            "shadow": {"min_s": 86400, "max_s": 172800},
            "steps": [{"exposure_fraction": 0.05, "min_s": 3600, "max_s": 7200}],
            "metrics": [{"metric": "hits", "role": "guardrail", "margin": 0.02}],
            "kpis": ["hits"],
            "approvals": {"before": ["champion"], "people": 2},
            "rollback": {"inconclusive": "gradual"},
            "on_inconclusive": "ask",
        },
    )
    assert built.rollback_of(Cause.INCONCLUSIVE) is RollbackKind.GRADUAL
    assert built.rollback_of(Cause.GATE_FAILED) is RollbackKind.IMMEDIATE
    assert built.steps == (Step(0.05, 3600.0, 7200.0),)
    assert build(RolloutPolicy, {"steps": [], "tiny_fleet": True}).steps == ()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"shadow": {"max_s": 4 * 86400}}, "shadow.max_s"),
        ({"shadow": {"min_s": 3600, "max_s": 7200}}, "shadow.every_hour"),
        ({"steps": [{"exposure_fraction": 1.0}]}, "exposure_fraction"),
        ({"steps": [{"exposure_fraction": 0.2}, {"exposure_fraction": 0.1}]}, "rollout.steps"),
        ({"steps": [{"exposure_fraction": 0.9}], "holdback": {"fraction": 0.1}}, "rollout.steps"),
        ({"kpis": ["hits"]}, "rollout.kpis"),
        ({"metrics": [{"metric": "hits", "margin": 0.05}], "kpis": ["hits"]}, "rollout.kpis"),
        ({"metrics": [{"metric": "hits"}, {"metric": "hits"}]}, "rollout.metrics"),
        ({"rollback": {"bad luck": "gradual"}}, "rollout.rollback"),
        ({"alpha": 0}, "rollout.alpha"),
        ({"approvals": {"people": 3}}, "approvals.people"),
        ({"approvals": {"before": []}}, "approvals.before"),
        ({"approvals": {"waived": ["resubmitted"]}}, "approvals.waived"),
    ],
)
def test_impossible_policies_name_their_key(values: dict, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(RolloutPolicy, values)
    assert key in caught.value.where


def test_forged_events_of_the_way_back_neither_raise_exposure_nor_close_it_early() -> None:
    drive = Drive(replace(POLICY, default_rollback=RollbackKind.GRADUAL)).to(Phase.RAMP, 3)
    (down,) = decide(drive.policy, drive.state, well(drive.state, gate=FAIL), drive.now)
    assert down.order is not None
    with pytest.raises(IllegalTransition, match="never exposes more"):
        apply(drive.state, replace(down, order=replace(down.order, fraction=0.9)))
    with pytest.raises(IllegalTransition, match=r"the step below is 0\.1"):
        apply(drive.state, replace(down, order=replace(down.order, fraction=0.2)))
    drive.tick(0.0, operator=said(Command.ROLL_BACK))
    (closed,) = decide(drive.policy, drive.state, well(drive.state), drive.now)
    for evidence in ({}, {"counter": drive.state.counter}, {"counter": 0, "num_pending": 0}):
        with pytest.raises(IllegalTransition, match=r"nothing is known|have not confirmed"):
            apply(drive.state, replace(closed, evidence=evidence))


def test_a_harmed_cluster_is_named_by_the_stop_and_by_the_incident() -> None:
    drive = Drive()
    drive.to(Phase.CANARY)
    fleet = Check("hits", Role.GUARDRAIL, Verdict.PASS, Reason.NO_HARM_SEEN, -0.01, -0.02, 0.0, 0.02, 50, 500)
    harmed = Check(
        "hits", Role.GUARDRAIL, Verdict.FAIL, Reason.HARM, 0.2, 0.15, 0.25, 0.09, 12, 99, "site north"
    )
    drive.tick(gate=combine((fleet, harmed)))
    (started,) = [event for event in drive.log if event.kind is EventKind.ROLLBACK_STARTED]
    assert started.reason == "worse in hits at site north"
    assert [check["cluster"] for check in started.evidence["checks"]] == ["", "site north"]
    assert "at site north" in write_incident(drive.log, started.cause).text


def test_what_clusters_can_detect_is_stated_and_those_that_nobody_judges_are_named() -> None:
    seen = [
        ClusterPower("accuracy", "site a", 50, 0.09, (math.inf, 0.12, 0.07)),
        ClusterPower("accuracy", "site b", 20, 0.15, (math.inf, math.inf, 0.3)),
        ClusterPower("accuracy", "site c", 6, 0.3, (math.inf,) * 3),
    ]
    known = {"detectable": (0.01, 0.01, 0.01), "num_devices": 500}
    event = create(POLICY, "r", 7, 3, 0.0, clusters=seen, **known)
    assert event.evidence["clusters"][0]["detectable"] == [None, 0.12, 0.07]
    few, blind = event.plan.warnings
    assert few == "too few devices to be judged by themselves: site c"
    assert "below 0.3 at site b, the limit there is 0.15" in blind
    strict = replace(POLICY, on_underpowered=OnUnderpowered.REFUSE)
    with pytest.raises(ConfigError, match="site b"):
        create(strict, "r", 7, 3, 0.0, clusters=seen, **known)
    create(strict, "r", 7, 3, 0.0, clusters=[seen[0], seen[2]], **known)
