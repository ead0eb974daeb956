"""Quarantine: in by one fault, out by a person or by clean windows in a row."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.core.errors import ConfigError
from fedretrain.rollout.quarantine import (
    Fault,
    IllegalQuarantine,
    QuarantineEvent,
    QuarantineEventKind,
    QuarantineEvidence,
    QuarantineRules,
    QuarantineState,
    Release,
    Subject,
    apply_quarantine,
    decide_quarantine,
    quarantine_event,
    replay_quarantine,
)

RULES = QuarantineRules()
DEVICE, VERSION = Subject.DEVICE, Subject.VERSION


class Ward:
    """A quarantine whose log is kept."""

    def __init__(self, rules: QuarantineRules = RULES) -> None:
        self.rules, self.state, self.log = rules, QuarantineState(), []

    def window(self, number: int, **says: object) -> list[str]:
        events = decide_quarantine(self.rules, self.state, QuarantineEvidence(number, **says), float(number))
        for event in events:
            self.state = apply_quarantine(self.state, event)
            self.log.append(event)
        return [event.kind.value for event in events]


BROKEN = (Fault(DEVICE, 4, "stuck sensor"),)
SEEN = frozenset({(DEVICE, 4)})


def test_a_device_comes_back_after_clean_windows_in_a_row() -> None:
    ward = Ward()
    assert ward.window(1, faults=BROKEN) == ["entered"]
    assert ward.state.devices == {4}
    assert ward.window(2, measured=SEEN) == ["clean"]
    assert ward.window(2, measured=SEEN) == []  # the same window again
    assert ward.window(3) == []  # not measured is not clean
    assert ward.window(4, measured=SEEN) == ["clean"]
    assert ward.window(5, faults=BROKEN, measured=SEEN) == ["dirty"]
    assert [ward.window(n, measured=SEEN) for n in (6, 7, 8)] == [["clean"], ["clean"], ["clean", "released"]]
    assert ward.state.devices == frozenset()
    assert replay_quarantine(ward.log) == ward.state


def test_a_version_comes_back_by_a_person_only_unless_the_rules_say_otherwise() -> None:
    bad, seen = (Fault(VERSION, 7, "r1 rolled back"),), frozenset({(VERSION, 7)})
    ward = Ward()
    ward.window(1, faults=bad)
    for number in range(2, 30):
        ward.window(number, measured=seen)
    assert ward.state.versions == {7}
    assert ward.window(31, releases=(Release(VERSION, 7, ""),)) == []
    assert ward.window(32, releases=(Release(VERSION, 7, "ada", "labels were wrong"),)) == ["released"]
    assert ward.log[-1].by == "ada"
    lenient = Ward(QuarantineRules(version_clean_windows=1))
    lenient.window(1, faults=bad)
    assert lenient.window(2, measured=seen) == ["clean", "released"]


def test_a_release_does_not_outweigh_a_fault_of_the_same_window() -> None:
    ward = Ward()
    ward.window(1, faults=BROKEN)
    assert ward.window(2, faults=BROKEN, releases=(Release(DEVICE, 4, "ada"),)) == ["dirty"]


def test_illegal_events_are_refused() -> None:
    state = QuarantineState()
    for kind in (QuarantineEventKind.CLEAN, QuarantineEventKind.RELEASED):
        with pytest.raises(IllegalQuarantine):
            apply_quarantine(state, QuarantineEvent(kind, DEVICE, 4, 0.0))
    entered = QuarantineEvent(QuarantineEventKind.ENTERED, DEVICE, 4, 0.0, "stuck", 1)
    inside = apply_quarantine(state, entered)
    with pytest.raises(IllegalQuarantine):
        apply_quarantine(inside, entered)
    assert quarantine_event(json.loads(json.dumps(entered.to_record()))) == entered
    with pytest.raises(ConfigError):
        QuarantineRules(device_clean_windows=-1)


@given(st.lists(st.sampled_from(["fault", "clean", "silent"]), max_size=30), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_release_needs_exactly_n_clean_windows_in_a_row(says: list[str], need: int) -> None:
    ward, streak, inside = Ward(QuarantineRules(device_clean_windows=need)), 0, False
    for number, what in enumerate(says):
        ward.window(
            number, faults=BROKEN * (what == "fault"), measured=SEEN if what == "clean" else frozenset()
        )
        if what == "fault":
            inside, streak = True, 0
        elif what == "clean" and inside:
            streak += 1
            inside = streak < need
        assert (4 in ward.state.devices) == inside
        streak = streak if inside else 0
