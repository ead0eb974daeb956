"""Bad candidates are stopped, each by the check it should fall by; good ones pass."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedretrain.validation.checks import Answered, Footprint, Inspection, evaluate
from fedretrain.validation.config import CheckName, CriticalSegment, Unit, ValidationPolicy
from fedretrain.validation.count import count_rows
from fedretrain.validation.gains import gain, scores
from fedretrain.validation.replay import Disorder, Mismatch, ReplayOutcome
from fedretrain.validation.report import Verdict
from fedretrain.validation.rows import Layout, Rows
from fedretrain.validation.sanity import SanityOutcome
from fedretrain.validation.statistics import merge_all
from tests.unit.validation.fleets import (
    CLASSES,
    DAY_S,
    answers,
    labelled,
    layout_of,
    pair,
    statistics,
)

POLICY = ValidationPolicy(late_after_s=DAY_S)
SANE = SanityOutcome("c" * 64, 8, 0, 0, 0, 0.0, repeatable=True)
REPLAYED = ReplayOutcome(100, 30, {"store": "d"}, ())
SOUND = Inspection(0, SANE, REPLAYED, Footprint(0.001, 1000), Footprint(0.001, 1000))
ROWS = labelled(np.random.default_rng(5).integers(0, 120, 60_000))


def report(policy=POLICY, inspection=SOUND, rows=ROWS, **how):
    return evaluate(policy, statistics(layout_of(policy), rows, **how), inspection, candidate=2, champion=1)


def check(found, name, part=""):
    (one,) = [c for c in found.checks if c.name is name and c.part == part]
    return one


def failed(found):
    return {(c.name.value, c.part) for c in found.failed()}


def test_an_equal_candidate_and_a_better_one_pass():
    for p in (0.8, 0.81):
        found = report(p_candidate=p)
        assert found.verdict is Verdict.PASS, found.to_text()
        assert check(found, CheckName.OVERALL).estimate == pytest.approx(p - 0.8, abs=0.005)


def test_five_points_worse_fails_overall():
    found = report(p_candidate=0.75)
    assert found.verdict is Verdict.FAIL
    assert ("overall", "") in failed(found)


def test_harm_to_one_cluster_while_the_mean_improves_is_caught():
    hurt = ROWS.group_N == 3
    found = report(p_candidate=np.where(hurt, 0.7, 0.86))
    assert check(found, CheckName.OVERALL).estimate > 0.01
    assert check(found, CheckName.OVERALL).verdict is Verdict.PASS
    assert found.verdict is Verdict.FAIL
    assert {("group", "3"), ("fairness", "group 3")} <= failed(found)
    assert not {("group", str(g)) for g in range(3)} & failed(found)


def test_broken_only_on_late_labels_is_caught():
    late = ROWS.delay_s_N > DAY_S
    found = report(p_candidate=np.where(late, 0.65, 0.85))
    assert check(found, CheckName.OVERALL).verdict is Verdict.PASS
    assert failed(found) == {("late_labels", "")}


def test_broken_only_in_the_last_time_slice_is_caught():
    found = report(p_candidate=np.where(ROWS.at_N >= 8 * DAY_S, 0.68, 0.86))
    assert check(found, CheckName.OVERALL).verdict is Verdict.PASS
    assert failed(found) == {("slice", "4")}


def test_one_label_s_recall_gone_is_caught():
    found = report(p_candidate=np.where(ROWS.label_N == 2, 0.65, 0.88))
    assert check(found, CheckName.OVERALL).verdict is Verdict.PASS
    assert {("label", "2"), ("fairness", "label 2")} <= failed(found)


def test_the_worst_tenth_of_the_devices_may_not_fall():
    # 18 of 120 devices lose 15 points, spread over all groups; the others gain
    found = report(p_candidate=np.where(ROWS.device_N < 18, 0.65, 0.85))
    assert check(found, CheckName.OVERALL).verdict is Verdict.PASS
    assert failed(found) == {("worst_decile", "")}


def test_miscalibrated_is_caught_though_its_decisions_are_as_good():
    found = report(confidence=(0.999, 0.8))
    assert check(found, CheckName.OVERALL).verdict is Verdict.PASS
    assert failed(found) == {("calibration", ""), ("brier", "")}


def _against_the_class_prior(confidence, p_candidate=1.0):
    """A candidate against a champion that says of every row how often each class is true: calibrated, and knows nothing."""
    _, candidate = pair(ROWS, 0.5, p_candidate)
    prior = np.bincount(ROWS.label_N, minlength=CLASSES) / len(ROWS)
    rows = Rows(ROWS, answers(ROWS.label_N, candidate, confidence=confidence), np.tile(prior, (len(ROWS), 1)))
    return evaluate(POLICY, count_rows(layout_of(POLICY), rows), SOUND, candidate=2, champion=0)


def test_no_model_that_knows_more_fails_by_the_calibration_of_one_that_knows_nothing():
    # Right on every row, and a tenth less sure than that: its calibration error is 0.1, the class prior's about 0.
    found = _against_the_class_prior(confidence=0.9)
    calibration = check(found, CheckName.CALIBRATION)
    assert calibration.estimate < -0.08
    assert (calibration.verdict, found.verdict) == (Verdict.PASS, Verdict.PASS), found.to_text()
    assert "proper" in calibration.reason
    # One that is sure of what it guesses is worse by the proper score too: nothing excuses it.
    sure = _against_the_class_prior(confidence=0.999, p_candidate=0.3)
    assert {("calibration", ""), ("brier", "")} <= failed(sure)


@pytest.mark.parametrize("where", ["weights", "predictions", "no distribution"])
def test_nan_anywhere_fails(where):
    champion, candidate = pair(ROWS, 0.8, 0.8)
    out = answers(ROWS.label_N, candidate)
    if where == "predictions":
        out[17] = np.nan
    if where == "no distribution":
        out[17] = 0.5
    stats = count_rows(layout_of(POLICY), Rows(ROWS, out, answers(ROWS.label_N, champion)))
    inspection = replace(SOUND, nonfinite_weights=3 if where == "weights" else 0)
    found = evaluate(POLICY, stats, inspection, candidate=2, champion=1)
    assert failed(found) == {("finite", "")}


@pytest.mark.parametrize(
    ("footprint", "policy", "fails"),
    [
        (Footprint(0.0016, 1000), POLICY, {("latency", "")}),
        (Footprint(0.0012, 1000), replace(POLICY, latency_budget_s=0.0011), {("latency", "")}),
        (Footprint(0.001, 1600), POLICY, {("size", "")}),
        (Footprint(0.001, 1400), replace(POLICY, size_budget_bytes=1300), {("size", "")}),
        (Footprint(0.0014, 1400), POLICY, set()),
    ],
)
def test_slower_and_larger_than_the_budgets_fails(footprint, policy, fails):
    found = report(policy, replace(SOUND, footprint=footprint))
    assert failed(found) == fails


def test_costs_that_nobody_measured_are_inconclusive_and_a_free_champion_is_no_measure():
    for inspection in (
        replace(SOUND, footprint=None),
        replace(SOUND, champion_footprint=None),
        replace(SOUND, champion_footprint=Footprint(0.0, 0)),
    ):
        found = report(inspection=inspection)
        assert check(found, CheckName.LATENCY).verdict is Verdict.INCONCLUSIVE
        assert check(found, CheckName.SIZE).verdict is Verdict.INCONCLUSIVE
    budgets = replace(POLICY, latency_budget_s=0.01, size_budget_bytes=5000)
    found = report(budgets, replace(SOUND, champion_footprint=Footprint(0.0, 0)))
    assert check(found, CheckName.SIZE).verdict is Verdict.PASS
    assert check(found, CheckName.LATENCY).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (replace(SANE, num_wrong=1), Verdict.FAIL),
        (replace(SANE, num_off=1), Verdict.FAIL),
        (replace(SANE, num_nonfinite=1), Verdict.FAIL),
        (replace(SANE, repeatable=False), Verdict.FAIL),
        (replace(SANE, num_vectors=0), Verdict.INCONCLUSIVE),
        (None, Verdict.INCONCLUSIVE),
    ],
)
def test_sanity_vectors_decide(outcome, verdict):
    assert report(inspection=replace(SOUND, sanity=outcome)).verdict is verdict


def test_a_replay_that_left_another_state_fails_and_none_is_inconclusive():
    other = replace(REPLAYED, mismatches=(Mismatch("store", Disorder.LATE, 1),))
    found = report(inspection=replace(SOUND, replay=other))
    assert failed(found) == {("replay", "")}
    assert "store, late, seed 1" in check(found, CheckName.REPLAY).reason
    for missing in (None, ReplayOutcome(0, 30, {}, ())):
        found = report(inspection=replace(SOUND, replay=missing))
        assert check(found, CheckName.REPLAY).verdict is Verdict.INCONCLUSIVE
        assert found.verdict is Verdict.PASS
    required = replace(POLICY, required=(*POLICY.required, CheckName.REPLAY))
    assert report(required, replace(SOUND, replay=None)).verdict is Verdict.INCONCLUSIVE


def test_a_critical_segment_that_regresses_fails_though_the_rest_improves():
    policy = replace(POLICY, segments=(CriticalSegment("leak", labels=(1,), groups=(0,)),))
    inside = (ROWS.label_N == 1) & (ROWS.group_N == 0)
    found = report(policy, p_candidate=np.where(inside, 0.7, 0.85))
    assert ("critical", "leak") in failed(found)
    assert report(policy, p_candidate=0.85, confidence=(0.85, 0.8)).verdict is Verdict.PASS


def test_no_data_at_all_is_inconclusive_never_pass():
    policy = replace(POLICY, segments=(CriticalSegment("leak"),))
    for classes in (CLASSES, 0):
        stats = merge_all(layout_of(policy, classes=classes), [])
        found = evaluate(policy, stats, SOUND, candidate=2, champion=1)
        assert found.verdict is Verdict.INCONCLUSIVE
        statistical = [c for c in found.checks if c.name not in {CheckName.SANITY, CheckName.REPLAY}]
        assert all(
            c.verdict is not Verdict.PASS
            for c in statistical
            if c.name not in {CheckName.LATENCY, CheckName.SIZE}
        )
        assert np.isnan(found.data.first_at)
        assert found.to_record()["data"]["first_at"] is None


def test_few_rows_are_inconclusive_even_where_no_row_differs():
    few = labelled(np.repeat(np.arange(10), 3))
    both = answers(few.label_N, np.ones(30, bool), confidence=0.8)
    found = evaluate(
        POLICY, count_rows(layout_of(POLICY), Rows(few, both, both)), SOUND, candidate=2, champion=1
    )
    overall = check(found, CheckName.OVERALL)
    assert overall.estimate == 0.0
    assert overall.verdict is Verdict.INCONCLUSIVE
    assert "rows of this label (at least 50)" in check(found, CheckName.LABEL, "0").reason


def test_four_devices_cannot_speak_for_a_fleet_but_can_for_themselves():
    rows = labelled(np.random.default_rng(6).integers(0, 4, 40_000))
    found = report(rows=rows, p_candidate=0.9)
    assert check(found, CheckName.OVERALL).verdict is Verdict.INCONCLUSIVE
    assert found.verdict is Verdict.INCONCLUSIVE
    own = replace(POLICY, unit=Unit.DEVICE_SLICE)
    found = report(own, rows=rows, p_candidate=0.9)
    assert found.verdict is Verdict.PASS
    assert "unit device_slice" in found.to_text()
    assert ("overall", "") in failed(report(own, rows=rows, p_candidate=0.7))


def test_labels_that_are_never_late_leave_the_check_out():
    found = report(replace(POLICY, late_after_s=None))
    assert CheckName.LATE_LABELS not in {c.name for c in found.checks}
    assert found.data.num_late == 0


def test_a_federated_evaluation_gives_the_pool_s_report():
    rows = labelled(np.random.default_rng(7).integers(0, 30, 6_000))
    champion, candidate = pair(rows, 0.8, 0.82)
    whole = Rows(rows, answers(rows.label_N, candidate), answers(rows.label_N, champion))
    layout = layout_of(POLICY)

    def own(device):
        mine = rows.device_N == device
        return Rows(rows.take(mine), whole.candidate[mine], whole.champion[mine])

    federated = merge_all(layout, [count_rows(layout, own(device)) for device in range(29, -1, -1)])
    pooled = count_rows(layout, whole)
    versions = {"candidate": 2, "champion": 1}
    one, other = (evaluate(POLICY, stats, SOUND, **versions) for stats in (federated, pooled))
    assert one == other
    assert one.data.digest == pooled.digest
    assert (one.data.num_devices, one.data.num_rows, one.data.num_groups) == (30, 6_000, 4)


@pytest.mark.parametrize(
    ("error", "verdict"), [(1.0, Verdict.PASS), (0.9, Verdict.PASS), (1.2, Verdict.FAIL)]
)
def test_a_regression_is_judged_by_its_squared_error(error, verdict):
    rng = np.random.default_rng(8)
    rows = labelled(rng.integers(0, 60, 30_000), regression=True)
    noise = rng.normal(size=len(rows))
    layout = Layout.of(POLICY, 0, tuple(2 * DAY_S * s for s in range(1, 5)))
    stats = count_rows(layout, Rows(rows, rows.label_N + error * noise, rows.label_N + noise))
    found = evaluate(POLICY, stats, SOUND, candidate=2, champion=1)
    assert found.verdict is verdict
    assert check(found, CheckName.OVERALL).estimate == pytest.approx(1 - error**2, abs=0.01)


def test_a_regression_that_harms_one_cluster_is_caught():
    rng = np.random.default_rng(9)
    rows = labelled(rng.integers(0, 60, 30_000), regression=True)
    noise = rng.normal(size=len(rows))
    layout = Layout.of(POLICY, 0, ())
    error = np.where(rows.group_N == 1, 1.3, 0.8)
    found = evaluate(
        POLICY,
        count_rows(layout, Rows(rows, rows.label_N + error * noise, rows.label_N + noise)),
        SOUND,
        candidate=2,
        champion=1,
    )
    assert check(found, CheckName.OVERALL).verdict is Verdict.PASS
    assert {("group", "1"), ("fairness", "group 1")} <= failed(found)


def fleet_of_40(run, p_candidate, rows_each):
    """Statistics with an effect of the candidate's own on each device: what makes rows of one device dependent."""
    rows = labelled(np.repeat(np.arange(40), rows_each), seed=run)
    own = np.random.default_rng(1000 + run).normal(0.0, 0.05, 40)[rows.device_N]
    return statistics(layout_of(POLICY), rows, p_candidate=p_candidate + own, seed=2000 + run)


