"""From trained weights to a package: what is hashed is what was evaluated, and everything else is the base's."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.inference import Predictor
from fedretrain.artifacts.manifest import Strategy, TrainingRecord
from fedretrain.artifacts.package import read_package, rebuild, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import params_digest
from fedretrain.core.errors import DataError
from fedretrain.server.releasing import release_version
from tests import package_cases as cases

ABOUT = TrainingRecord(strategy=Strategy.FEDERATED, recipe="r", cohort=4, rounds=2)
HIDDEN = 64


def _deep():
    """A model that is large enough for a delta to be worth it."""
    rng = np.random.default_rng(1)
    shapes = {
        "body.weight": (HIDDEN, 2),
        "body.bias": (HIDDEN,),
        "head.weight": (3, HIDDEN),
        "head.bias": (3,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def store(tmp_path):
    return ContentStore(tmp_path)


@pytest.fixture
def base(store):
    parts = cases.contents(graph=cases.graph(), baseline=b"bins")
    return read_package(store, write_package(store, parts, **cases.ABOUT))


def _release(store, base, shared, **changes):
    digest = release_version(
        store, base, shared, **{"version": 4, "created_at": 9.0, "training": ABOUT, **changes}
    )
    return read_package(store, digest)


def test_weights_that_were_not_trained_are_the_bases(store, base):
    made = _release(store, base, {"head.bias": np.array([1.0, 2.0, 3.0], np.float32)})
    np.testing.assert_array_equal(made.weights["head.weight"], base.weights["head.weight"])
    np.testing.assert_allclose(made.weights["head.bias"], [1.0, 2.0, 3.0], atol=0.02)
    assert made.manifest.weights.digest == params_digest(made.weights)
    assert (made.manifest.version, made.manifest.created_at, made.manifest.training) == (4, 9.0, ABOUT)


def test_what_does_not_come_from_training_is_the_bases(store, base):
    made = _release(store, base, {"head.bias": np.zeros(3, np.float32)})
    for name in (
        "population",
        "outputs",
        "objective",
        "calibration",
        "decision",
        "personalization",
        "schema",
    ):
        assert getattr(made.manifest, name) == getattr(base.manifest, name), name
    assert (made.graph, made.baseline) == (base.graph, b"bins")
    np.testing.assert_array_equal(made.sanity.inputs, base.sanity.inputs)


def test_sanity_vectors_have_the_new_models_own_answers(store, base):
    made = _release(store, base, {"head.bias": np.array([9.0, -9.0, 0.0], np.float32)})
    assert np.abs(made.sanity.outputs - base.sanity.outputs).max() > 0.1
    assert Predictor.of(made).check(made.sanity).ok
    assert not Predictor.of(made).check(base.sanity).ok


def test_a_delta_leads_from_the_base_to_the_digest(store):
    tree, schema = _deep(), cases.SCHEMA
    parts = cases.contents(graph=cases.graph())
    parts = cases.Contents(
        cases.release(None, tree), cases.deep_graph(2, HIDDEN), parts.pipeline, parts.sanity
    )
    base = read_package(store, write_package(store, parts, **cases.ABOUT))
    made = _release(store, base, {name: leaf + np.float32(0.1) for name, leaf in tree.items()})
    assert made.manifest.delta is not None
    assert made.manifest.base == base.manifest.weights.digest
    assert made.manifest.schema == schema.digest
    delta = store.get(made.manifest.delta.digest)
    assert params_digest(rebuild(base.weights, delta)) == made.manifest.weights.digest
    assert len(delta) < made.manifest.weights.size_bytes


def test_a_report_lies_in_the_package(store, base):
    shared = {"head.bias": np.zeros(3, np.float32)}
    assert _release(store, base, shared).manifest.report.digest == ""
    digest = _release(store, base, shared, report=b"all is well").manifest.report.digest
    assert store.get(digest) == b"all is well"


def test_the_same_training_makes_the_same_package(store, base):
    shared = {"head.bias": np.array([0.1, 0.2, 0.3], np.float32)}
    first, again = (_release(store, base, shared) for _ in range(2))
    assert first.digest == again.digest


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"head.bias": np.array([0.0, np.nan, 0.0], np.float32)}, "head.bias is not finite"),
        ({"head.bias": np.array([0.0, np.inf, 0.0], np.float32)}, "head.bias is not finite"),
        ({"tail.bias": np.zeros(3, np.float32)}, "tail.bias, which the model does not have"),
        ({"head.bias": np.zeros(4, np.float32)}, "other names or shapes"),
    ],
)
def test_parameters_that_are_no_weights_of_this_model_are_refused(store, base, shared, message):
    before = store.digests()
    with pytest.raises(DataError, match=message):
        _release(store, base, shared)
    assert store.digests() == before
