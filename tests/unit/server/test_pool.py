"""Labelled rows of the server: read whole or refused by name, and what they say of a candidate."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.decision import class_probabilities
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.package import read_package, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import DataError
from fedretrain.server.pool import read_pool, validate, write_pool
from fedretrain.validation.config import CheckName, ValidationPolicy
from fedretrain.validation.report import Verdict
from fedretrain.validation.sanity import SanityVectors
from tests import package_cases as cases

NUM = 400
X = np.random.default_rng(2).uniform([0.0, 0.0], [500.0, 1.0], (NUM, 2)).astype(np.float32)
AT = HOUR_S * np.arange(NUM)
ROW = {"x": X[:4], "y": np.array([0, 1, 2, 0]), "at": AT[:4]}
POLICY = ValidationPolicy(required=(CheckName.SANITY, CheckName.OVERALL))


def _tree(sharpness):
    """Tells hot from calm by the first channel; the sharper, the surer."""
    heat = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32) * sharpness
    return {"head.weight": heat, "head.bias": np.array([0.0, 0.01, 0.0], np.float32)}


def _package(store, tree, version, **changes):
    parts = cases.contents(tree, graph=cases.graph(), **changes)
    return read_package(store, write_package(store, parts, **{**cases.ABOUT, "version": version}))


@pytest.fixture
def store(tmp_path):
    return ContentStore(tmp_path / "packages")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pool"
    made.mkdir()
    return made


def _pool(folder, labels, **more):
    write_pool(folder / "lab.safetensors", X, labels, AT, **more)
    return read_pool(folder)


def _right(tree):
    return np.argmax(cases.logits(tree, X), axis=1)


def test_files_are_read_in_the_order_of_their_names(folder):
    write_pool(folder / "b.safetensors", **{**ROW, "y": ROW["y"][::-1]})
    write_pool(folder / "a.safetensors", **ROW, device=np.arange(4), group=np.array([1, 1, 0, 0]))
    (folder / "notes.txt").write_text("nothing to read")
    found = read_pool(folder)
    assert len(found) == 8
    assert np.array_equal(found.x, np.concatenate([ROW["x"], ROW["x"]]))
    assert found.labelled.label_N.tolist() == [0, 1, 2, 0, 0, 2, 1, 0]
    assert found.labelled.device_N.tolist() == [0, 1, 2, 3, 0, 0, 0, 0]
    assert found.labelled.group_N.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert found.labelled.at_N.tolist() == [*ROW["at"], *ROW["at"]]


def test_the_digest_says_which_data_it_was(folder):
    first = _pool(folder, _right(_tree(3.0)))
    assert read_pool(folder).digest == first.digest
    changed = _right(_tree(3.0))
    changed[0] = (changed[0] + 1) % 3
    assert _pool(folder, changed).digest != first.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.array([0, 1])}, "not of one length, or empty"),
        ({name: value[:0] for name, value in ROW.items()}, "not of one length, or empty"),
        ({"device": np.arange(3)}, "not of one length, or empty"),
        ({"at": np.array([0.0, 1.0, 2.0, np.nan])}, "'at' is no column of finite numbers"),
        ({"y": np.array([0.0, 1.0, np.inf, 2.0])}, "'y' is no column"),
        ({"y": np.zeros((4, 2))}, "'y' is no column"),
        ({"x": np.zeros((4, 3), np.float32)}, r"shape \(3,\), those of a.safetensors \(2,\)"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(folder, changes, message):
    write_pool(folder / "a.safetensors", **ROW)
    write_pool(folder / "b.safetensors", **{**ROW, **changes})
    with pytest.raises(DataError, match=message) as caught:
        read_pool(folder)
    assert caught.value.where == str(folder / "b.safetensors")


def test_an_empty_folder_a_strangers_file_and_a_missing_column_are_named(folder):
    with pytest.raises(DataError, match=r"no \*.safetensors"):
        read_pool(folder)
    (folder / "a.safetensors").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="cannot be read"):
        read_pool(folder)
    write_pool(folder / "a.safetensors", **ROW)
    whole = (folder / "a.safetensors").read_bytes()
    (folder / "a.safetensors").write_bytes(whole.replace(b'"at"', b'"ta"'))
    with pytest.raises(DataError, match="it lacks 'at'"):
        read_pool(folder)


def test_a_candidate_that_is_right_passes_and_one_that_is_worse_than_the_champion_fails(store, folder):
    good, bad = _package(store, _tree(3.0), 1), _package(store, _tree(-3.0), 2)
    pool = _pool(folder, _right(_tree(3.0)), device=np.arange(NUM) % 20)
    better = validate(POLICY, pool, good, bad)
    assert (better.verdict, better.candidate, better.champion) == (Verdict.PASS, 1, 2)
    assert validate(POLICY, pool, bad, good).verdict is Verdict.FAIL


def test_without_a_champion_a_candidate_is_held_against_the_most_frequent_answer(store, folder):
    labels = _right(_tree(3.0))
    pool = _pool(folder, labels, device=np.arange(NUM) % 20)
    # Sure enough: the most frequent answer is always well calibrated.
    report = validate(POLICY, pool, _package(store, _tree(60.0), 1), None)
    assert (report.verdict, report.champion) == (Verdict.PASS, 0)
    (overall,) = (check for check in report.checks if check.name is CheckName.OVERALL)
    assert overall.estimate == pytest.approx(1.0 - np.bincount(labels).max() / NUM)


def test_a_pool_of_too_few_rows_tells_nothing(store, folder):
    good, other = _package(store, _tree(3.0), 1), _package(store, _tree(2.9), 2)
    write_pool(folder / "lab.safetensors", **ROW)
    assert validate(POLICY, read_pool(folder), good, other).verdict is Verdict.INCONCLUSIVE


def test_a_package_that_does_not_give_its_sanity_answers_fails(store, folder):
    tree = _tree(3.0)
    made = release(None, tree)
    shares = class_probabilities(cases.logits(made.weights, cases.ROWS)).astype(np.float64)
    wrong = SanityVectors(cases.ROWS, shares[:, ::-1].copy(), 1e-4)
    pool = _pool(folder, _right(tree), device=np.arange(NUM) % 20)
    assert validate(POLICY, pool, _package(store, tree, 1, sanity=wrong), None).verdict is Verdict.FAIL


@pytest.mark.parametrize("label", [3, -1, 0.5])
@pytest.mark.parametrize("has_champion", [True, False])
def test_a_label_that_is_no_class_is_named(store, folder, label, has_champion):
    labels = _right(_tree(3.0)).astype(np.float64)
    labels[7] = label
    package = _package(store, _tree(3.0), 1)
    with pytest.raises(DataError, match="none of the 3 classes"):
        validate(POLICY, _pool(folder, labels), package, package if has_champion else None)
