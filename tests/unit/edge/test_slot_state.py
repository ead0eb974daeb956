"""What each version is to a device: whatever happens in whatever order, nothing bad is kept and nothing is held twice."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.errors import DataError
from fedretrain.edge.slot_state import MAX_BAD, MAX_REASON, SlotState

A, B, C, D = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c", b"d"))
KEEP = 2
CALLS = {
    "stage": lambda state, one: state.staged(one),
    "activate": lambda state, one: state.activated(one, KEEP),
    "back": lambda state, _one: state.rolled_back(),
    "bad": lambda state, one: state.marked_bad(one, "burns"),
    "forgive": lambda state, one: state.forgiven(one),
    "lose": lambda state, one: state.without(one),
}


def after(*steps):
    state = SlotState()
    for call, one in steps:
        try:
            state = CALLS[call](state, one)
        except DataError:
            continue  # refused: the state is as it was
    return state


@given(st.lists(st.tuples(st.sampled_from(sorted(CALLS)), st.sampled_from([A, B, C, D])), max_size=30))
def test_any_order_of_events_leaves_a_possible_state(steps):
    state = after(*steps)
    assert len(set(state.held)) == len(state.held)
    assert len(state.previous) <= KEEP
    bad = {digest for digest, _ in state.bad}
    assert not bad & {*state.previous, state.candidate}
    assert not bad & set(state.good)
    assert SlotState.from_bytes(state.to_bytes()) == state


@given(st.lists(st.tuples(st.sampled_from(sorted(CALLS)), st.sampled_from([A, B, C, D])), max_size=30))
def test_going_back_never_serves_what_is_bad_and_ends(steps):
    state = after(*steps)
    seen = [state.current]
    while (back := state.rolled_back()) != state:
        assert not back.why_bad(back.current)
        assert back.current not in seen
        seen.append(back.current)
        state = back
    assert len(seen) <= KEEP + 1


def test_the_ordinary_life_of_a_version():
    state = after(("stage", A), ("activate", A), ("stage", B))
    assert (state.current, state.previous, state.candidate) == (A, (), B)
    state = state.activated(B, KEEP)
    assert (state.current, state.previous, state.candidate) == (B, (A,), "")
    assert state.staged(A) is state  # it is kept already
    assert state.activated(A, KEEP).previous == (B,)
    assert state.marked_bad(B, "burns").current == B  # nothing else takes its place by this
    assert state.marked_bad(B, "burns").rolled_back().held == (A,)


def test_a_candidate_stays_when_the_device_goes_back():
    state = after(("stage", A), ("activate", A), ("stage", B), ("activate", B), ("stage", C))
    assert state.rolled_back().candidate == C
    assert state.marked_bad(C, "burns").candidate == ""


def test_verdicts_are_bounded_and_the_last_one_counts():
    state = SlotState().marked_bad(A, "first").marked_bad(A, "x" * 1000)
    assert state.bad == ((A, "x" * MAX_REASON),)
    for number in range(MAX_BAD):
        state = state.marked_bad(hashlib.sha256(bytes([number])).hexdigest(), "burns")
    assert len(state.bad) == MAX_BAD
    assert state.why_bad(A) == ""
    assert SlotState().marked_bad(A, "").why_bad(A) == "unknown"


@pytest.mark.parametrize("name", ["../x", "", A.upper(), A[:-1]])
def test_only_digests_are_versions(name):
    for call in ("stage", "activate", "bad"):
        with pytest.raises(DataError, match="digest"):
            CALLS[call](SlotState(), name)


@pytest.mark.parametrize("change", [{"format": 2}, {"sha256": A}, {"state": {"current": B}}, {"state": None}])
def test_a_pointer_that_was_changed_is_refused(change):
    content = json.loads(after(("stage", A), ("activate", A)).to_bytes())
    with pytest.raises(DataError, match="damaged"):
        SlotState.from_bytes(json.dumps({**content, **change}).encode())


@pytest.mark.parametrize(
    "state",
    [None, [], {"current": "../x"}, {"surprise": 1}, {"current": A, "previous": [A]}, {"bad": [["x", "y"]]}],
)
def test_a_state_that_cannot_be_is_refused_with_any_checksum(state):
    checksum = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    with pytest.raises(DataError):
        SlotState.from_bytes(json.dumps({"format": 1, "state": state, "sha256": checksum}).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_what_is_no_pointer_is_refused(content):
    with pytest.raises(DataError, match="damaged"):
        SlotState.from_bytes(content)
