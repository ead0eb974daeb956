"""A life that is put aside and taken up again is the life that nobody interrupted, bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedretrain.core.errors import DataError
from sim.lifetime.underway import LifeUnderWay
from tests.lifetime_cases import DAY, offset_at, policy, small, small_life

SOON = {"mode": "scheduled", "interval_s": 3 * DAY, "cool_down_s": DAY}
HARD = (
    offset_at(4.0),
    "labels=late",
    "availability=diurnal",
    "personalization=apfl",
)


def told(life):
    """Everything that a life leaves behind, but for how long it took; NaN equals itself."""
    return repr(replace(life, summary=replace(life.summary, wall_s=0.0)))


def interrupted(config, named, every):
    """The life, in as many processes as it takes: each lives `every` ticks and is put aside."""
    saved, life = None, None
    while life is None:
        under_way = LifeUnderWay(config, named, 0, saved, "here")
        for _ in range(every):
            if (life := under_way.go(0.0)) is not None:
                break
        saved = None if life else under_way.save()
    return life


def hybrid():
    return small(10, 12, *HARD), policy()


def private():
    words = ("privacy=central", "privacy.noise_multiplier=1", "privacy.target_epsilon=60", "labels=late")
    return small(10, 8, offset_at(2.0), *words, "availability=markov"), policy(retraining=SOON)


def online():
    rules = [{"name": "learn", "strategy": "online"}]
    return small(6, 6, offset_at(3.0)), policy(retraining={**SOON, "rules": rules})


def pooled():
    rules = [{"name": "pool", "strategy": "full", "then_federated": True}]
    return small(8, 8, "lifetime.pool_devices=4"), policy(retraining={**SOON, "rules": rules})


@pytest.mark.parametrize("case", [hybrid, private, online, pooled])
def test_an_interrupted_life_is_the_whole_one(case):
    config, named = case()
    whole = small_life(config, named)
    happened = {event.kind for event in whole.events}
    assert ("online_started" if case is online else "candidate") in happened
    assert told(interrupted(config, named, 31)) == told(whole)


def test_time_spent_adds_up():
    config = small(4, 2)
    under_way = LifeUnderWay(config, policy(), 0)
    under_way.go(0.0)
    again = LifeUnderWay(config, policy(), 0, under_way.save(), "here")
    assert again._spent_s >= under_way._spent_s > 0
    assert again.go(math.inf).summary.wall_s >= again._spent_s > under_way._spent_s


def test_what_was_cut_short_is_refused():
    under_way = LifeUnderWay(small(4, 2), policy(), 0)
    with pytest.raises(DataError, match="damaged") as caught:
        LifeUnderWay(small(4, 2), policy(), 0, under_way.save()[:-100], "here")
    assert caught.value.where == "here"
