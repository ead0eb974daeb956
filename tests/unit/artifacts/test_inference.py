"""What a device answers: the graph with its weights, in each personalization method equal to torch."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedretrain.artifacts.decision import Calibration, Decision, class_probabilities
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.inference import Model, Predictor, device_params
from fedretrain.artifacts.manifest import Personalization
from fedretrain.artifacts.package import Contents, read_package, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.errors import DataError
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientData, MethodKind, Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import ChannelFirst
from fedretrain.training.config import LocalTraining, MethodConfig
from fedretrain.training.each import EachExecutor
from fedretrain.training.executor import ClientWork
from fedretrain.training.export import export_graph
from fedretrain.training.methods.make import make_task
from fedretrain.training.models import ModelBundle, cnn1d, gru, mlp
from fedretrain.validation.sanity import make_vectors
from tests.training_cases import BatchNormNet

WINDOW = 12
SCHEMA = Schema((Channel("heat", "K", 0.0, 500.0), Channel("hum", "1", 0.0, 1.0)), window=WINDOW)
NAMES = ("calm", "warm", "hot")
ROWS = np.stack([np.linspace(0, 500, 40 * WINDOW), np.linspace(1, 0, 40 * WINDOW) ** 2], axis=-1)
ROWS = ROWS.reshape(40, WINDOW, 2).astype(np.float32)
MODELS = {"mlp": mlp, "cnn1d": cnn1d, "gru": gru}
WIDTHS = {"mlp": {"hidden": (9,)}, "cnn1d": {"channels": (4, 8), "groups": 2}, "gru": {"hidden": 5}}


def bundle_of(name, outputs=3):
    return MODELS[name]((2, WINDOW), outputs, 4, **WIDTHS[name])


def pipeline_of(how="range"):
    steps = (Scaler(how), ChannelFirst())
    return Pipeline(steps).fit(ROWS, SCHEMA, device=np.zeros(len(ROWS), np.int64))


def package_of(tmp_path, bundle, *, pipeline=None, outputs=NAMES, **about):
    """A package whose sanity vectors torch made."""
    pipeline = pipeline or pipeline_of()
    weights = release(None, bundle.first_params())
    device = pipeline.localize(ROWS[:0])

    def torch_scores(rows):
        with torch.no_grad():
            logits = bundle.module(torch.from_numpy(device.apply(rows))).numpy()
        calibrated = about.get("calibration", Calibration()).apply(logits)
        return about.get("decision", Decision()).scores(
            calibrated, about.get("objective", Objective.CLASSIFICATION)
        )

    sanity = make_vectors(torch_scores, ROWS[::8], tolerance=1e-5)
    parts = Contents(weights, export_graph(bundle, (2, WINDOW)), pipeline, sanity)
    store = ContentStore(tmp_path)
    digest = write_package(
        store, parts, population="greenhouse", version=1, created_at=0.0, outputs=outputs, **about
    )
    return read_package(store, digest)


@pytest.mark.parametrize("name", MODELS)
def test_a_package_passes_the_vectors_that_torch_made(tmp_path, name):
    package = package_of(tmp_path, bundle_of(name))
    outcome = Predictor.of(package).check(package.sanity)
    assert outcome.ok
    assert (outcome.num_vectors, outcome.num_off) == (5, 0)


def test_other_weights_fail_the_vectors(tmp_path):
    package = package_of(tmp_path, bundle_of("mlp"))
    moved = {name: leaf + np.float32(0.2) for name, leaf in package.weights.items()}
    predictor = Predictor(package.manifest, package.pipeline, Model(package.graph, moved))
    assert not predictor.check(package.sanity).ok


def test_answers_follow_calibration_and_decision(tmp_path):
    calibration, decision = Calibration(0.5, (0.1, 0.0, -0.1)), Decision((1.0, 2.0, 1.0))
    package = package_of(tmp_path, bundle_of("mlp"), calibration=calibration, decision=decision)
    predictor = Predictor.of(package)
    answers, share = predictor(ROWS), class_probabilities(predictor.outputs(ROWS))
    raw = predictor.model.predict(package.pipeline.apply(ROWS))
    np.testing.assert_allclose(predictor.outputs(ROWS), raw * 0.5 + np.array([0.1, 0, -0.1]), rtol=1e-5)
    np.testing.assert_array_equal(answers.label, (share * np.array([1, 2, 1])).argmax(axis=1))
    np.testing.assert_array_equal(answers.label, predictor.scores(ROWS).argmax(axis=1))
    np.testing.assert_array_equal(answers.confidence, share[np.arange(40), answers.label])
    assert predictor.check(package.sanity).ok


def test_a_regression_answers_its_value(tmp_path):
    package = package_of(
        tmp_path,
        bundle_of("mlp", 1),
        outputs=("kelvin",),
        objective=Objective.REGRESSION,
        calibration=Calibration(3.0, (1.0,)),
    )
    predictor = Predictor.of(package)
    assert predictor.check(package.sanity).ok
    raw = predictor.model.predict(package.pipeline.apply(ROWS))[:, 0]
    np.testing.assert_allclose(predictor(ROWS).label, 3 * raw + 1, rtol=1e-6)


@pytest.mark.parametrize("kind", MethodKind)
@pytest.mark.parametrize("name", [*MODELS, "batchnorm"])
def test_every_method_predicts_what_the_reference_executor_does(tmp_path, kind, name):
    shape = (6,) if name == "batchnorm" else (2, WINDOW)
    bundle = ModelBundle.of(BatchNormNet(shape, 3)) if name == "batchnorm" else bundle_of(name)
    local = LocalTraining()
    method = MethodConfig(kind=kind)
    task = make_task(method, local, bundle)
    whole = bundle.first_params()
    fixed = tuple(sorted(set(bundle.first) - set(bundle.trainable)))
    x = np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32)
    row = np.random.default_rng(1).uniform(0.1, 0.9, task.personal.size).astype(np.float32)
    personal = row if task.personal.size else None
    data = ClientData(x, np.zeros(20, np.int64))
    work = [ClientWork(ClientId(1), data, personal, 0)]
    sent = {n: whole[n] for n in task.shared.names}
    executor = EachExecutor(task, bundle, local)
    how = Personalization(kind, method.personal_patterns, fixed)
    graph = export_graph(bundle, shape)
    manifest = package_of(tmp_path, bundle_of("mlp"), personalization=how).manifest
    for state, personalized in ((task.personal.unpack(row), True), ({}, False)):
        wanted = executor.predict(sent, work, personalized=personalized)[0]
        found = Model(graph, device_params(manifest, whole, state)).predict(x)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_personal_state_of_another_model_or_method_is_refused(tmp_path):
    package = package_of(tmp_path, bundle_of("mlp"), personalization=Personalization(MethodKind.DITTO))
    whole = dict(package.weights)
    own = {name: leaf * 2 for name, leaf in whole.items()}
    twice = Predictor.of(package, personal=own)(ROWS)
    assert not np.array_equal(twice.confidence, Predictor.of(package)(ROWS).confidence)
    broken = {**own, "head.bias": own["head.bias"] * np.float32(np.nan)}
    for state, named in (
        ({"head.bias": own["head.bias"]}, "not one of ditto"),
        ({**own, "head.bias": np.zeros(4, np.float32)}, "not one of ditto"),
        (broken, "not finite"),
    ):
        with pytest.raises(DataError, match=named):
            Predictor.of(package, personal=state)


def test_a_local_pipeline_takes_the_devices_own_past_and_none_for_the_vectors(tmp_path):
    package = package_of(tmp_path, bundle_of("mlp"), pipeline=pipeline_of("local"))
    assert package.pipeline.has_local
    new, old = Predictor.of(package), Predictor.of(package, past=ROWS[:20])
    assert new.check(package.sanity).ok
    wanted = package.pipeline.localize(ROWS[:20]).apply(ROWS)
    np.testing.assert_array_equal(old.outputs(ROWS), old.model.predict(wanted))
    assert not np.array_equal(old.outputs(ROWS), new.outputs(ROWS))


def test_rows_are_predicted_one_by_one_as_together_and_none_is_none(tmp_path):
    predictor = Predictor.of(package_of(tmp_path, bundle_of("gru")))
    together = predictor.outputs(ROWS)
    alone = np.concatenate([predictor.outputs(ROWS[i : i + 1]) for i in range(40)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    assert len(predictor(ROWS[:0]).label) == 0


def test_rows_that_are_no_samples_are_refused(tmp_path):
    predictor = Predictor.of(package_of(tmp_path, bundle_of("mlp")))
    with pytest.raises(DataError, match="shape"):
        predictor(ROWS[:, :5])
    with pytest.raises(DataError, match="cannot be run on float32 of the shape"):
        predictor.model.predict(np.zeros((1, 3, WINDOW), np.float32))
    with pytest.raises(DataError, match="cannot be run on float64"):
        predictor.model.predict(np.zeros((1, 2, WINDOW)))


def test_what_is_no_model_is_one_line():
    bundle = bundle_of("mlp")
    graph, whole = export_graph(bundle, (2, WINDOW)), bundle.first_params()
    bias = "head.bias"
    for content, params in (
        (b"", whole),
        (b"graph", whole),
        (graph[: len(graph) // 2], whole),
        (graph, {}),
        (graph, {name: leaf for name, leaf in whole.items() if name != bias}),
        (graph, {**whole, "other": whole[bias]}),
        (graph, {**whole, bias: np.zeros(4, np.float32)}),
    ):
        with pytest.raises(DataError, match="cannot be loaded") as caught:
            Model(content, params)
        assert "\n" not in str(caught.value)


def test_the_model_keeps_its_weights_alive():
    bundle = bundle_of("mlp")
    x = np.ones((1, 2, WINDOW), np.float32)
    model = Model(export_graph(bundle, (2, WINDOW)), bundle.first_params())
    before = model.predict(x)
    gc.collect()
    waste = [np.full(1000, np.nan, np.float32) for _ in range(1000)]
    np.testing.assert_array_equal(model.predict(x), before)
    assert len(waste) == 1000


def test_inference_brings_no_heavy_library():
    code = "import sys, json, fedretrain.artifacts.inference; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = set(json.loads(answer.stdout))
    assert {"numpy", "onnxruntime"} <= found
    assert found.isdisjoint(
        {"torch", "onnx", "flwr", "ray", "mlflow", "hydra", "omegaconf", "opacus", "scipy"}
    )
