"""Rolling-origin cross-validation: nothing from the future trains, late labels included."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Layout, Rows
from fedretrain.validation.slices import cross_validate, even_cuts, rolling_origin
from tests.unit.validation.fleets import CLASSES, DAY_S, answers, labelled

CUTS = even_cuts(0.0, 10 * DAY_S, 5)
LAYOUT = Layout(CLASSES, CUTS, DAY_S)
ROWS = labelled(np.random.default_rng(0).integers(0, 9, 600))


def test_cuts_are_even():
    assert tuple(2 * DAY_S * s for s in (1, 2, 3, 4)) == CUTS
    assert even_cuts(0.0, 1.0, 1) == ()
    for period in ((1.0, 1.0, 3), (0.0, 1.0, 0)):
        with pytest.raises(ConfigError, match="slices from"):
            even_cuts(*period)


def test_folds_train_on_the_known_past_and_test_every_later_row_once():
    tested = []
    for fold in rolling_origin(CUTS, gap_s=3600.0):
        train, test = fold.train(ROWS), fold.test(ROWS)
        known_at = ROWS.at_N + ROWS.delay_s_N
        assert known_at[train].max() <= fold.from_at
        assert ROWS.at_N[train].max() < fold.from_at - 3600.0
        assert ROWS.at_N[test].min() >= fold.from_at
        # what was left out of the past had not arrived, or reaches into the test
        left = np.setdiff1d(np.flatnonzero(ROWS.at_N < fold.from_at), train)
        assert np.all((known_at[left] > fold.from_at) | (ROWS.at_N[left] >= fold.from_at - 3600.0))
        tested.extend(test)
    assert sorted(tested) == np.flatnonzero(ROWS.at_N >= CUTS[0]).tolist()


def majority(train, test):
    """A model that says the label it met most."""
    said = np.bincount(ROWS.label_N[train], minlength=CLASSES).argmax()
    return np.eye(CLASSES)[np.full(len(test), said)]


def oracle(train, test):
    return answers(ROWS.label_N[test], np.ones(len(test), bool))


def test_statistics_are_those_of_the_out_of_time_predictions():
    stats = cross_validate(LAYOUT, ROWS, oracle, majority)
    later = np.flatnonzero(ROWS.at_N >= CUTS[0])
    said = np.concatenate([majority(fold.train(ROWS), fold.test(ROWS)) for fold in rolling_origin(CUTS)])
    order = np.concatenate([fold.test(ROWS) for fold in rolling_origin(CUTS)])
    assert order.tolist() == later.tolist()
    pooled = Rows(ROWS.take(later), oracle(None, later), said)
    assert stats.digest == count_rows(LAYOUT, pooled).digest
    assert stats.paired_DSTM4[:, 0].sum() == 0


def test_one_slice_is_refused():
    with pytest.raises(DataError, match="cannot be cross-validated"):
        cross_validate(Layout(CLASSES), ROWS, oracle, majority)
