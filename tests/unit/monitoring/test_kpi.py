"""KPIs, the sequential guardrail's error rates against Wald's theory, and confidence decay."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedretrain.core.build import build
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.monitoring.kpi import (
    Better,
    ConfidenceDecay,
    DecayState,
    DeviceSprt,
    Kpi,
    KpiTest,
    LimitKind,
    SprtDecision,
    kpi_value,
)

RUNS = 2000


def slack(rate, runs=RUNS):
    """Four standard deviations of a rate seen in `runs` runs."""
    return 4 * math.sqrt(rate * (1 - rate) / runs)


def played(test, draw, runs=RUNS, num_devices=1500):
    """(share rejected, share accepted, mean number of devices, its standard error) over seeded runs."""
    ends, used = [], []
    for seed in range(runs):
        state = test.update(
            test.init(), np.arange(num_devices), draw(np.random.default_rng(seed), num_devices)
        )
        ends.append(state.decision)
        used.append(len(state.entered))
    rejected, accepted = (ends.count(d) / runs for d in (SprtDecision.REJECT, SprtDecision.ACCEPT))
    return rejected, accepted, float(np.mean(used)), float(np.std(used)) / math.sqrt(runs)


def test_a_kpi_is_its_total_over_its_weight_at_every_level():
    counts = np.array([[[3.0, 10.0], [1.0, 30.0]], [[0.0, 0.0], [8.0, 4.0]]])  # device, slot, (total, weight)
    np.testing.assert_allclose(kpi_value(counts.sum(axis=1)), [0.1, 2.0])
    assert kpi_value(counts.sum(axis=(0, 1))) == pytest.approx(12 / 44)
    assert np.isnan(kpi_value(counts)[1, 0])
    assert np.isnan(kpi_value(counts.sum(axis=1), min_weight=10.0)).tolist() == [False, True]
    with pytest.raises(DataError, match="weight is negative"):
        kpi_value([1.0, -1.0])


@pytest.mark.parametrize(
    ("better", "kind", "limit", "baseline", "bound"),
    [
        (Better.LOWER, LimitKind.ABSOLUTE, 0.5, None, 0.5),
        (Better.LOWER, LimitKind.RELATIVE, 0.02, 100.0, 102.0),
        (Better.HIGHER, LimitKind.RELATIVE, 0.02, 100.0, 98.0),
        (Better.HIGHER, LimitKind.RELATIVE, 0.5, -4.0, -6.0),  # worse is down, also below zero
    ],
)
def test_a_limit_is_absolute_or_relative_to_the_baseline(better, kind, limit, baseline, bound):
    kpi = Kpi("kpi", better, limit=limit, limit_kind=kind)
    assert kpi.bound(baseline) == pytest.approx(bound)
    worse = 1 if better is Better.LOWER else -1
    values = bound + worse * np.array([1e-6, -1e-6, np.nan])
    assert kpi.breached(values, baseline).tolist() == [True, False, False]


def test_an_absolute_limit_is_held_by_the_sequential_test_unless_somebody_says_otherwise():
    absolute, relative = {"limit": 0.5}, {"limit": 0.02, "limit_kind": LimitKind.RELATIVE}
    assert Kpi("a", Better.LOWER, **absolute).sequential
    assert Kpi("a", Better.LOWER, **absolute, test=KpiTest.SPRT).sequential
    assert not Kpi("a", Better.LOWER, **absolute, test=KpiTest.INTERVAL).sequential
    assert not Kpi("a", Better.LOWER, **relative).sequential
    assert not Kpi("a", Better.LOWER).sequential
    with pytest.raises(ConfigError, match="for absolute limits"):
        Kpi("a", Better.LOWER, **relative, test=KpiTest.SPRT)


def test_what_a_limit_lacks_is_refused():
    with pytest.raises(DataError, match="has no limit"):
        Kpi("speed", Better.HIGHER).bound()
    for baseline in (None, math.nan):
        with pytest.raises(DataError, match="needs a finite baseline"):
            Kpi("speed", Better.HIGHER, limit=0.02, limit_kind=LimitKind.RELATIVE).bound(baseline)
    with pytest.raises(ConfigError, match=r"kpis\.speed\.limit"):
        Kpi("speed", Better.HIGHER, limit=-0.02, limit_kind=LimitKind.RELATIVE)
    with pytest.raises(ConfigError, match="needs a name"):
        Kpi("", Better.HIGHER)


def test_a_kpi_is_built_from_a_policy_file():
    data = {
        "name": "detections",
        "better": "higher",
        "unit": "per hour",
        "limit": 0.02,
        "limit_kind": "relative",
    }
    assert build(Kpi, data) == Kpi("detections", Better.HIGHER, "per hour", 0.02, LimitKind.RELATIVE)


@pytest.mark.parametrize(("alpha", "beta"), [(0.05, 0.1), (0.01, 0.2)])
@pytest.mark.parametrize("bad", [0.7, 0.3])
def test_the_guardrails_error_rates_obey_walds_inequalities(alpha, beta, bad):
    """alpha / (1 - beta) and beta / (1 - alpha), either way round; and it always ends."""
    test = DeviceSprt(good=0.5, bad=bad, std=0.4, alpha=alpha, beta=beta)
    rejected, accepted, _, _ = played(test, lambda rng, n: rng.normal(0.5, 0.4, n))
    assert rejected <= alpha / (1 - beta) + slack(alpha)
    assert rejected + accepted == 1.0
    rejected, accepted, _, _ = played(test, lambda rng, n: rng.normal(bad, 0.4, n))
    assert accepted <= beta / (1 - alpha) + slack(beta)
    assert rejected + accepted == 1.0


@pytest.mark.parametrize("mean", [0.45, 0.5, 0.55, 0.575, 0.6, 0.7])
def test_acceptance_and_number_of_devices_are_walds(mean):
    """The approximations neglect the overshoot, 0.583 of a step's spread beyond a bound on average (Siegmund 1985)."""
    test = DeviceSprt(good=0.5, bad=0.6, std=0.8)  # small steps: an eighth of a standard deviation
    _, accepted, used, error = played(
        test, lambda rng, n: rng.normal(mean, 0.8, n), runs=800, num_devices=6000
    )
    overshoot = 0.583 * (test.bad - test.good) / test.std
    wide = (test.reject_at + overshoot, test.accept_at - overshoot)

    def accepts(upper, lower):
        tilt = (test.good + test.bad - 2 * mean) / (test.bad - test.good)
        tilt = tilt or 1e-9
        return (math.exp(tilt * upper) - 1) / (math.exp(tilt * upper) - math.exp(tilt * lower))

    assert test.acceptance_probability(mean) == pytest.approx(accepts(test.reject_at, test.accept_at))
    assert accepted == pytest.approx(accepts(*wide), abs=slack(max(0.02, accepts(*wide) * 0.99), 800))
    ratio = wide[0] * wide[1] / (test.reject_at * test.accept_at)
    assert test.expected_devices(mean) < used + 4 * error
    assert used - 4 * error < ratio * test.expected_devices(mean)


