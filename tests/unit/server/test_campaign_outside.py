"""Devices that are in the fleet and in no campaign: those that are only watched, and those that are retired."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.privacy.accountant import gaussian_epsilon
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Relation, Unit
from fedretrain.server import fleet
from fedretrain.server.campaign_rules import PrivacyRule, SamplingRule
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.spending import budget_left
from tests.unit.server.test_campaign import PLAIN, PRIVATE, World, to_the_end
from tests.unit.server.test_campaign_persons import PERSONS, UNITS, Watched

POISSON = replace(
    PRIVATE,
    sampling=SamplingRule(Sampling.POISSON, 4),
    privacy=PrivacyRule(1.0, 0.5, relation=Relation.ADD_REMOVE, amplified=True),
    quorum=0,
)


@pytest.fixture
def worlds(tmp_path):
    """Two databases: with and without devices outside."""
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    return [World(tmp_path / name, f"sqlite:///{tmp_path / name}/events.db") for name in ("with", "without")]


def _devices(*standings):
    return [Device("p", f"d{n}", n, "", standing, Traits()) for n, standing in enumerate(standings)]


def test_who_is_only_watched_or_retired_is_outside_and_who_is_revoked_may_come_again():
    found = _devices(Standing.ACTIVE, Standing.WATCHED, Standing.REVOKED, Standing.RETIRED)
    assert fleet.outside(found) == (1, 3)


@pytest.mark.parametrize(
    "rules", [PLAIN, PRIVATE, POISSON, PERSONS], ids=["plain", "private", "poisson", "persons"]
)
def test_a_campaign_is_the_same_whoever_stands_beside_it(worlds, rules):
    units = UNITS if rules is PERSONS else ()
    beside = {"num_devices": 15, "outside": (12, 13, 14), "units": (*units, 12, 0, 14) if units else ()}
    records, cohorts, spent = [], [], []
    for world, changes in zip(worlds, (beside, {"units": units}), strict=True):
        runner = Watched()
        world.define(world.definition(rules, **changes))
        records.append(to_the_end(world.run(), runner))
        cohorts.append(runner.cohorts)
        spent.append([(one.sampling_fraction, one.denominator) for one in world.ledger().events()])
    assert cohorts[0] == cohorts[1]
    assert any(cohorts[0])
    assert records[0].weights == records[1].weights
    assert spent[0] == spent[1]


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("rules", [PLAIN, POISSON], ids=["fixed", "poisson"])
def test_nobody_outside_is_asked_whoever_is_online(worlds, rules, online):
    world, runner = worlds[0], Watched()
    world.define(world.definition(rules, outside=(0, 3, 5, 7), num_rounds=20))
    run = world.run()
    while run.step(runner, np.ones(12, dtype=np.bool_) if online else None) is not None:
        pass
    assert {one for cohort in runner.cohorts for one in cohort} == {1, 2, 4, 6, 8, 9, 10, 11}


def test_a_cohort_is_drawn_from_those_that_can_come(worlds):
    world = worlds[0]
    with pytest.raises(ConfigError, match=r"a cohort of 4 .* out of 3 devices"):
        world.define(world.definition(PLAIN, outside=tuple(range(9))))
    with pytest.raises(ConfigError, match="out of 2 persons"):
        world.define(world.definition(PERSONS, units=UNITS, outside=(*range(3), *range(6, 11))))


def test_a_campaign_whose_members_have_spent_their_budget_ends_though_others_never_paid(worlds):
    once = gaussian_epsilon(1.0, 1e-5)
    for world, unit in zip(worlds, (Unit.DEVICE, Unit.PERSON), strict=True):
        privacy = PrivacyRule(1.0, 0.5, unit=unit, epsilon=once * 1.01, delta=1e-5)
        rules = replace(PERSONS, privacy=privacy)
        units = UNITS if unit is Unit.PERSON else ()
        world.define(world.definition(rules, units=units, outside=(3, 10, 11), num_rounds=12))
        assert to_the_end(world.run()).end == "budget_spent"


@pytest.mark.parametrize("unit", [Unit.DEVICE, Unit.PERSON])
def test_what_a_campaign_will_cost_is_foreseen_for_those_that_take_part(unit):
    privacy = PrivacyRule(1.0, 0.5, unit=unit, epsilon=8.0, delta=1e-5)
    training = SimpleNamespace(rules=replace(PERSONS, privacy=privacy), num_rounds=40)
    few = _devices(*[Standing.ACTIVE] * 8)
    many = _devices(*[Standing.ACTIVE] * 8, *[Standing.WATCHED] * 72)
    assert budget_left("p", [], training, many) == budget_left("p", [], training, few)
