"""Cohorts: their distributions, their limits and their cost."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.coordinator.sampling import FixedSize, MinSeparation, Participation, Poisson, Sampler
from fedretrain.core.errors import ConfigError

SAMPLERS: list[Sampler] = [Poisson(0.3), FixedSize(12), FixedSize(12, 1.5), MinSeparation(12, 3, 5, 1.5)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_draw_is_a_function_of_seed_round_and_state(sampler: Sampler) -> None:
    history = Participation.none(100)
    one = sampler.cohort(7, 4, history)
    np.testing.assert_array_equal(one.clients, sampler.cohort(7, 4, history).clients)
    others = [sampler.cohort(7, 5, history), sampler.cohort(8, 4, history)]
    assert all(one.clients.tolist() != other.clients.tolist() for other in others)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_cohorts_are_sorted_unique_and_eligible(sampler: Sampler) -> None:
    eligible = np.random.default_rng(0).random(60) < 0.5
    for round_ in range(20):
        cohort = sampler.cohort(1, round_, Participation.none(60), eligible)
        assert np.all(np.diff(cohort.clients) > 0)
        assert eligible[cohort.clients].all()
        assert cohort.clients.dtype == np.int64
        assert cohort.num_eligible == eligible.sum()


@pytest.mark.parametrize("sampler", [Poisson(0.3), FixedSize(30), MinSeparation(30, 1)], ids=repr)
def test_every_device_is_as_likely(sampler: Sampler) -> None:
    counts = np.zeros(100)
    rounds = 3000
    for round_ in range(rounds):
        counts[sampler.cohort(3, round_, Participation.none(100)).clients] += 1
    # Binomial(3000, 0.3): standard deviation 25; five of them over a hundred devices.
    assert np.abs(counts - 0.3 * rounds).max() < 5 * np.sqrt(rounds * 0.3 * 0.7)


def test_poisson_is_a_coin_for_each_device() -> None:
    """The size is binomial, and two devices are drawn independently of each other."""
    cohorts = [Poisson(0.2).cohort(5, r, Participation.none(50)) for r in range(4000)]
    sizes = np.array([len(c) for c in cohorts])
    assert abs(sizes.mean() - 10) < 5 * np.sqrt(8 / 4000)
    assert abs(sizes.var() - 8) < 0.9
    together = np.mean([0 in c.clients and 1 in c.clients for c in cohorts])
    assert abs(together - 0.04) < 5 * np.sqrt(0.04 * 0.96 / 4000)
    assert {(c.sampling, c.fraction, c.stop_after, c.expected) for c in cohorts} == {
        ("poisson", 0.2, None, 10.0)
    }
    assert min(len(Poisson(0.01).cohort(5, r, Participation.none(50))) for r in range(50)) == 0


def test_over_selection_asks_more_and_stops_at_n() -> None:
    cohort = FixedSize(10, 1.3).cohort(0, 0, Participation.none(100))
    assert (len(cohort), cohort.expected, cohort.stop_after) == (13, 10.0, 10)
    assert FixedSize(10).cohort(0, 0, Participation.none(100)).stop_after is None


@pytest.mark.parametrize("sampler", [FixedSize(10), MinSeparation(10, 2)], ids=repr)
def test_a_population_that_cannot_fill_the_cohort_is_said(sampler: Sampler) -> None:
    eligible = np.arange(50) < 4
    cohort = sampler.cohort(0, 0, Participation.none(50), eligible)
    assert cohort.clients.tolist() == [0, 1, 2, 3]
    assert cohort.shortfall == "10 wanted, 4 of 50 devices eligible"
    assert sampler.cohort(0, 0, Participation.none(50)).shortfall == ""


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32))
def test_separation_and_the_number_of_participations_are_enforced(
    separation: int, most: int, seed: int
) -> None:
    sampler = MinSeparation(4, separation, most)
    history = Participation.none(17)
    rounds: dict[int, list[int]] = {}
    for round_ in range(30):
        cohort = sampler.cohort(seed, round_, history)
        history = history.record(cohort.clients, round_)
        for client in cohort.clients.tolist():
            rounds.setdefault(client, []).append(round_)
    assert all(len(taken) <= most for taken in rounds.values())
    assert all(np.diff(taken).min(initial=10**6) >= separation for taken in rounds.values())
    assert history.count.sum() == sum(map(len, rounds.values()))


def test_a_fixed_or_separated_cohort_is_never_recorded_as_poisson() -> None:
    for sampler in (FixedSize(5), MinSeparation(5, 2)):
        cohort = sampler.cohort(0, 0, Participation.none(20))
        assert cohort.sampling != "poisson"
        assert cohort.fraction == 0.0


def test_recording_leaves_the_old_history_alone_and_never_goes_back() -> None:
    first = Participation.none(5)
    second = first.record(np.array([1, 3]), 7)
    third = second.record(np.array([3]), 2)
    assert first.count.tolist() == [0] * 5
    assert second.count.tolist() == [0, 1, 0, 1, 0]
    assert third.count.tolist() == [0, 1, 0, 2, 0]
    assert third.last_round[3] == 7


def test_history_survives_its_arrays() -> None:
    history = Participation.none(5).record(np.array([1, 3]), 7)
    again = Participation.from_arrays(history.to_arrays())
    np.testing.assert_array_equal(again.last_round, history.last_round)
    np.testing.assert_array_equal(again.count, history.count)
    assert again.count.dtype == again.last_round.dtype == np.int32


@pytest.mark.parametrize("sampler", [Poisson(0.01), FixedSize(10_000), MinSeparation(10_000, 10)], ids=repr)
def test_ten_thousand_of_a_million_take_milliseconds(sampler: Sampler) -> None:
    history = Participation.none(1_000_000)
    times = []
    for round_ in range(5):
        start = time.perf_counter()
        cohort = sampler.cohort(0, round_, history)
        times.append(time.perf_counter() - start)
        assert 9_000 < len(cohort) < 11_000
    assert min(times) < 0.05  # 0.3 to 4 ms on an idle core; a loop over the population takes 100 ms


@pytest.mark.parametrize(
    "make",
    [
        lambda: Poisson(0.0),
        lambda: Poisson(1.5),
        lambda: FixedSize(0),
        lambda: FixedSize(5, 0.9),
        lambda: FixedSize(5, float("inf")),
        lambda: MinSeparation(5, 0),
        lambda: MinSeparation(5, 1, 0),
    ],
)
def test_impossible_settings_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match="give"):
        make()  # type: ignore[operator]


def test_eligibility_of_another_population_is_a_defect() -> None:
    with pytest.raises(ValueError, match="for 10 devices"):
        Poisson(0.5).cohort(0, 0, Participation.none(10), np.ones(9, dtype=bool))