def test_at_the_middle_wald_has_its_limits():
    test = DeviceSprt(good=0.5, bad=0.6, std=0.8)
    middle, near = 0.55, 0.55 + 1e-6
    assert test.acceptance_probability(middle) == pytest.approx(test.acceptance_probability(near), abs=1e-4)
    assert test.expected_devices(middle) == pytest.approx(test.expected_devices(near), rel=1e-3)
    assert test.acceptance_probability(0.5) == pytest.approx(1 - test.alpha)
    assert test.acceptance_probability(0.6) == pytest.approx(test.beta)


def test_the_device_is_the_unit():
    """Eighty events of each device, correlation 0.05: one summary per device keeps alpha, events as units do not."""
    between, within = 0.2, 0.9
    by_device = DeviceSprt(good=0.5, bad=0.6, std=math.hypot(between, within / math.sqrt(80)))
    by_event = DeviceSprt(good=0.5, bad=0.6, std=math.hypot(between, within))
    rejected = np.zeros(2)
    for seed in range(500):
        rng = np.random.default_rng(seed)
        events = rng.normal(0.5, between, 300)[:, None] + rng.normal(0.0, within, (300, 80))
        for k, (test, values) in enumerate(((by_device, events.mean(axis=1)), (by_event, events.ravel()))):
            end = test.update(test.init(), np.arange(values.size), values)
            rejected[k] += end.decision is SprtDecision.REJECT
    assert rejected[0] / 500 <= 0.05 / 0.9 + slack(0.05, 500)
    assert rejected[1] / 500 > 0.2


def test_devices_enter_once_and_in_any_portions():
    test = DeviceSprt(good=0.5, bad=0.7, std=0.4)
    values = np.random.default_rng(0).normal(0.6, 0.4, 40)
    whole = test.update(test.init(), np.arange(40), values)
    parts = test.init()
    for k in range(0, 40, 7):
        parts = test.update(parts, np.arange(k, min(k + 7, 40)), values[k : k + 7])
    assert parts == whole
    start = test.update(test.init(), [1, 2], [0.5, 0.6])
    for devices in ([2], [5, 5]):
        with pytest.raises(DataError, match="enters a sequential test twice"):
            test.update(start, devices, [0.5] * len(devices))
    with pytest.raises(DataError, match="NaN or infinite"):
        test.update(start, [9], [math.nan])
    assert test.update(start, [], []) == start


