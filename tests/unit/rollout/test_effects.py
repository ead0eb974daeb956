"""Effects, what is still due after a crash, incidents, admission, and the last good version."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedretrain.core.errors import DataError
from fedretrain.rollout.causes import Cause, IncidentKind, Phase, RollbackKind, incident_kind
from fedretrain.rollout.config import HoldbackRules, OnRetrain, OnSecond
from fedretrain.rollout.effects import EffectKind, due, effects
from fedretrain.rollout.evidence import Command
from fedretrain.rollout.incident import incident_from_record, write_incident
from fedretrain.rollout.reconcile import Admission, admit, last_good
from tests.rollout_cases import DEAD, FAIL, POLICY, UNSURE, Drive, said


def test_keys_name_rollout_step_and_attempt_and_repeat_for_the_same_event() -> None:
    drive = Drive().to(Phase.RAMP)
    event = drive.log[-1]
    (assign, *_) = effects(event)
    assert assign.key == f"r1/2/0/{event.sequence}/assign"
    assert effects(event) == effects(event)
    json.dumps([effect.payload for effect in drive.effects], allow_nan=False)


def test_after_a_crash_what_was_not_done_is_due_but_no_older_order() -> None:
    """Two orders were written and none was given: only the newer may reach the devices."""
    drive = Drive().to(Phase.CANARY)
    drive.tick(0.0, gate=FAIL)
    owed = due(drive.log, ())
    orders = [effect for effect in owed if effect.kind is EffectKind.ASSIGN]
    assert [order.payload["fraction"] for order in orders] == [0.0]
    assert {EffectKind.QUARANTINE, EffectKind.OPEN_INCIDENT} <= {effect.kind for effect in owed}
    assert due(drive.log, {effect.key for effect in owed}) == ()
    assert due(drive.log, {effect.key for effect in owed[1:]}) == owed[:1]


def test_an_incident_says_what_when_on_what_evidence_and_to_whom() -> None:
    drive = Drive().to(Phase.RAMP)
    drive.tick(0.0)
    drive.tick(0.5, gate=FAIL)
    opened_at = drive.now
    still = write_incident(drive.log, Cause.KPI_REGRESSION, (4, 9))
    assert still.closed_at is None
    drive.tick(2.0)
    incident = write_incident(drive.log, Cause.KPI_REGRESSION, (4, 9))
    assert (incident.kind, incident.candidate, incident.fallback) == (IncidentKind.MODEL, 7, 3)
    assert (incident.opened_at, incident.closed_at) == (opened_at, drive.now)
    assert incident.devices == (4, 9)
    assert incident.evidence["checks"][0]["metric"] == "hits"
    assert incident.incident == drive.payloads(EffectKind.OPEN_INCIDENT)[0]["incident"]
    # Canary: an hour at 2 %; ramp: half an hour at 10 %; gone with the rollback's order.
    canary_s = next(e.at for e in drive.log if e.kind.value == "ramp_started") - next(
        e.at for e in drive.log if e.kind.value == "canary_started"
    )
    assert incident.exposure_s == pytest.approx(0.02 * canary_s + 0.1 * 1800)
    assert len(incident.timeline) == len(drive.log)
    assert incident_from_record(json.loads(json.dumps(incident.to_record()))) == incident
    assert "worse in hits" in incident.text
    assert "rolled_back" in incident.text


def test_the_incident_of_a_metric_source_closes_when_the_source_is_back() -> None:
    drive = Drive().to(Phase.CANARY)
    drive.tick(0.0, gate=DEAD)
    drive.tick(6.0, gate=DEAD)
    assert write_incident(drive.log, Cause.METRIC_SOURCE).closed_at is None
    drive.tick(1.0, gate=UNSURE)
    incident = write_incident(drive.log, Cause.METRIC_SOURCE)
    assert (incident.kind, incident.closed_at) == (IncidentKind.METRIC_SOURCE, drive.now)
    with pytest.raises(DataError, match="no trouble of cause kill"):
        write_incident(drive.log, Cause.KILL)


def test_each_cause_lies_somewhere() -> None:
    assert {incident_kind(cause) for cause in Cause} == set(IncidentKind)
    assert incident_kind(Cause.SAFE_MODE) is IncidentKind.FLEET
    assert incident_kind(Cause.NOT_INSTALLED) is IncidentKind.UNDECIDED
    assert incident_kind(Cause.KILL) is IncidentKind.OPERATOR


def test_two_rollouts_at_once_are_refused_or_queued_by_policy() -> None:
    on = Drive().to(Phase.CANARY).state
    assert admit(POLICY, 8, []) == (Admission.START, "no rollout is on")
    assert admit(POLICY, 8, [on])[0] is Admission.REFUSE
    assert admit(replace(POLICY, on_second=OnSecond.QUEUE), 8, [on])[0] is Admission.QUEUE
    assert admit(replace(POLICY, on_second=OnSecond.QUEUE), 7, [on])[0] is Admission.REFUSE
    assert admit(POLICY, 8, [], quarantined={8})[0] is Admission.REFUSE
    done = Drive().to(Phase.CHAMPION).state
    assert admit(POLICY, 8, [done])[0] is Admission.START


def test_the_next_rollout_ends_a_holdback() -> None:
    drive = Drive(replace(POLICY, holdback=HoldbackRules(0.1))).to(Phase.CHAMPION)
    assert admit(POLICY, 8, [drive.state]) == (Admission.START, "the holdback of r1 ends")
    assert drive.tick(1.0, gate=None, superseded_by=7) == []
    assert drive.tick(1.0, gate=None, superseded_by=8) == ["holdback_ended"]
    assert drive.state.phase is Phase.CHAMPION


def test_a_retrain_while_one_is_on_supersedes_and_starts_once_the_place_is_free() -> None:
    drive = Drive().to(Phase.RAMP)
    assert admit(POLICY, 8, [drive.state], is_retrain=True)[0] is Admission.SUPERSEDE
    drive.tick(0.0, superseded_by=8)
    assert admit(POLICY, 8, [drive.state], is_retrain=True)[0] is Admission.QUEUE
    drive.tick(1.0)
    assert drive.state.phase is Phase.ROLLED_BACK
    assert admit(POLICY, 8, [drive.state], is_retrain=True)[0] is Admission.START
    finishing = replace(POLICY, on_retrain=OnRetrain.FINISH)
    on = Drive(finishing).to(Phase.RAMP).state
    assert admit(finishing, 8, [on], is_retrain=True)[0] is Admission.REFUSE


def test_a_frozen_rollout_keeps_its_place_for_the_person_who_looks_at_it() -> None:
    drive = Drive(replace(POLICY, default_rollback=RollbackKind.FREEZE)).to(Phase.CANARY)
    drive.tick(0.0, operator=said(Command.FREEZE))
    assert admit(POLICY, 8, [drive.state], is_retrain=True)[0] is Admission.REFUSE


def test_the_last_good_version_is_the_latest_champion_that_may_still_be_served() -> None:
    first = Drive(candidate=4, champion=0).to(Phase.CHAMPION)
    second = Drive(candidate=5, champion=4, now=first.now).to(Phase.CHAMPION)
    bad = Drive(candidate=6, champion=5, now=second.now).to(Phase.RAMP)
    bad.tick(0.0, gate=FAIL)
    rollouts = [first.state, second.state, bad.state]
    assert last_good(rollouts, withdrawn={5}) == 4
    assert last_good(rollouts, withdrawn={5}, quarantined={4}) is None
    assert last_good(rollouts, withdrawn=()) == 5
    assert last_good([Drive(champion=3).state], withdrawn=()) == 3  # a champion from before the log
