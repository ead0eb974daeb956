"""What a device counts of two versions: no row is scored by a state that has seen it, and both versions are treated alike."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.delta import release
from fedretrain.artifacts.inference import Predictor
from fedretrain.artifacts.manifest import Personalization
from fedretrain.artifacts.package import open_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.errors import DataError
from fedretrain.core.types import ClientData, MethodKind
from fedretrain.edge.config import RefitConfig
from fedretrain.edge.evaluation import Baseline, Version, count_here
from fedretrain.edge.example_reads import HeldRows
from fedretrain.edge.refit import can_refit, refitted
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.statistics import CANDIDATE, CHAMPION
from tests.slot_cases import SIZE, write

HIDDEN, NUM = 20, 240
LAYOUT = Layout(3, (60.0, 120.0, 180.0), 5.0)
CONFIG = RefitConfig()


def package(folder, method=MethodKind.FEDAVG, seed=0, version=1):
    rng = np.random.default_rng(seed)
    tree = {
        "body.weight": np.random.default_rng(9).normal(size=(HIDDEN, SIZE)).astype(np.float32),
        "body.bias": np.zeros(HIDDEN, np.float32),
        "head.weight": rng.normal(size=(3, HIDDEN)).astype(np.float32),
        "head.bias": np.zeros(3, np.float32),
    }
    patterns = () if method is MethodKind.FEDAVG else ("head.*",)
    about = {"personalization": Personalization(method, patterns)}
    store = ContentStore(folder)
    return open_package(store, write(store, release(None, tree), version, **about))


def held(own=None, num=NUM, seed=1, delay_s=1.0):
    """Rows whose labels are what a head of the device's own says."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (num, SIZE)).astype(np.float32)
    at = np.arange(num, dtype=np.float64)
    y = rng.integers(0, 3, num)
    if own is not None:
        features = np.maximum(x @ np.random.default_rng(9).normal(size=(HIDDEN, SIZE)).T, 0)
        y = (features @ own.T).argmax(axis=1)
    return HeldRows(at, at + delay_s, x, y.astype(np.int64))


def count(rows, candidate, champion, layout=LAYOUT):
    return count_here(layout, rows, candidate, champion, device=5, group=2)


def right(stats, model):
    """``[S]`` right rows of a model."""
    paired = stats.paired_DSTM4.sum(axis=(0, 2, 3))
    return paired[:, 0] + paired[:, 1 + model]


def test_without_personal_layers_the_whole_history_is_counted_as_a_pool_counts_it(tmp_path):
    rows = held()
    one, two = package(tmp_path), package(tmp_path, seed=1, version=2)
    found = count(rows, Version(one, rows, CONFIG, {}), Version(two, rows, CONFIG, {}))
    moments = Labelled(np.full(NUM, 5), np.full(NUM, 2), rows.at_N, np.ones(NUM), rows.y)
    pooled = count_rows(
        LAYOUT, Rows(moments, Predictor.of(one).judged(rows.x), Predictor.of(two).judged(rows.x))
    )
    assert found.digest == pooled.digest
    assert found.num_rows == NUM


def test_a_head_is_refitted_for_each_slice_on_what_was_labelled_before_it(tmp_path):
    own = np.random.default_rng(3).normal(size=(3, HIDDEN))
    rows, made = held(own), package(tmp_path, MethodKind.FEDPER)
    found = count(rows, Version(made, rows, CONFIG, {}), Version(made, rows, CONFIG, {}))
    assert found.paired_DSTM4.sum(axis=(0, 2, 3, 4)).tolist() == [0, 60, 60, 60]  # the first slice trains
    known = np.flatnonzero(rows.label_at_N <= 120.0)
    params = refitted(made, ClientData(rows.x[known], rows.y[known]), CONFIG)
    said = Predictor.of(made, personal=params).judged(rows.x[120:180]).argmax(axis=1)
    assert right(found, CANDIDATE)[2] == (said == rows.y[120:180]).sum()
    # The global head is right on a third of the rows or so; its own is better, and the later the better.
    plain = Predictor.of(made).judged(rows.x).argmax(axis=1) == rows.y
    assert right(found, CANDIDATE).sum() > plain[60:].sum() + 20
    assert np.array_equal(right(found, CANDIDATE), right(found, CHAMPION))  # the same version on both sides


def test_what_the_future_says_changes_nothing_of_the_past(tmp_path):
    own = np.random.default_rng(3).normal(size=(3, HIDDEN))
    rows, made = held(own), package(tmp_path, MethodKind.FEDPER)
    flipped = HeldRows(
        rows.at_N, rows.label_at_N, rows.x, np.where(rows.at_N < 180, rows.y, (rows.y + 1) % 3)
    )
    before, after = (count(one, Version(made, one, CONFIG, {}), Baseline(one, 3)) for one in (rows, flipped))
    assert np.array_equal(before.paired_DSTM4[:, :3], after.paired_DSTM4[:, :3])
    assert not np.array_equal(before.paired_DSTM4[:, 3], after.paired_DSTM4[:, 3])


def test_late_labels_do_not_train(tmp_path):
    rows = held(np.random.default_rng(3).normal(size=(3, HIDDEN)), delay_s=1000.0)
    made = package(tmp_path, MethodKind.FEDPER)
    found = count(rows, Version(made, rows, CONFIG, {}), Baseline(rows, 3))
    plain = Predictor.of(made).judged(rows.x).argmax(axis=1) == rows.y
    assert right(found, CANDIDATE).tolist() == [0, *(plain[a : a + 60].sum() for a in (60, 120, 180))]


def test_the_rules_answer_with_the_shares_that_were_known(tmp_path):
    rows = held()
    y = np.where(np.arange(NUM) < 60, 1, 2)  # the most frequent label changes
    rows = HeldRows(rows.at_N, rows.label_at_N, rows.x, y)
    found = count(rows, Version(package(tmp_path), rows, CONFIG, {}), Baseline(rows, 3))
    assert right(found, CHAMPION).tolist() == [0, 0, 0, 60]  # half of the known labels, then most of them
    assert not found.broken_D2.any()


def test_a_state_that_cannot_be_refitted_is_used_as_it_is(tmp_path):
    made, rows = package(tmp_path, MethodKind.DITTO), held()
    assert not can_refit(made)
    own = {name: leaf + np.float32(0.5) for name, leaf in made.weights.items()}
    found = count(rows, Version(made, rows, CONFIG, {}), Version(made, rows, CONFIG, own))
    assert found.num_rows == NUM
    personal = Predictor.of(made, personal=own).judged(rows.x).argmax(axis=1)
    assert right(found, CHAMPION).sum() == (personal == rows.y).sum()
    assert right(found, CANDIDATE).sum() != right(found, CHAMPION).sum()


def test_one_slice_is_counted_with_what_a_new_device_has(tmp_path):
    made, rows = package(tmp_path, MethodKind.FEDPER), held()
    found = count(rows, Version(made, rows, CONFIG, {}), Baseline(rows, 3), Layout(3))
    plain = Predictor.of(made).judged(rows.x).argmax(axis=1) == rows.y
    assert right(found, CANDIDATE).tolist() == [plain.sum()]


def test_a_label_that_is_no_class_is_named(tmp_path):
    rows = held()
    rows.y[7] = 3
    version = Version(package(tmp_path), rows, CONFIG, {})
    with pytest.raises(DataError, match="none of the 3 classes"):
        count(rows, version, version)
