"""The privacy unit `person` in a campaign: one device in a round, and every participation is the person's."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import norm

from fedretrain.core.errors import ConfigError, DataError, PrivacyError
from fedretrain.privacy.accountant import Spending, gaussian_epsilon
from fedretrain.privacy.event import Sampling, decode_units
from fedretrain.privacy.mechanism import Relation, Unit
from fedretrain.server.campaign_rules import PrivacyRule, SamplingRule
from tests.fakes import FakeRunner
from tests.unit.server.test_campaign import PRIVATE, World, to_the_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from fedretrain.coordinator.ports import RoundSpec, ShardResult


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> World:
    return World(tmp_path, database_url)


UNITS = (0, 0, 0, 3, 4, 4, 6, 6, 6, 6, 10, 4)
"""Of twelve devices: five persons, known by their first devices."""
PERSONS = replace(
    PRIVATE, sampling=SamplingRule(cohort_size=3), privacy=PrivacyRule(1.0, 0.5, unit=Unit.PERSON)
)


class Watched(FakeRunner):
    """Remembers whom it was given."""

    def __init__(self) -> None:
        FakeRunner.__init__(self)
        self.cohorts: list[list[int]] = []

    def run(self, spec: RoundSpec, cohort: NDArray[np.int64]) -> Iterator[ShardResult]:
        self.cohorts.append(cohort.tolist())
        return super().run(spec, cohort)


def test_a_person_has_one_device_in_a_round_and_pays_for_all_of_them(world: World) -> None:
    world.define(world.definition(PERSONS, units=UNITS, num_rounds=12))
    runner = Watched()
    to_the_end(world.run(), runner)
    asked = [[UNITS[device] for device in cohort] for cohort in runner.cohorts]
    assert all(len(set(persons)) == len(persons) == 3 for persons in asked)
    events = world.ledger().events()
    assert [decode_units(event.units).tolist() for event in events] == [sorted(one) for one in asked]
    most = max(Counter(person for one in asked for person in one).values())
    by_person, by_device = (Counter(x for one in rounds for x in one) for rounds in (asked, runner.cohorts))
    assert by_person[0] > max(by_device[device] for device in (0, 1, 2))
    # The most charged person's composed Gaussian, by the definition of (epsilon, delta): an independent computation.
    spent = Spending.of(events)
    assert (spent.most_participations, spent.claim) == (most, (Relation.ZERO_OUT, Unit.PERSON))
    epsilon = spent.epsilon(1e-5)
    mu = math.sqrt(most) / 1.0
    lost = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert lost == pytest.approx(1e-5, rel=1e-3)


def test_limits_on_participations_are_a_persons(world: World) -> None:
    sampling = SamplingRule(Sampling.MIN_SEPARATION, 1, separation=2, max_participations=3)
    world.define(world.definition(replace(PERSONS, sampling=sampling, quorum=1), units=UNITS, num_rounds=20))
    runner = Watched()
    to_the_end(world.run(), runner)
    rounds: dict[int, list[int]] = {}
    for number, cohort in enumerate(runner.cohorts):
        for device in cohort:
            rounds.setdefault(UNITS[device], []).append(number)
    assert max(map(len, rounds.values())) == 3
    assert min(np.diff(numbers).min() for numbers in rounds.values() if len(numbers) > 1) >= 2


def test_a_round_that_was_charged_and_lost_counts_for_the_person(world: World) -> None:
    sampling = SamplingRule(Sampling.MIN_SEPARATION, 3, separation=1, max_participations=1)
    world.define(world.definition(replace(PERSONS, sampling=sampling), units=UNITS, num_rounds=4))
    run = world.run()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run._commit = killed  # type: ignore[method-assign]
    first, second = Watched(), Watched()
    with pytest.raises(KeyboardInterrupt):
        run.step(first)
    world.run().step(second)
    persons = [{UNITS[device] for device in one.cohorts[0]} for one in (first, second)]
    assert len(persons[0]) == 3
    assert not persons[0] & persons[1]


def test_a_person_whose_budget_is_spent_is_not_asked_with_another_device(world: World) -> None:
    once = gaussian_epsilon(1.0, 1e-5)
    privacy = PrivacyRule(1.0, 0.5, unit=Unit.PERSON, epsilon=once * 1.01, delta=1e-5)
    world.define(world.definition(replace(PERSONS, privacy=privacy), units=UNITS, num_rounds=6))
    runner = Watched()
    record = to_the_end(world.run(), runner)
    asked = Counter(UNITS[device] for cohort in runner.cohorts for device in cohort)
    assert set(asked.values()) == {1}
    assert record.end == "budget_spent"


def test_the_unit_person_needs_to_know_whose_devices_there_are(world: World) -> None:
    with pytest.raises(PrivacyError, match="which devices are one person's"):
        world.define(world.definition(PERSONS))
    with pytest.raises(DataError, match="2 units of 12 devices"):
        world.definition(PERSONS, units=(0, 0))
    with pytest.raises(ConfigError, match="out of 5 persons"):
        world.define(world.definition(replace(PERSONS, sampling=SamplingRule(cohort_size=6)), units=UNITS))
