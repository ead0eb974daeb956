"""One device of a person per round, and the person's separation over all devices."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.coordinator.persons import OnePerPerson
from fedretrain.coordinator.sampling import FixedSize, MinSeparation, Participation, Poisson, Sampler
from tests.unit.coordinator.rounds import dp_of, play, rules_of

PERSON_OF = np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 5])


@pytest.mark.parametrize("sampler", [FixedSize(3), MinSeparation(2, 2), Poisson(0.5)], ids=repr)
def test_no_two_devices_of_one_person(sampler: Sampler) -> None:
    history = Participation.none(10)
    eligible = np.arange(10) != 6
    seen = set()
    for round_ in range(60):
        cohort = OnePerPerson(sampler, PERSON_OF).cohort(1, round_, history, eligible)
        persons = PERSON_OF[cohort.clients]
        assert len(set(persons.tolist())) == len(persons)
        assert eligible[cohort.clients].all()
        assert np.all(np.diff(cohort.clients) > 0)
        assert cohort.num_eligible <= 5
        seen |= set(cohort.clients.tolist())
    assert seen == set(np.flatnonzero(eligible).tolist())


def test_each_device_of_a_person_is_as_likely() -> None:
    history = Participation.none(10)
    cohorts = [OnePerPerson(FixedSize(6), PERSON_OF).cohort(1, r, history).clients for r in range(3000)]
    counts = np.bincount(np.concatenate(cohorts), minlength=10)
    assert np.abs(counts[:3] - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)
    assert counts[3] == 3000


def test_separation_holds_for_the_person() -> None:
    history, rounds = Participation.none(10), {}
    sampler = OnePerPerson(MinSeparation(2, 3, 4), PERSON_OF)
    for round_ in range(20):
        cohort = sampler.cohort(1, round_, history)
        history = history.record(cohort.clients, round_)
        for person in PERSON_OF[cohort.clients].tolist():
            rounds.setdefault(person, []).append(round_)
    assert all(np.diff(taken).min(initial=99) >= 3 and len(taken) <= 4 for taken in rounds.values())
    assert sum(map(len, rounds.values())) == 6 * 4


def test_the_expected_cohort_counts_persons() -> None:
    assert OnePerPerson(Poisson(0.5), PERSON_OF).expected(10) == 3.0
    with pytest.raises(ValueError, match="10 devices have a person"):
        OnePerPerson(Poisson(0.5), PERSON_OF).expected(11)


def test_such_a_cohort_is_charged_once_per_person() -> None:
    person_of = np.arange(40) // 4
    rules = rules_of(dp_of(unit="person", unit_of=person_of))
    cohort = OnePerPerson(FixedSize(8), person_of).cohort(1, 0, Participation.none(40))
    _, result = play(rules, cohort=cohort)
    assert result.num_contributed == 8
