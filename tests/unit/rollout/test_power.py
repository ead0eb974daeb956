"""The smallest detectable regression is one that the gate then detects with the stated power."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedretrain.rollout.compare import Exactness, unpaired
from fedretrain.rollout.looks import GatePolicy, Stage, plan_looks
from fedretrain.rollout.metrics import DeviceMeans, MetricRule
from fedretrain.rollout.power import detectable, pre_period

DAY = 86_400.0
STAGES = (
    Stage("shadow", 1.0, DAY, DAY),
    Stage("canary", 0.02, DAY, DAY),
    Stage("half", 0.5, DAY, DAY, proves=True),
)
PLAN = plan_looks(GatePolicy(look_every_s=DAY), STAGES)
RULE = MetricRule()


def means(value, before=None):
    num = len(value)
    nothing = np.full(num, np.nan)
    return DeviceMeans(np.arange(num), value, np.full(num, 24.0), nothing if before is None else before)


def fleet(draws, num=1000, noise=0.05):
    level = 0.9 + 0.1 * draws.standard_normal(num)
    return (level + noise * draws.standard_normal(num) for _ in range(2))


def test_a_window_is_adjusted_by_the_record_before_it():
    earlier, window = fleet(np.random.default_rng(0), num=4000)
    found = pre_period(means(earlier), means(window), DAY)
    # var(Y) = 0.0125; what X leaves of it is 0.0125 (1 - rho^2) with rho = 0.01 / 0.0125.
    assert found.raw_variance == pytest.approx(0.0125, rel=0.1)
    assert found.variance == pytest.approx(0.0125 * (1 - 0.8**2), rel=0.1)
    assert (found.num_devices, found.mean) == (4000, pytest.approx(0.9, abs=0.01))


def test_the_stated_regression_is_found_with_the_stated_power():
    draws = np.random.default_rng(1)
    window = pre_period(*(means(x) for x in fleet(draws)), DAY)
    stated = detectable(RULE, [window], PLAN, 1000)[1]
    assert (stated.stage, stated.num_treated, stated.num_control) == ("half", 500, 500)
    level = next(look for look in PLAN.looks if look.stage == 2).harm_level
    runs, found = 300, 0
    for _ in range(runs):
        before, now = fleet(draws)
        now[:500] -= stated.detectable * 0.9
        arms = (means(now, before).take(part) for part in (np.arange(500), np.arange(500, 1000)))
        found += unpaired(*arms, sign=-1.0).harm_p(level, Exactness(0, 100, 0)) <= level
    # Four standard errors, and as much for the variance that the pre-period could only estimate.
    assert abs(found / runs - 0.8) < 8 * math.sqrt(0.16 / runs)


def test_steps_that_cannot_see_the_limit_say_so():
    draws = np.random.default_rng(2)
    canary, half = detectable(RULE, [pre_period(*(means(x) for x in fleet(draws)), DAY)], PLAN, 1000)
    assert canary.detectable > half.detectable
    assert not canary.sees_limit
    assert "ABOVE THE LIMIT" in canary.text
    wide = replace(RULE, margin=0.5)
    assert all(
        power.sees_limit
        for power in detectable(wide, [pre_period(*(means(x) for x in fleet(draws)), DAY)], PLAN, 1000)
    )


def test_an_arm_with_fewer_devices_than_the_rule_asks_for_is_never_judged():
    base = pre_period(*(means(x) for x in fleet(np.random.default_rng(5))), DAY)
    few, enough = (detectable(RULE, [base], PLAN, num)[0] for num in (474, 500))
    assert (few.num_treated, few.is_judged, few.detectable) == (9, False, math.inf)
    assert (enough.num_treated, enough.is_judged) == (10, True)
    assert enough.detectable < math.inf
    assert "THE GATE CANNOT PASS" in few.text
    assert "9 devices against 465" in few.text


def test_the_longest_fitting_window_counts_and_a_shorter_look_has_more_variance():
    draws = np.random.default_rng(3)
    base = pre_period(*(means(x) for x in fleet(draws)), DAY)
    short, long = (
        replace(base, span_s=DAY / 2, variance=4 * base.variance),
        replace(base, span_s=9 * DAY, variance=0.0),
    )
    alone = detectable(RULE, [base], PLAN, 1000)[1].detectable
    assert detectable(RULE, [short, base, long], PLAN, 1000)[1].detectable == alone
    assert detectable(RULE, [short], PLAN, 1000)[1].detectable == pytest.approx(2 * alone)
    later = replace(base, span_s=4 * DAY)
    assert detectable(RULE, [later], PLAN, 1000)[1].detectable == pytest.approx(2 * alone)


def test_absolute_margins_more_guardrails_and_fleets_too_small():
    base = pre_period(*(means(x) for x in fleet(np.random.default_rng(4))), DAY)
    relative = detectable(RULE, [base], PLAN, 1000)[1].detectable
    absolute = detectable(replace(RULE, relative=False), [base], PLAN, 1000)[1].detectable
    assert absolute == pytest.approx(relative * base.mean)
    assert detectable(RULE, [base], PLAN, 1000, num_guardrails=5)[1].detectable > relative
    assert detectable(RULE, [base], PLAN, 40)[0].detectable == math.inf
    assert detectable(RULE, [replace(base, mean=0.0)], PLAN, 1000)[1].detectable == math.inf
    with pytest.raises(ValueError, match="no window"):
        detectable(RULE, [], PLAN, 1000)
    with pytest.raises(ValueError, match="2 devices"):
        pre_period(means(np.ones(2)), means(np.ones(2)), DAY)
