"""Safe mode and the kill switch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedretrain.core.build import build
from fedretrain.core.errors import ConfigError
from fedretrain.rollout.safety import (
    IllegalSafetyEvent,
    Reading,
    SafetyCommand,
    SafetyEvent,
    SafetyEventKind,
    SafetyLimit,
    SafetyOrder,
    SafetyRules,
    SafetyState,
    Switch,
    apply_safety,
    decide_safety,
    replay_safety,
    safety_event,
    tripped,
)

RULES = SafetyRules(
    (
        SafetyLimit("false alarms", "alarms_per_hour", above=3.0, min_devices=20),
        SafetyLimit("accuracy", "accuracy", below=0.6, above=1.0),
    )
)
HIGH, FINE = Reading("alarms_per_hour", 4.0, 50), Reading("alarms_per_hour", 1.0, 50)


def run(
    state: SafetyState, readings: list[Reading], *orders: SafetyOrder
) -> tuple[SafetyState, list[SafetyEvent]]:
    events = decide_safety(RULES, state, readings, orders, 5.0)
    for event in events:
        state = apply_safety(state, event)
    return state, list(events)


def order(command: SafetyCommand, by: str = "ada", switch: Switch | None = None) -> SafetyOrder:
    return SafetyOrder(command, by, switch)


def test_a_named_limit_enters_by_itself_and_once() -> None:
    state, events = run(SafetyState(), [HIGH])
    assert state.safe_mode
    assert events[0].limits == ("false alarms",)
    assert run(state, [HIGH]) == (state, [])


def test_leaving_needs_a_person_and_a_limit_that_holds_again() -> None:
    state, _ = run(SafetyState(), [HIGH])
    leave = order(SafetyCommand.LEAVE)
    assert run(state, [FINE])[0].safe_mode
    assert run(state, [FINE], order(SafetyCommand.LEAVE, by=""))[0].safe_mode
    assert run(state, [HIGH], leave)[0].safe_mode
    assert run(state, [], leave)[0].safe_mode  # no reading is no good reading
    after, events = run(state, [FINE], leave)
    assert not after.safe_mode
    assert events[0].by == "ada"


def test_readings_that_say_nothing_trip_nothing() -> None:
    silent = [
        Reading("alarms_per_hour", float("nan"), 50),
        Reading("alarms_per_hour", 9.0, 19),
        Reading("x", 9.0),
    ]
    assert tripped(RULES, silent) == ()
    assert tripped(RULES, [Reading("accuracy", 0.59), HIGH]) == ("false alarms", "accuracy")
    assert tripped(RULES, [Reading("accuracy", 0.6)]) == ()


def test_a_person_may_enter_and_then_leaves_without_a_reading() -> None:
    state, _ = run(SafetyState(), [], order(SafetyCommand.ENTER))
    assert state.safe_mode
    assert not run(state, [], order(SafetyCommand.LEAVE))[0].safe_mode


@pytest.mark.parametrize("switch", list(Switch))
def test_the_kill_switch_stops_each_part_apart(switch: Switch) -> None:
    state, _ = run(SafetyState(), [], order(SafetyCommand.STOP, switch=switch))
    assert [s for s in Switch if not state.allows(s)] == [switch]
    assert run(state, [], order(SafetyCommand.STOP, switch=switch)) == (state, [])
    assert run(state, [], order(SafetyCommand.START, by="", switch=switch))[0] == state
    assert run(state, [], order(SafetyCommand.START, switch=switch))[0].allows(switch)


def test_safe_mode_stops_rollouts_and_leaves_training_as_the_way_out() -> None:
    state, _ = run(SafetyState(), [HIGH])
    assert [s for s in Switch if state.allows(s)] == [Switch.TRAINING, Switch.INSTALLS]


def test_replay_json_and_illegal_events() -> None:
    state, events = run(SafetyState(), [HIGH], order(SafetyCommand.STOP, switch=Switch.TRAINING))
    records = json.loads(json.dumps([event.to_record() for event in events]))
    assert [safety_event(record) for record in records] == events
    assert replay_safety(events) == state
    kind = SafetyEventKind
    for event in (
        events[0],
        events[1],
        SafetyEvent(kind.LEFT, 6.0),
        SafetyEvent(kind.STARTED, 6.0, by="ada", switch=Switch.ROLLOUTS),
        SafetyEvent(kind.STOPPED, 6.0, by="ada"),
    ):
        copy = replace(state)
        with pytest.raises(IllegalSafetyEvent):
            apply_safety(state, event)
        assert state == copy


def test_impossible_limits_name_their_key() -> None:
    assert build(SafetyRules, {"limits": [{"name": "a", "metric": "m", "above": 2}]}).limits[0].above == 2.0
    for values in (
        {"limits": [{"name": "a", "metric": "m"}]},
        {"limits": [{"name": "", "metric": "m", "above": 1}]},
        {"limits": [{"name": "a", "metric": "m", "above": 1, "min_devices": 0}]},
        {"limits": [{"name": "a", "metric": "m", "above": 1}] * 2},
    ):
        with pytest.raises(ConfigError):
            build(SafetyRules, values)
