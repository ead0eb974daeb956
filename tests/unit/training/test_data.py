from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.core.rng import permutations
from fedretrain.training import data
from fedretrain.training.config import ExampleDp, LocalTraining
from fedretrain.training.phase import Phase

SIZES = st.lists(st.integers(0, 23), min_size=1, max_size=6)


def seeds_of(count, start=2**63):
    return np.arange(start, start + count, dtype=np.uint64)


def plain_plan(size, seed, batch_size, steps, purpose):
    """The rule in words: permute, cut, keep the last partial batch, permute again."""
    batches, epoch = [], 0
    while len(batches) < steps:
        stream = data.client_seeds(np.array([seed], dtype=np.uint64), purpose, epoch)
        order = permutations(stream, np.array([size]), size)[0]
        batches += [order[i : i + batch_size].tolist() for i in range(0, size, batch_size)]
        epoch += 1
    return batches[:steps]


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 7), st.integers(0, 3), st.integers(0, 9))
def test_the_plan_equals_the_rule_in_words(sizes, batch_size, epochs, max_steps):
    if epochs == 0 and max_steps == 0:
        max_steps = 1
    local = LocalTraining(batch_size=batch_size, epochs=epochs, max_steps=max_steps)
    seeds = seeds_of(len(sizes))
    plan = data.plan(local, Phase("shared", epochs, max_steps), np.array(sizes), seeds)
    assert plan.index_KSB.shape[1] == plan.steps.max()
    for k, size in enumerate(sizes):
        per_epoch = -(-size // batch_size)
        expected = (epochs * per_epoch if epochs else max_steps) if size else 0
        expected = min(expected, max_steps) if max_steps else expected
        assert plan.steps[k] == expected
        plain = plain_plan(size, seeds[k], batch_size, expected, "shared") if size else []
        rows = [row[row >= 0].tolist() for row in plan.index_KSB[k]]
        assert rows[:expected] == plain
        assert not any(rows[expected:])  # beyond a client's steps there is padding alone


@settings(max_examples=30, deadline=None)
@given(SIZES, st.booleans())
def test_a_clients_batches_depend_on_itself_alone(sizes, private):
    dp = ExampleDp() if private else None
    local = LocalTraining(batch_size=4, epochs=0, max_steps=5, example_dp=dp)
    phase, seeds = Phase("shared", 0, 5), seeds_of(len(sizes))
    together = data.plan(local, phase, np.array(sizes), seeds)
    for k, size in enumerate(sizes):
        alone = data.plan(local, phase, np.array([size]), seeds[k : k + 1])
        assert alone.steps[0] == together.steps[k]
        for step in range(int(alone.steps[0])):
            a, b = alone.index_KSB[0, step], together.index_KSB[k, step]
            np.testing.assert_array_equal(a[a >= 0], b[b >= 0])


def test_epochs_and_phases_reshuffle():
    local = LocalTraining(batch_size=20, epochs=3)
    plans = [data.plan(local, Phase(p, 3), np.array([20]), seeds_of(1)).index_KSB[0] for p in ("a", "b")]
    orders = {tuple(row) for plan in plans for row in plan}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_poisson_batches_toss_a_fair_independent_coin_for_each_sample():
    sizes, steps, batch_size = np.array([40]), 4000, 8
    plan = data.poisson_plan(sizes, seeds_of(1), np.array([steps]), batch_size, "shared")
    joined = np.zeros((steps, 40), dtype=bool)
    for step, row in enumerate(plan.index_KSB[0]):
        chosen = row[row >= 0]
        assert len(set(chosen.tolist())) == len(chosen)
        joined[step, chosen] = True
    rate = 8 / 40
    sd = np.sqrt(rate * (1 - rate) / steps)
    assert np.abs(joined.mean(axis=0) - rate).max() < 4.5 * sd  # 40 samples
    # Batch sizes are binomial: of variance N q (1 - q), neither fixed nor wider.
    assert abs(joined.sum(axis=1).var() / (40 * rate * (1 - rate)) - 1) < 0.1
    pairs = np.corrcoef(joined.T)[np.triu_indices(40, 1)]
    assert np.abs(pairs).max() < 5 / np.sqrt(steps)


def test_poisson_takes_all_samples_of_a_client_smaller_than_a_batch():
    plan = data.poisson_plan(np.array([3, 0]), seeds_of(2), np.array([2, 0]), 8, "shared")
    assert [sorted(row[row >= 0]) for row in plan.index_KSB[0]] == [[0, 1, 2], [0, 1, 2]]
    assert (plan.index_KSB[1] == -1).all()
    assert data.sample_rates(np.array([3, 16]), 8).tolist() == [1.0, 0.5]


def test_no_clients_and_no_samples_plan_nothing():
    local = LocalTraining(batch_size=4)
    assert data.plan(local, Phase("p", 1), np.array([], dtype=np.int64), seeds_of(0)).index_KSB.shape == (
        0,
        0,
        4,
    )
    assert data.plan(local, Phase("p", 1), np.array([0, 0]), seeds_of(2)).index_KSB.shape == (2, 0, 4)
