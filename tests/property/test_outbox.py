"""Exactly once, whatever the network, the power and the bounds do.

Records are added, flushed, sent, lost, doubled and reordered; acknowledgements are lost; the agent dies between any two steps; the bounds
drop records. In the end each record that was ever flushed is counted once or named as dropped, never both, never twice.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedretrain.core import spans as sets
from fedretrain.wire.sequence import MAX_SPANS, Arrival, Priority, Received, accept, drop
from tests.edge_cases import Device, Server, drain, numbers

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=12)
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 6)), max_size=60)


def built(pairs):
    spans, plain = (), set()
    for first, length in pairs:
        spans = sets.add(spans, first, first + length)
        plain |= set(range(first, first + length + 1))
    return spans, plain


@given(SPANS, st.integers(0, 50), st.integers(0, 10))
def test_spans_are_sets(pairs, first, length):
    spans, plain = built(pairs)
    some = set(range(first, first + length + 1))
    assert numbers(spans) == plain
    assert sets.size(spans) == len(plain)
    assert all(one[1] + 1 < two[0] for one, two in pairwise(spans))
    assert numbers(sets.remove(spans, first, first + length)) == plain - some
    assert numbers(sets.missing(spans, first, first + length)) == some - plain
    assert sets.contains(spans, first) == (first in plain)


@given(STEPS)
def test_a_number_is_settled_once(steps):
    state, received, dropped = Received(), set(), set()
    for is_gap, first, length in steps:
        if is_gap:
            state, arrival, lost = drop(state, first, first + length)
            new = numbers(lost)
            assert new == set(range(first, first + length + 1)) - received - dropped
            assert (arrival is Arrival.FRESH) == bool(new)
            dropped |= new
        else:
            state, arrival = accept(state, first)
            assert (arrival is Arrival.FRESH) == (first not in received | dropped)
            received |= {first} - dropped
    assert Received.from_dict(state.to_dict()) == state
    assert (state.num_received, state.num_dropped) == (len(received), len(dropped))
    assert numbers(state.late) == set(range(state.next)) - received - dropped


@given(st.permutations(range(3 * MAX_SPANS)), st.integers(1, 40))
@settings(max_examples=30)
def test_an_honest_device_is_never_stuck(order, batch):
    """Whatever arrives first, sending the lowest numbers that are not acknowledged settles everything."""
    state, waiting = Received(), list(range(3 * MAX_SPANS))
    for number in order[: 2 * MAX_SPANS]:  # a network that reorders
        state, arrival = accept(state, number)
        if arrival is not Arrival.REFUSED:
            waiting.remove(number)
        assert len(state.settled) <= MAX_SPANS
    for _ in range(3 * MAX_SPANS):
        for number in waiting[:batch]:
            state, arrival = accept(state, number)
            if arrival is not Arrival.REFUSED:
                waiting.remove(number)
    assert not waiting
    assert state.settled == ((0, 3 * MAX_SPANS - 1),)


class ExactlyOnce(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.device = Device(Path(self.folder.name) / "agent.db", max_bytes=2_000, max_age_s=50.0)
        self.server = Server()
        self.volatile, self.durable = {}, {}
        self.on_the_way, self.answers = [], []
        self.added = 0

    def teardown(self):
        self.flush()
        drain(self.device, self.server, 500)
        self.check()
        held = {*self.server.lost, *(key for key, _ in self.server.counted)}
        assert held >= self.durable.keys()
        assert all(not state.late for state in self.server.inbox.streams.values())
        assert self.server.inbox.num_late_forgotten == 0
        self.device.database.close()
        self.folder.cleanup()

    @rule(priority=st.sampled_from(Priority), size=st.integers(0, 400))
    def add(self, priority, size):
        payload = b"%d" % self.added + b"." * size
        self.added += 1
        self.volatile[self.device.add(priority, payload)] = payload

    @rule()
    def flush(self):
        assert self.device.flush()
        self.durable |= self.volatile
        self.volatile = {}

    @rule(max_bytes=st.integers(1, 1_500))
    def send(self, max_bytes):
        self.on_the_way.append(self.device.outbox.pending(max_bytes))

    @rule(data=st.data(), is_kept=st.booleans())
    def arrive(self, data, is_kept):
        """Any message, not only the first; it may come again."""
        if self.on_the_way:
            number = data.draw(st.integers(0, len(self.on_the_way) - 1))
            batch = self.on_the_way[number] if is_kept else self.on_the_way.pop(number)
            self.answers.append((self.device.database.identity.boot, self.server.receive(batch)))

    @rule(data=st.data())
    def acknowledge(self, data):
        """An answer that reaches the agent that asked; those to one that died meanwhile are lost."""
        if self.answers:
            boot, batch = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
            if boot == self.device.database.identity.boot:
                self.device.outbox.acknowledge(batch)

    @rule()
    def lose(self):
        if self.on_the_way:
            self.on_the_way.pop()

    @rule()
    def die(self):
        """What was not flushed is gone, and so are the acknowledgements that were not."""
        self.device.restart()
        self.volatile = {}

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds):
        self.device.now_s += seconds

    @invariant()
    def check(self):
        keys = [key for key, _ in self.server.counted]
        assert len(set(keys)) == len(keys)
        assert len(set(self.server.lost)) == len(self.server.lost)
        assert not set(keys) & set(self.server.lost)
        assert set(self.server.lost) <= self.durable.keys()
        assert all({**self.durable, **self.volatile}[key] == payload for key, payload in self.server.counted)
        assert self.device.outbox.status().stored_bytes <= 2_000


TestExactlyOnce = pytest.mark.faults(ExactlyOnce.TestCase)
TestExactlyOnce.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
