"""Looks are fixed beforehand and spend no more than alpha."""

from dataclasses import replace

import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.rollout.looks import GatePolicy, Stage, plan_looks

DAY = 86_400.0
SHADOW = Stage("shadow", 1.0, DAY, 2 * DAY)
STEPS = (
    Stage("canary", 0.02, DAY / 2, 2 * DAY),
    Stage("ramp", 0.24, DAY, 2 * DAY),
    Stage("half", 0.5, 2 * DAY, 8 * DAY, proves=True),
)


def of(plan, stage):
    return [look for look in plan.looks if look.stage == stage]


def test_looks_of_each_stage_end_with_it_and_pass_no_sooner_than_its_shortest_time():
    plan = plan_looks(GatePolicy(), (SHADOW, *STEPS))
    for index, stage in enumerate(plan.stages):
        looks = of(plan, index)
        times = [look.at_s for look in looks]
        assert times == sorted(set(times))
        assert times[-1] == stage.max_s
        assert [look.last for look in looks] == [False] * (len(looks) - 1) + [True]
        assert stage.min_s in times
        assert all(look.may_pass == (look.at_s >= stage.min_s) for look in looks)
    assert [look.at_s / DAY for look in of(plan, 3) if look.proof_level] == [2, 3, 4, 5, 6, 7, 8]
    assert all(look.proof_level == 0.0 for stage in range(3) for look in of(plan, stage))


def test_first_levels_of_stages_and_alpha_in_all():
    plan = plan_looks(GatePolicy(alpha=0.04), (SHADOW, *STEPS))
    # A single look spends exactly its stage's share, so the sum of shares can be read off plans of one look each.
    single = [replace(stage, min_s=DAY, max_s=DAY) for stage in plan.stages]
    once = plan_looks(GatePolicy(alpha=0.04, look_every_s=DAY), single)
    assert [look.stage for look in once.looks] == [0, 1, 2, 3]
    levels = [look.harm_level for look in once.looks]
    assert sum(levels) == pytest.approx(0.8 * 0.04, rel=1e-6)
    assert levels[0] == pytest.approx(0.05 * 0.04, rel=1e-6)
    assert levels[2] > levels[1] > levels[0]
    assert once.looks[3].proof_level == pytest.approx(0.04, rel=1e-6)


@pytest.mark.parametrize(
    ("stages", "total"),
    [
        ((replace(SHADOW, proves=True),), 0.8),
        ((SHADOW, STEPS[2]), 0.8),
        ((SHADOW, STEPS[0], replace(STEPS[1], proves=True), STEPS[2]), 0.8),
    ],
)
def test_any_number_of_stages(stages, total):
    single = [replace(stage, min_s=DAY, max_s=DAY) for stage in stages]
    plan = plan_looks(GatePolicy(look_every_s=DAY), single)
    assert sum(look.harm_level for look in plan.looks) == pytest.approx(total * 0.05, rel=1e-6)
    proofs = [look.proof_level for look in plan.looks if look.proof_level]
    assert sum(proofs) == pytest.approx(0.05, rel=1e-6)


def test_the_newest_look_is_due_and_missed_ones_are_lost():
    plan = plan_looks(GatePolicy(), (SHADOW, *STEPS))
    assert plan.due(1, 100.0) is None
    first = plan.due(1, 0.5 * DAY)
    assert plan.looks[first].at_s == 0.5 * DAY
    assert plan.looks[plan.due(1, 1.9 * DAY)].at_s == 1.5 * DAY
    assert plan.looks[plan.due(1, 9 * DAY)].last
    assert plan.due(7, DAY) is None


def test_impossible_plans():
    with pytest.raises(ConfigError, match="without a stage"):
        plan_looks(GatePolicy(), ())
    with pytest.raises(ConfigError, match="no stage proves"):
        plan_looks(GatePolicy(), (SHADOW, STEPS[0]))
    with pytest.raises(ConfigError, match="lasts from"):
        replace(SHADOW, min_s=3 * DAY)
    with pytest.raises(ConfigError, match="fraction"):
        replace(SHADOW, fraction=0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": 0.5},
        {"look_every_s": 0.0},
        {"proof_every_s": -1.0},
        {"hold_p": 0.6},
        {"exact_below": -1},
        {"num_permutations": 10},
        {"sprt_miss": 0.0},
        {"power": 1.0},
    ],
)
def test_impossible_policies_name_their_key(wrong):
    with pytest.raises(ConfigError, match=f"gate.{next(iter(wrong))}"):
        GatePolicy(**wrong)
