"""Graphs without weights: what they compute is torch's, whatever weights are injected; one model, one digest."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedretrain.core.errors import UnsupportedModelError
from fedretrain.training.export import export_graph
from fedretrain.training.models import ModelBundle, cnn1d, gru, mlp

SIGNAL, TABLE = (3, 25), (6,)


class Permuted(nn.Module):
    """A constant that is no weight, and a tied parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.register_buffer("order", torch.tensor([2, 1, 0, 5, 4, 3]))

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))[:, self.order]


class Idle(nn.Module):
    """A parameter that nothing reads."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        return self.used(x)


def normed():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def strided():
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, padding="same"), nn.GroupNorm(2, 4, affine=False), nn.Flatten(), nn.Linear(100, 2)
    )


WRITTEN = {
    "mlp": (lambda: mlp(TABLE, 4, 0), TABLE),
    "mlp_deep": (lambda: mlp(SIGNAL, 1, 0, hidden=(16, 8)), SIGNAL),
    "cnn1d": (lambda: cnn1d(SIGNAL, 4, 0), SIGNAL),
    "cnn1d_stride": (
        lambda: cnn1d(SIGNAL, 4, 0, channels=(8, 8, 16), kernel_size=4, stride=2, groups=4),
        SIGNAL,
    ),
    "gru": (lambda: gru(SIGNAL, 4, 0), SIGNAL),
    "gru_deep": (lambda: gru(SIGNAL, 4, 0, hidden=9, num_layers=3), SIGNAL),
}
TRACED = {
    "batch_norm": (lambda: ModelBundle.of(normed()), TABLE),
    "tied": (lambda: ModelBundle.of(Permuted()), TABLE),
    "no_affine": (lambda: ModelBundle.of(strided()), SIGNAL),
    "no_sequence": (lambda: ModelBundle.of(nn.Linear(6, 2)), TABLE),
}
CASES = {**WRITTEN, **TRACED}


def other_weights(bundle, seed=1):
    rng = np.random.default_rng(seed)
    return {n: rng.uniform(0.05, 0.6, leaf.shape).astype(np.float32) for n, leaf in bundle.first.items()}


def run(graph, tree, x):
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(leaf) for leaf in tree.values()]
    options.add_external_initializers(list(tree), values)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def by_torch(bundle, tree, x):
    module = copy.deepcopy(bundle.module).eval()
    params = {name: torch.from_numpy(leaf) for name, leaf in tree.items()}
    with torch.no_grad():
        return functional_call(module, params, (torch.from_numpy(x),)).numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_the_graph_computes_what_torch_does_with_any_weights(case, rows):
    make, shape = CASES[case]
    bundle = make()
    graph = export_graph(bundle, shape)
    x = np.random.default_rng(rows).normal(size=(rows, *shape)).astype(np.float32)
    for tree in (bundle.first_params(), other_weights(bundle)):
        np.testing.assert_allclose(run(graph, tree, x), by_torch(bundle, tree, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_one_model_has_one_digest_whatever_its_weights(case):
    make, shape = CASES[case]
    bundle = make()
    moved = ModelBundle(bundle.module, {n: leaf + 1 for n, leaf in bundle.first.items()})
    assert export_graph(bundle, shape) == export_graph(bundle, shape) == export_graph(moved, shape)


@pytest.mark.parametrize("case", CASES)
def test_no_weight_is_in_the_graph(case):
    make, shape = CASES[case]
    bundle = make()
    graph = onnx.load_from_string(export_graph(bundle, shape)).graph
    outside = {one.name for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
    assert outside == set(bundle.first)
    assert [one.name for one in graph.input] == ["x"]
    assert [one.name for one in graph.output] == ["y"]
    for one in graph.initializer:
        if one.name in outside:
            assert not one.raw_data
            assert not one.float_data
            assert tuple(one.dims) == tuple(bundle.first[one.name].shape)


@pytest.mark.parametrize("case", WRITTEN)
def test_our_own_models_are_written_by_hand_and_small(case):
    make, shape = WRITTEN[case]
    assert len(export_graph(make(), shape)) < 6000  # traced, a recurrent model of this length has 200 kB


def test_other_seeds_have_the_same_graph_and_other_widths_another():
    assert export_graph(mlp(TABLE, 4, 0), TABLE) == export_graph(mlp(TABLE, 4, 9), TABLE)
    assert export_graph(mlp(TABLE, 4, 0), TABLE) != export_graph(mlp(TABLE, 4, 0, hidden=(63,)), TABLE)


def test_the_module_is_left_as_it_was():
    module = normed().train()
    bundle = ModelBundle.of(module)
    before = copy.deepcopy(module.state_dict())
    export_graph(bundle, TABLE)
    assert module.training
    assert all(torch.equal(before[name], leaf) for name, leaf in module.state_dict().items())


def test_a_parameter_that_nothing_reads_is_named():
    with pytest.raises(UnsupportedModelError, match="spare"):
        export_graph(ModelBundle.of(Idle()), TABLE)


def test_what_cannot_be_exported_is_one_line():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 6))

        def forward(self, x):
            return x @ torch.linalg.matrix_exp(self.weight)

    with pytest.raises(UnsupportedModelError, match="Odd") as caught:
        export_graph(ModelBundle.of(Odd()), TABLE)
    assert "\n" not in str(caught.value)


def test_no_warning_of_the_exporter_comes_through():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_graph(ModelBundle.of(normed()), TABLE)
    assert caught == []


def test_another_process_writes_the_same_bytes():
    code = (
        "import hashlib, sys; from tests.unit.training.test_export import CASES, export_graph\n"
        "for name in sorted(CASES):\n"
        "    make, shape = CASES[name]\n"
        "    print(hashlib.sha256(export_graph(make(), shape)).hexdigest())"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    here = [hashlib.sha256(export_graph(CASES[n][0](), CASES[n][1])).hexdigest() for n in sorted(CASES)]
    assert answer.stdout.split() == here
    assert answer.stderr == ""