def test_a_decision_waits_for_enough_devices_and_keeps_its_error_rates():
    test = DeviceSprt(good=0.5, bad=0.7, std=0.1, min_devices=8)
    early = test.update(test.init(), range(7), [0.9] * 7)
    assert (early.decision, len(early.entered)) == (SprtDecision.UNDECIDED, 7)
    assert early.log_ratio > test.reject_at
    late = test.update(early, range(7, 20), [0.9] * 13)
    assert (late.decision, len(late.entered)) == (SprtDecision.REJECT, 8)
    waiting = DeviceSprt(good=0.5, bad=0.9, std=0.4, min_devices=20)
    rejected, accepted, _, _ = played(waiting, lambda rng, n: rng.normal(0.5, 0.4, n))
    assert rejected <= 0.05 / 0.9 + slack(0.05)
    assert rejected + accepted == 1.0
    _, accepted, _, _ = played(waiting, lambda rng, n: rng.normal(0.9, 0.4, n))
    assert accepted <= 0.1 / 0.95 + slack(0.1)


def test_a_decision_is_final():
    test = DeviceSprt(good=0.5, bad=0.7, std=0.1)
    rejected = test.update(test.init(), range(30), [0.9] * 30)
    assert rejected.decision is SprtDecision.REJECT
    assert len(rejected.entered) < 30  # those after the decision did not count
    assert test.update(rejected, range(100, 200), [0.0] * 100) == rejected


@pytest.mark.parametrize(
    "options", [{"std": 0.0}, {"bad": 0.5}, {"alpha": 0.0}, {"beta": 0.6}, {"good": math.inf}]
)
def test_an_impossible_guardrail_is_refused(options):
    with pytest.raises(ConfigError, match=r"sprt\."):
        DeviceSprt(**{"good": 0.5, "bad": 0.6, "std": 0.1, **options})


def confidences(rng, num_devices, low_share):
    """Counts of ten confidence bins; each device has a low share of its own, and 100 predictions."""
    own = rng.beta(low_share * 15, (1 - low_share) * 15, num_devices)
    low = rng.binomial(100, own)
    counts = np.zeros((num_devices, 10))
    counts[:, 4], counts[:, 8] = low, 100 - low
    return counts


def test_decay_needs_windows_in_a_row_and_clears_the_same_way():
    recipe, rng = ConfidenceDecay(num_windows=3), np.random.default_rng(0)
    said = []
    state = recipe.init()
    for share in (0.1, 0.5, 0.5, 0.1, 0.5, 0.5, 0.5, 0.5, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1):
        state = recipe.update(state, recipe.judge(confidences(rng, 40, share)))
        said.append(state.decayed)
    assert said == [False] * 6 + [True] * 7 + [False]


def test_few_devices_say_nothing():
    recipe, rng = ConfidenceDecay(min_devices=10), np.random.default_rng(1)
    few = np.concatenate([confidences(rng, 9, 0.9), np.zeros((50, 10))])
    evidence = recipe.judge(few)
    assert (evidence.num_devices, evidence.exceeded) == (9, False)
    assert recipe.update(DecayState(2, False), evidence) == DecayState(2, False)
    silent = recipe.judge(np.zeros((50, 10)))
    assert math.isnan(silent.share)
    assert (silent.p_value, silent.exceeded) == (1.0, False)


def test_a_window_at_the_limit_alarms_at_most_at_alpha():
    recipe = ConfidenceDecay(max_share=0.2, alpha=0.05)
    exceeded = [recipe.judge(confidences(np.random.default_rng(s), 50, 0.2)).exceeded for s in range(1000)]
    assert np.mean(exceeded) <= 0.05 + slack(0.05, 1000)
    above = [recipe.judge(confidences(np.random.default_rng(s), 50, 0.3)).exceeded for s in range(200)]
    assert np.mean(above) > 0.9


@pytest.mark.parametrize(
    "options", [{"below": 0.65}, {"max_share": 1.5}, {"num_windows": 0}, {"min_devices": 1}, {"alpha": -0.1}]
)
def test_an_impossible_decay_is_refused(options):
    with pytest.raises(ConfigError):
        ConfidenceDecay(**options)