def test_an_equal_candidate_fails_with_probability_alpha_at_most_over_all_checks_together():
    runs = 150
    reports = [
        evaluate(POLICY, fleet_of_40(run, 0.8, 60), SOUND, candidate=2, champion=1) for run in range(runs)
    ]
    fails = np.mean([found.verdict is Verdict.FAIL for found in reports])
    assert fails <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_a_candidate_at_the_margin_passes_with_probability_alpha_at_most():
    runs, margin = 1000, POLICY.accuracy.overall
    by_device = by_row = 0
    for run in range(runs):
        part = scores(fleet_of_40(run, 0.8 - margin, 60))
        found = gain(part, Unit.DEVICE)
        by_device += found.interval(0.05)[0] > -margin
        naive = np.abs(part.candidate_DS - part.champion_DS).sum() ** 0.5 / part.num_rows
        by_row += found.value - 1.65 * naive > -margin
    assert 0.02 <= by_device / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert by_row / runs > 0.1  # what the rows of one device share is no evidence


def _answered(num_counted, num_rows=60_000):
    return Answered(130, num_counted, num_rows, 100, 1000, (("timeout", 130 - num_counted),))


def test_too_few_answers_are_inconclusive_whatever_the_policy_requires():
    policy = replace(POLICY, required=())
    enough, few = (report(policy, replace(SOUND, answered=_answered(num))) for num in (120, 99))
    assert (enough.verdict, few.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert check(few, CheckName.ANSWERS).reason.endswith("failures: 31 timeout")
    short = report(policy, replace(SOUND, answered=_answered(120, 999)))
    assert short.verdict is Verdict.INCONCLUSIVE
    assert not [one for one in report().checks if one.name is CheckName.ANSWERS]  # nobody was asked


def test_a_candidate_must_hold_in_the_pool_and_on_the_devices_each():
    good, bad = (statistics(layout_of(POLICY), ROWS, p_candidate=p) for p in (0.86, 0.74))
    for devices, pool, where in ((good, bad, {"pool "}), (bad, good, {""})):
        found = evaluate(POLICY, devices, SOUND, candidate=2, champion=1, beside=pool)
        assert found.verdict is Verdict.FAIL
        overall = {c.part for c in found.failed() if c.name is CheckName.OVERALL}
        assert overall == where
    good = statistics(layout_of(POLICY), ROWS, p_candidate=0.81)
    both = evaluate(POLICY, good, SOUND, candidate=2, champion=1, beside=good)
    assert both.verdict is Verdict.PASS, both.to_text()
    assert both.data.num_rows == 2 * good.num_rows
    assert both.data.digest != good.digest
    assert {gap.part.startswith("pool ") for gap in both.gaps} == {True, False}


def test_the_questions_of_both_sources_share_one_alpha():
    stats = statistics(layout_of(POLICY), ROWS, p_candidate=0.784)
    alone = evaluate(POLICY, stats, SOUND, candidate=2, champion=1)
    one = check(alone, CheckName.OVERALL)
    num = sum(not math.isnan(c.p_worse) or c.margin == c.margin for c in alone.checks)
    assert one.estimate < -one.margin
    # A policy whose alpha is so small that the loss is beyond chance among the questions of one source, and not of two.
    policy = replace(POLICY, alpha=one.p_worse * num * 1.5)
    found = evaluate(policy, stats, SOUND, candidate=2, champion=1)
    assert check(found, CheckName.OVERALL).verdict is Verdict.FAIL
    both = evaluate(policy, stats, SOUND, candidate=2, champion=1, beside=stats)
    assert check(both, CheckName.OVERALL).verdict is Verdict.INCONCLUSIVE


def test_a_broken_prediction_in_either_source_fails():
    champion, candidate = pair(ROWS, 0.8, 0.8)
    out = answers(ROWS.label_N, candidate)
    out[17] = np.nan
    broken = count_rows(layout_of(POLICY), Rows(ROWS, out, answers(ROWS.label_N, champion)))
    sound = statistics(layout_of(POLICY), ROWS)
    for one, other in ((broken, sound), (sound, broken)):
        found = evaluate(POLICY, one, SOUND, candidate=2, champion=1, beside=other)
        assert ("finite", "") in failed(found)
