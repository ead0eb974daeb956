"""The gate: what passes, what fails, what holds, and what is refused by name."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.rollout.gate import judge
from fedretrain.rollout.looks import GatePolicy, Stage, plan_looks
from fedretrain.rollout.metrics import Better, DeviceMeans, MetricEvidence, MetricRule, NoData
from fedretrain.rollout.verdict import Reason, Role, Verdict

DAY = 86_400.0
STAGES = (
    Stage("shadow", 1.0, DAY, 2 * DAY),
    Stage("canary", 0.1, DAY, 2 * DAY),
    Stage("ramp", 0.5, DAY, 4 * DAY, proves=True),
)
PLAN = plan_looks(GatePolicy(), STAGES)
RULE = MetricRule()


def look(stage, at_days, plan=PLAN):
    found = plan.due(stage, at_days * DAY)
    assert found is not None
    return found


def arm(value, start=0, before=None, weight=50.0):
    value = np.asarray(value, dtype=float)
    nothing = np.full(len(value), np.nan)
    return DeviceMeans(
        np.arange(start, start + len(value)),
        value,
        np.full(len(value), weight),
        nothing if before is None else np.asarray(before, dtype=float),
    )


def arms(gap=0.0, num=(100, 400), seed=0, spread=0.05, noise=0.01):
    """Two arms with records from before; `gap` is what the treated lose."""
    draws = np.random.default_rng(seed)
    level = 0.9 + spread * draws.standard_normal(sum(num))
    value = level + noise * draws.standard_normal(sum(num))
    value[: num[0]] -= gap
    return arm(value[: num[0]], 0, level[: num[0]]), arm(value[num[0] :], num[0], level[num[0] :])


def evidence(treated, control, paired=False, **changes):
    return MetricEvidence("kpi", treated, control, paired, **changes)


def one(report):
    assert len(report.checks) == 1
    return report.checks[0]


@pytest.mark.parametrize("days", [0.5, 1.0, 2.0])
def test_harm_fails_at_any_look_early_ones_included(days):
    report = judge([RULE], [evidence(*arms(gap=0.05))], PLAN, look(1, days))
    check = one(report)
    assert report.verdict is Verdict.FAIL
    assert check.reason is Reason.HARM
    assert check.low > 0.0
    assert check.estimate == pytest.approx(0.05 / 0.9, rel=0.1)
    assert (check.num_devices, check.num_events) == (100, 5000)


def test_an_equal_candidate_passes_a_step_only_when_it_has_lasted():
    row = evidence(*arms())
    assert one(judge([RULE], [row], PLAN, look(1, 0.5))).reason is Reason.TOO_EARLY
    late = judge([RULE], [row], PLAN, look(1, 1.0))
    assert late.verdict is Verdict.PASS
    assert one(late).reason is Reason.NO_HARM_SEEN


def test_the_last_step_passes_by_proof_alone():
    sure = judge([RULE], [evidence(*arms(num=(300, 300)))], PLAN, look(2, 4.0))
    assert sure.verdict is Verdict.PASS
    assert one(sure).reason is Reason.NOT_INFERIOR
    assert one(sure).high < RULE.margin
    unsure = judge([RULE], [evidence(*arms(num=(30, 30), noise=0.2, seed=3))], PLAN, look(2, 4.0))
    assert unsure.verdict is Verdict.INCONCLUSIVE
    assert one(unsure).reason is Reason.NOT_PROVEN


def test_a_certain_regression_well_below_the_limit_is_no_harm():
    row = evidence(*arms(gap=0.004, num=(2000, 2000)))
    check = one(judge([RULE], [row], PLAN, look(2, 4.0)))
    assert check.low > 0.0
    assert check.verdict is Verdict.PASS


def test_suspicion_holds_a_step_and_its_last_look_does_not():
    gap = 0.0022  # about two standard errors of 0.0011
    row = evidence(*arms(gap=gap, seed=1))
    held = one(judge([RULE], [row], PLAN, look(1, 1.0)))
    assert (held.verdict, held.reason) == (Verdict.INCONCLUSIVE, Reason.SUSPICIOUS)
    last = one(judge([RULE], [row], PLAN, look(1, 2.0)))
    assert last.reason is Reason.NO_HARM_SEEN


def test_better_lower_turns_the_sign():
    rule = replace(RULE, better=Better.LOWER)
    assert judge([rule], [evidence(*arms(gap=-0.05))], PLAN, look(1, 1.0)).verdict is Verdict.FAIL
    assert judge([rule], [evidence(*arms(gap=0.05))], PLAN, look(1, 1.0)).verdict is Verdict.PASS


def test_shadow_is_paired_and_sees_what_arms_cannot():
    draws = np.random.default_rng(5)
    champion = 0.9 + 0.1 * draws.standard_normal(60)
    candidate = champion - 0.02 + 0.005 * draws.standard_normal(60)
    together = evidence(arm(candidate), arm(champion), paired=True)
    assert judge([RULE], [together], PLAN, look(0, 0.5)).verdict is Verdict.FAIL
    apart = evidence(arm(candidate), arm(champion, start=60))
    assert judge([RULE], [apart], PLAN, look(0, 0.5)).verdict is Verdict.INCONCLUSIVE


def test_pairs_are_matched_by_device_and_not_by_row():
    draws = np.random.default_rng(6)
    champion = arm(0.9 + 0.1 * draws.standard_normal(60))
    candidate = champion.take(draws.permutation(60))
    check = one(judge([RULE], [evidence(candidate, champion, paired=True)], PLAN, look(0, 1.0)))
    assert check.estimate == 0.0
    assert check.verdict is Verdict.PASS


NONE = arm([])
GOOD, CONTROL = arms()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (evidence(GOOD, CONTROL, source_alive=False), Reason.DEAD_SOURCE),
        (evidence(GOOD, NONE), Reason.NO_CONTROL),
        (evidence(NONE, NONE), Reason.NO_CONTROL),
        (evidence(NONE, CONTROL), Reason.NO_DATA),
        (evidence(replace(GOOD, weight_K=np.zeros(100)), CONTROL), Reason.NO_DATA),
        (
            evidence(replace(GOOD, weight_K=np.zeros(100)), replace(CONTROL, weight_K=np.zeros(400))),
            Reason.DEAD_SOURCE,
        ),
        (evidence(replace(GOOD, value_K=np.full(100, np.nan)), CONTROL), Reason.NOT_FINITE),
        (evidence(replace(GOOD, value_K=np.full(100, np.inf)), CONTROL), Reason.NOT_FINITE),
        (evidence(GOOD.take(np.arange(9)), CONTROL), Reason.TOO_FEW_DEVICES),
        (evidence(GOOD, CONTROL.take(np.arange(9))), Reason.TOO_FEW_DEVICES),
        (evidence(replace(GOOD, weight_K=np.full(100, 0.4)), CONTROL), Reason.TOO_FEW_EVENTS),
        (evidence(GOOD, CONTROL, paired=True), Reason.UNPAIRED),
    ],
)
@pytest.mark.parametrize("at", [look(1, 1.0), look(1, 2.0), look(2, 4.0)])
def test_what_cannot_be_judged_is_named_and_neither_passes_nor_fails(row, reason, at):
    report = judge([RULE], [row], PLAN, at)
    assert one(report).reason is reason
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.dead_sources == (("kpi",) if reason is Reason.DEAD_SOURCE else ())


def test_no_evidence_and_no_rules_never_pass():
    assert one(judge([RULE], [], PLAN, look(1, 2.0))).reason is Reason.MISSING
    assert judge([], [evidence(GOOD, CONTROL)], PLAN, look(1, 2.0)).verdict is Verdict.INCONCLUSIVE
    info = replace(RULE, role=Role.INFO)
    assert judge([info], [evidence(GOOD, CONTROL)], PLAN, look(1, 2.0)).verdict is Verdict.INCONCLUSIVE


def test_silence_of_the_candidate_alone_fails_at_a_steps_end_where_the_rule_says_so():
    rule = replace(RULE, no_data=NoData.FAIL)
    silent = evidence(replace(GOOD, weight_K=np.zeros(100)), CONTROL)
    assert judge([rule], [silent], PLAN, look(1, 1.0)).verdict is Verdict.INCONCLUSIVE
    assert judge([rule], [silent], PLAN, look(1, 2.0)).verdict is Verdict.FAIL
    dead = evidence(GOOD, CONTROL, source_alive=False)
    assert judge([rule], [dead], PLAN, look(1, 2.0)).verdict is Verdict.INCONCLUSIVE


def test_roles():
    bad, good = evidence(*arms(gap=0.05)), replace(evidence(*arms()), metric="other")
    guard = replace(RULE, metric="other")
    for role, verdict in [
        (Role.GUARDRAIL, Verdict.FAIL),
        (Role.SIGNAL, Verdict.INCONCLUSIVE),
        (Role.INFO, Verdict.PASS),
    ]:
        assert judge([replace(RULE, role=role), guard], [bad, good], PLAN, look(1, 1.0)).verdict is verdict


def test_guardrails_share_a_looks_level():
    row = evidence(*arms(gap=0.0034, seed=2))
    rules = [replace(RULE, metric=f"m{i}") for i in range(5)]
    rows = [replace(row, metric=rule.metric) for rule in rules]
    alone = one(judge(rules[:1], rows[:1], PLAN, look(1, 1.0)))
    among = judge(rules, rows, PLAN, look(1, 1.0)).checks[0]
    assert among.low < alone.low
    assert among.estimate == alone.estimate


def test_an_outlier_on_little_traffic_does_not_abort():
    # One device of the canary errs; most others never do.
    value = np.ones(300)
    value[[0, 40, 90, 160, 220]] = 0.0
    row = evidence(arm(value[:20]), arm(value[20:], start=20))
    assert judge([RULE], [row], PLAN, look(1, 1.0)).verdict is not Verdict.FAIL


def test_absolute_limits():
    rule = replace(RULE, limit=0.85)
    ok = judge([rule], [evidence(*arms())], PLAN, look(1, 1.0))
    assert [check.metric for check in ok.checks] == ["kpi", "kpi:limit"]
    assert ok.verdict is Verdict.PASS
    early = judge([rule], [evidence(*arms())], PLAN, look(1, 0.5))
    assert early.checks[1].reason is Reason.TOO_EARLY
    # Both arms are as bad as each other: only the absolute limit sees it.
    low = judge([replace(rule, limit=0.95)], [evidence(*arms())], PLAN, look(1, 1.0))
    assert low.checks[0].verdict is Verdict.PASS
    assert (low.checks[1].verdict, low.checks[1].reason) == (Verdict.FAIL, Reason.BEYOND_LIMIT)
    assert low.verdict is Verdict.FAIL


def test_a_limit_without_spread_is_a_comparison():
    same = evidence(arm(np.full(50, 0.9)), arm(np.full(50, 0.9), start=50))
    assert judge([replace(RULE, limit=0.9)], [same], PLAN, look(1, 1.0)).checks[1].verdict is Verdict.PASS
    assert judge([replace(RULE, limit=0.91)], [same], PLAN, look(1, 1.0)).checks[1].verdict is Verdict.FAIL


def test_the_same_look_gives_the_same_report():
    row = evidence(*arms(gap=0.004))
    first, again = (judge([RULE], [row], PLAN, look(1, 1.0)) for _ in range(2))
    assert first == again
    assert "kpi (guardrail)" in first.text


def test_false_alarms_of_skewed_devices_stay_below_a_looks_level():
    # 20 devices against 180 with few events each: shares of successes, most of them exactly 1.
    at = look(1, 1.0)
    level = PLAN.looks[at].harm_level
    draws = np.random.default_rng(9)
    runs, failed = 1000, 0
    for _ in range(runs):
        share = draws.binomial(6, draws.beta(8.1, 0.9, 200)) / 6
        row = evidence(arm(share[:20], weight=6), arm(share[20:], start=20, weight=6))
        failed += judge([RULE], [row], PLAN, at).verdict is Verdict.FAIL
    assert failed / runs <= level + 3 * math.sqrt(level / runs)


def test_promotions_at_the_limit_stay_below_a_looks_level():
    at = look(2, 4.0)
    level = PLAN.looks[at].proof_level
    draws = np.random.default_rng(10)
    runs, passed = 600, 0
    for _ in range(runs):
        share = draws.binomial(20, draws.beta(8.1, 0.9, 120) * np.repeat([0.98, 1.0], 60)) / 20
        row = evidence(arm(share[:60], weight=20), arm(share[60:], start=60, weight=20))
        passed += judge([RULE], [row], PLAN, at).verdict is Verdict.PASS
    assert passed / runs <= level + 3 * math.sqrt(level / runs)


def test_misuse():
    with pytest.raises(ValueError, match="two rows"):
        judge([RULE], [evidence(GOOD, CONTROL)] * 2, PLAN, 0)
    with pytest.raises(ValueError, match="look 99"):
        judge([RULE], [], PLAN, 99)
    with pytest.raises(ValueError, match="unlike shapes"):
        replace(GOOD, value_K=np.zeros(3))
    with pytest.raises(ConfigError, match="no spread"):
        MetricRule(min_devices=1)
    with pytest.raises(ConfigError):
        MetricRule(margin=0.0)
