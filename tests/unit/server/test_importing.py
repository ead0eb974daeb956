"""A first champion: trained on the pool or brought as weights, and every mistake by name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fedretrain.artifacts.inference import Predictor
from fedretrain.artifacts.manifest import Strategy
from fedretrain.artifacts.package import read_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import encode_params
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.frozen import thaw
from fedretrain.features.pipeline import Pipeline
from fedretrain.monitoring.bins import Bins
from fedretrain.server.importing import first_package, read_features
from fedretrain.server.pool import read_pool
from fedretrain.server.training_file import read_training
from fedretrain.training.config import OptimizerConfig
from tests.server_cases import CLASSES, FEATURES, FEATURES_FILE, rows, write_office


@pytest.fixture
def folder(tmp_path):
    write_office(tmp_path)
    return tmp_path


def _make(folder, **changes):
    store = ContentStore(folder / "packages")
    given = {
        "training": read_training(folder / "training.yaml"),
        "features": read_features(folder / "features.json"),
        "pool": read_pool(folder / "pool"),
        **changes,
    }
    parts = [given.pop(name) for name in ("training", "features", "pool")]
    words = {"population": "pumps", "version": 1, "created_at": 5.0, "outputs": ("a", "b", "c")}
    return read_package(store, first_package(store, *parts, **{**words, "num_rounds": 1, **given}))


def test_what_is_trained_on_the_pool_knows_its_classes(folder):
    training = read_training(folder / "training.yaml")
    local = replace(training.plan.training, epochs=20, optimizer=OptimizerConfig(lr=2.0))
    plan = replace(training.plan, training=local)
    package = _make(folder, training=replace(training, plan=plan), num_rounds=5)
    x, y = rows(200, seed=3)
    assert (np.argmax(Predictor.of(package).scores(x), axis=1) == y).mean() > 0.9
    about = package.manifest.training
    assert (about.strategy, about.rounds) == (Strategy.CENTRAL, 5)
    assert about.snapshot == read_pool(folder / "pool").digest
    assert package.manifest.outputs == ("a", "b", "c")


def test_sanity_vectors_hold_and_are_no_row_of_the_pool(folder):
    package, pool = _make(folder), read_pool(folder / "pool")
    assert Predictor.of(package).check(package.sanity).ok
    assert 0 < len(package.sanity.inputs) <= 32
    for row in package.sanity.inputs:
        assert not (pool.x == row).all(axis=1).any()
    low, high = FEATURES_FILE.schema.lows, FEATURES_FILE.schema.highs
    assert ((package.sanity.inputs >= low) & (package.sanity.inputs <= high)).all()


def test_bins_are_those_of_the_pool(folder):
    bins = thaw(Bins, _make(folder).baseline)
    assert bins.names == ("s0", "s1", "s2", "s3")
    assert bins.num_features == FEATURES


def test_weights_come_out_as_they_went_in(folder):
    trained = _make(folder)
    brought = _make(folder, weights=encode_params(trained.weights))
    assert brought.manifest.weights == trained.manifest.weights
    assert (brought.manifest.training.strategy, brought.manifest.training.rounds) == (Strategy.IMPORTED, 0)
    np.testing.assert_array_equal(brought.sanity.outputs, trained.sanity.outputs)


def _changed(change):
    def weights(folder):
        tree = dict(_make(folder).weights)
        change(tree)
        return encode_params(tree)

    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda _: b"rubbish", "not weights"),
        (_changed(lambda tree: tree.pop(max(tree))), "do not fit the plan at"),
        (_changed(lambda tree: tree.update(stranger=np.zeros(1, np.float32))), "plan at stranger"),
        (_changed(lambda tree: tree.update({max(tree): np.zeros(9, np.float32)})), "do not fit the plan at"),
        (
            _changed(lambda tree: tree.update({name: np.zeros_like(leaf) for name, leaf in tree.items()})),
            "sure of nothing",
        ),
    ],
)
def test_weights_of_another_model_are_refused(folder, weights, message):
    content = weights(folder)
    with pytest.raises(DataError, match=message):
        _make(folder, weights=content)


def test_outputs_and_features_must_be_the_plans(folder):
    with pytest.raises(ConfigError, match="there are 2 outputs"):
        _make(folder, outputs=("a", "b"))
    training = read_training(folder / "training.yaml")
    wide = replace(training, plan=replace(training.plan, input_shape=(FEATURES + 1,)))
    with pytest.raises(ConfigError, match=r"the model wants \(5,\) and 3"):
        _make(folder, training=wide)
    narrow = replace(training, plan=replace(training.plan, num_outputs=CLASSES - 1))
    with pytest.raises(ConfigError, match="wants \\(4,\\) and 2"):
        _make(folder, training=narrow)


def test_training_that_runs_away_is_named(folder):
    training = read_training(folder / "training.yaml")
    local = training.plan.training
    wild = replace(local, optimizer=replace(local.optimizer, lr=1e30))
    with pytest.raises(DataError, match="ran away"):
        _make(folder, training=replace(training, plan=replace(training.plan, training=wild)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"rubbish", "features"),
        (b"\xff\xfe\x00", "features"),
        (Pipeline(FEATURES_FILE.steps).to_json().encode(), "name no schema"),
        (json.dumps({"steps": [{"kind": "magic"}]}).encode(), "features"),
    ],
)
def test_a_features_file_that_cannot_be_is_named(tmp_path, content, message):
    path = tmp_path / "features.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_features(path)
    assert caught.value.where == str(path)


def test_features_come_back_from_their_file(folder):
    found = read_features(folder / "features.json")
    assert found.schema == FEATURES_FILE.schema
    assert found.steps == FEATURES_FILE.steps
