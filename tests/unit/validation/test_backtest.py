"""Backtests replay sequences in order; critical segments may not regress."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.validation.backtest import History, backtest, check_segments
from fedretrain.validation.config import CheckName, CriticalSegment, ValidationPolicy
from fedretrain.validation.count import count_rows
from fedretrain.validation.report import Verdict
from fedretrain.validation.rows import Layout, Rows
from fedretrain.validation.statistics import merge_all
from tests.unit.validation.fleets import CLASSES, DAY_S, answers, labelled

ALARM = CriticalSegment("alarms of site 1", labels=(2,), groups=(1,))


def policy_of(*segments):
    return ValidationPolicy(segments=segments, late_after_s=DAY_S)


def histories(seed=0):
    whole = labelled(np.random.default_rng(seed).integers(0, 8, 800))
    found = []
    for device in range(8):
        given = whole.take(whole.device_N == device)
        found.append(History(given, np.eye(CLASSES)[given.label_N]))
    return found


def perfect(x):
    return x


def forgetful(label):
    """Right but for the first `label` of a sequence, so it needs the sequence in order."""

    def predict(x):
        out = x.copy()
        at = np.flatnonzero(x[:, label])[:1]
        out[at] = np.eye(CLASSES)[(label + 1) % CLASSES]
        return out

    return predict


def test_a_backtest_counts_what_the_models_say_to_each_sequence():
    layout = Layout.of(policy_of(ALARM), CLASSES, (5 * DAY_S,))
    stats = backtest(layout, histories(), forgetful(2), perfect)
    assert stats.paired_DSTM4.sum(axis=(0, 1, 2))[:, 2].tolist() == [0, 0, 8, 0]
    alone = [count_rows(layout, Rows(h.labelled, forgetful(2)(h.x), h.x)) for h in histories()]
    assert stats.digest == merge_all(layout, alone[::-1]).digest


def test_a_sequence_that_goes_back_in_time_is_refused():
    history = histories()[0]
    back = History(history.labelled.take(slice(None, None, -1)), history.x[::-1])
    with pytest.raises(DataError, match="goes back in time"):
        backtest(Layout(CLASSES), [back], perfect, perfect)


@pytest.mark.parametrize(
    ("lost", "max_fall", "verdict"),
    [(2, 0.0, Verdict.FAIL), (1, 0.0, Verdict.PASS), (2, 0.2, Verdict.PASS)],
)
def test_a_critical_segment_may_not_lose_a_row(lost, max_fall, verdict):
    segment = CriticalSegment("alarms", labels=(2,), groups=(1,), max_fall=max_fall)
    policy = policy_of(segment)
    stats = backtest(Layout.of(policy, CLASSES, ()), histories(), forgetful(lost), perfect)
    (check,) = check_segments(policy, stats)
    assert check.verdict is verdict
    assert check.part == "alarms"
    assert check.num_devices == 2
    rows = sum(int(np.sum((h.labelled.label_N == 2) & (h.labelled.group_N == 1))) for h in histories())
    assert check.num_rows == rows
    assert check.estimate == pytest.approx(-2 / rows if lost == 2 else 0.0)


def test_a_segment_that_never_occurred_is_inconclusive_and_holds():
    policy = policy_of(CriticalSegment("flood", from_at=99 * DAY_S))
    stats = backtest(Layout.of(policy, CLASSES, ()), histories(), perfect, perfect)
    (check,) = check_segments(policy, stats)
    assert check.verdict is Verdict.INCONCLUSIVE
    assert check.required
    assert check.name is CheckName.CRITICAL


@pytest.mark.parametrize(
    ("error", "verdict"), [(0.6, Verdict.FAIL), (0.5, Verdict.PASS), (0.4, Verdict.PASS)]
)
def test_a_regression_s_segment_compares_squared_errors(error, verdict):
    policy = policy_of(CriticalSegment("winter", until_at=3 * DAY_S))
    given = labelled(np.repeat(np.arange(4), 50), regression=True)
    early = given.at_N < 3 * DAY_S
    rows = Rows(given, given.label_N + np.where(early, error, 0.0), given.label_N + 0.5)
    (check,) = check_segments(policy, count_rows(Layout.of(policy, 0, ()), rows))
    assert check.verdict is verdict
    assert check.estimate == pytest.approx(1 - error**2 / 0.25, abs=1e-4)


def test_answers_are_distributions():
    out = answers(np.array([0, 3]), np.array([True, False]))
    np.testing.assert_allclose(out.sum(axis=1), 1.0)
    assert out.argmax(axis=1).tolist() == [0, 0]
