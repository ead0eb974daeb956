"""Properties of validation: statistics are a monoid, fed by a device or by a pool alike; deliveries lose nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.validation.config import CriticalSegment
from fedretrain.validation.count import count_rows
from fedretrain.validation.replay import Disorder, deliveries
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.statistics import empty, merge, merge_all

SEGMENTS = (CriticalSegment("early", until_at=3.0), CriticalSegment("one group", groups=(1,)))
CLASSIFICATION = Layout(3, (2.0, 5.0), 4.0, 4, SEGMENTS)
REGRESSION = Layout(0, (5.0,), 4.0, 4, SEGMENTS)


@st.composite
def rows(draw):
    """Rows of a few devices, with broken predictions among them."""
    seed, size = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 25))
    classification = draw(st.booleans())
    rng = np.random.default_rng(seed)
    device = rng.integers(0, 5, size)
    label = rng.integers(0, 3, size) if classification else rng.normal(size=size) * 3
    out = rng.dirichlet(np.ones(3), (2, size)) if classification else rng.normal(size=(2, size)) * 3
    out[:, rng.random(size) < 0.1] = np.nan
    moments = Labelled(device, device % 2, rng.random(size) * 10, rng.exponential(4, size), label)
    return (CLASSIFICATION if classification else REGRESSION), Rows(moments, out[0], out[1])


def part(whole, index):
    return Rows(whole.labelled.take(index), whole.candidate[index], whole.champion[index])


def counted(layout, whole, owner, *owners):
    return count_rows(layout, part(whole, np.flatnonzero(np.isin(owner, owners))))


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(0, 2**32 - 1))
def test_merge_is_associative_and_commutative_with_a_neutral_element(sample, seed):
    layout, whole = sample
    owner = np.random.default_rng(seed).integers(0, 3, len(whole))
    a, b, c = (counted(layout, whole, owner, i) for i in range(3))
    assert merge(a, b).digest == merge(b, a).digest
    assert merge(merge(a, b), c).digest == merge(a, merge(b, c)).digest
    assert merge(a, empty(layout)).digest == merge(empty(layout), a).digest == a.digest
    assert merge_all(layout, (c, a, b)).digest == count_rows(layout, whole).digest


@settings(max_examples=60, deadline=None)
@given(rows(), st.randoms(use_true_random=False))
def test_devices_that_count_for_themselves_give_what_the_pool_gives(sample, random):
    layout, whole = sample
    devices = np.unique(whole.labelled.device_N).tolist()
    random.shuffle(devices)
    each = [counted(layout, whole, whole.labelled.device_N, device) for device in devices]
    assert all(stats.num_devices == 1 for stats in each)
    shuffled = list(range(len(whole)))
    random.shuffle(shuffled)
    pooled = count_rows(layout, part(whole, np.array(shuffled, dtype=int)))
    assert merge_all(layout, each).digest == pooled.digest


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 1000), st.sampled_from(Disorder))
def test_deliveries_lose_nothing_invent_nothing_and_repeat(size, seed, disorder):
    events = tuple((device, n) for n in range(size) for device in [n * 7 % 5])
    arrived = deliveries(events, seed, disorder, lambda event: event[0])
    assert arrived == deliveries(events, seed, disorder, lambda event: event[0])
    assert set(arrived) == set(events)
    most = max(Counter(arrived).values(), default=1)
    assert most <= (2 if disorder in {Disorder.DUPLICATED, Disorder.EVERYTHING} else 1)
