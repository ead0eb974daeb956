"""Gaps between groups and between labels, with intervals; widening one is harm, levelling up is not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from fedretrain.validation.config import CheckName, ValidationPolicy
from fedretrain.validation.count import count_rows
from fedretrain.validation.fairness import compare_parts
from fedretrain.validation.gains import label_f1_gain
from fedretrain.validation.questions import answer
from fedretrain.validation.report import Verdict
from fedretrain.validation.rows import Rows
from tests.unit.validation.fleets import DAY_S, labelled, layout_of, statistics

POLICY = ValidationPolicy(late_after_s=DAY_S)
ROWS = labelled(np.random.default_rng(3).integers(0, 80, 40_000))


def judged(p_champion, p_candidate):
    gaps, questions = compare_parts(POLICY, statistics(layout_of(POLICY), ROWS, p_champion, p_candidate))
    checks = {c.part: c for c in answer(POLICY, questions)}
    assert all(c.name is CheckName.FAIRNESS for c in checks.values())
    return {f"{gap.kind} {gap.part}": gap for gap in gaps}, checks


def test_a_group_s_gap_is_its_mean_device_minus_that_of_the_rest():
    stats = statistics(layout_of(POLICY), ROWS, 0.8, np.where(ROWS.group_N == 2, 0.7, 0.8))
    gaps, _ = compare_parts(POLICY, stats)
    (gap,) = [g for g in gaps if (g.kind, g.part) == ("group", "2")]
    paired = stats.paired_DSTM4.sum(axis=(1, 2, 3))
    accuracy = (paired[:, 0] + paired[:, 1]) / paired.sum(axis=1)
    inside, rest = accuracy[stats.group_D == 2], accuracy[stats.group_D != 2]
    assert gap.candidate == pytest.approx(inside.mean() - rest.mean())
    welch = scipy.stats.ttest_ind(inside, rest, equal_var=False).confidence_interval(0.9)
    assert gap.low == pytest.approx(welch.low, abs=0.002)
    assert gap.high == pytest.approx(welch.high, abs=0.002)
    assert gap.num_devices == 20


def test_a_label_s_gap_is_its_recall_minus_that_of_the_rest():
    stats = statistics(layout_of(POLICY), ROWS, 0.8, np.where(ROWS.label_N == 1, 0.6, 0.8))
    gaps, _ = compare_parts(POLICY, stats)
    (gap,) = [g for g in gaps if (g.kind, g.part) == ("label", "1")]
    right = stats.confusion_D2MM[:, 0].sum(axis=0)
    others = [0, 2, 3]
    wanted = right[1, 1] / right[1].sum() - right[others, others].sum() / right[others].sum()
    assert gap.candidate == pytest.approx(wanted)
    assert gap.low < gap.candidate < gap.high


def test_widening_a_disadvantage_fails():
    inside = ROWS.group_N == 1
    gaps, checks = judged(np.where(inside, 0.75, 0.8), np.where(inside, 0.65, 0.82))
    assert gaps["group 1"].champion == pytest.approx(-0.05, abs=0.02)
    assert gaps["group 1"].candidate == pytest.approx(-0.17, abs=0.02)
    assert checks["group 1"].estimate == pytest.approx(-0.12, abs=0.02)
    assert [part for part, c in checks.items() if c.verdict is Verdict.FAIL] == ["group 1"]


def test_repairing_one_group_takes_nothing_from_the_others():
    inside = ROWS.group_N == 1
    gaps, checks = judged(np.where(inside, 0.5, 0.8), 0.8)
    assert gaps["group 0"].champion > 0.05  # the others led, and no longer do
    assert all(c.verdict is Verdict.PASS for part, c in checks.items() if part.startswith("group"))


def test_gaining_less_than_the_rest_is_no_harm_but_is_reported():
    inside = ROWS.group_N == 1
    gaps, checks = judged(0.7, np.where(inside, 0.73, 0.9))
    assert gaps["group 1"].high < -0.1
    assert checks["group 1"].verdict is Verdict.PASS
    assert "does not lose" in checks["group 1"].reason


def said_too_often(share):
    """A model that is right on 0.7 of label 0 and 0.85 of the others; with probability `share` it says 0 whatever it sees."""
    rng = np.random.default_rng(5)
    label = ROWS.label_N
    right = rng.random(len(ROWS)) < np.where(label == 0, 0.7, 0.85)
    said = np.where(right, label, (label + 1 + rng.integers(0, 3, len(ROWS))) % 4)
    return np.where(rng.random(len(ROWS)) < share, 0, said)


def one_hot(said_N):
    return np.eye(4)[said_N] * 0.6 + 0.1


def judged_by_labels(champion_N, candidate_N):
    stats = count_rows(layout_of(POLICY), Rows(ROWS, one_hot(candidate_N), one_hot(champion_N)))
    _, questions = compare_parts(POLICY, stats)
    return stats, {c.part: c for c in answer(POLICY, questions)}


def test_mending_a_champion_that_says_one_label_too_often_is_no_harm_to_that_label():
    stats, checks = judged_by_labels(said_too_often(0.5), said_too_often(0.0))
    recall = stats.confusion_D2MM.sum(axis=0)[:, 0, 0] / (ROWS.label_N == 0).sum()
    assert recall[0] < recall[1] - 0.1
    assert checks["label 0"].estimate < -0.1  # it led, and is behind now
    assert label_f1_gain(stats, 0) > 0.1
    assert all(c.verdict is Verdict.PASS for c in checks.values())


def test_a_label_that_the_candidate_says_too_seldom_is_harmed():
    champion = said_too_often(0.0)
    stats, checks = judged_by_labels(champion, np.where(champion == 0, 3, champion))
    assert label_f1_gain(stats, 0) < -0.5
    assert checks["label 0"].verdict is Verdict.FAIL


def test_f1_of_a_label_agrees_with_scikit_learn_where_no_prediction_is_broken():
    champion, candidate = said_too_often(0.3), said_too_often(0.1)
    stats, _ = judged_by_labels(champion, candidate)
    first, second = (f1_score(ROWS.label_N, said, average=None) for said in (candidate, champion))
    for label in range(4):
        assert label_f1_gain(stats, label) == pytest.approx(first[label] - second[label])


def test_a_broken_prediction_is_a_miss_of_its_label():
    candidate = one_hot(ROWS.label_N)
    candidate[ROWS.label_N == 1] = np.nan
    stats = count_rows(layout_of(POLICY), Rows(ROWS, candidate, one_hot(ROWS.label_N)))
    assert label_f1_gain(stats, 1) == -1.0
    assert label_f1_gain(stats, 2) == 0.0


def test_one_group_has_no_rest():
    rows = labelled(np.random.default_rng(3).integers(0, 80, 4_000), num_groups=1)
    gaps, _ = compare_parts(POLICY, statistics(layout_of(POLICY), rows))
    assert {gap.kind for gap in gaps} == {"label"}
