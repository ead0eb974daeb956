"""One rule for personal state: numpy as the device has it, torch as training has it, and nothing without any."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fedretrain.core.errors import ConfigError
from fedretrain.core.params import Layout
from fedretrain.core.types import MethodKind
from fedretrain.training.config import LocalTraining, MethodConfig
from fedretrain.training.methods.make import make_task
from fedretrain.training.personal import ALPHA, effective_params, personal_layout
from tests.training_cases import model_case

CASE = model_case("batchnorm")
WHOLE = CASE.model.first_params()
FIXED = tuple(sorted(set(CASE.model.first) - set(CASE.model.trainable)))
PATTERNS = ("head.*",)


def random_tree(layout, seed):
    rng = np.random.default_rng(seed)
    return layout.unpack(rng.uniform(0.1, 0.9, layout.size).astype(np.float32))


def tensors(tree):
    return {name: torch.from_numpy(leaf) for name, leaf in tree.items()}


@pytest.mark.parametrize("kind", MethodKind)
def test_numpy_and_torch_give_the_same_bits(kind):
    task = make_task(MethodConfig(kind=kind), LocalTraining(), CASE.model)
    layout = personal_layout(kind, WHOLE, PATTERNS)
    assert layout == task.personal
    shared, personal = random_tree(Layout.of(WHOLE), 1), random_tree(layout, 2)
    found = effective_params(kind, shared, personal, FIXED)
    sent = {name: shared[name] for name in task.shared.names}
    wanted = task.model_params(tensors(sent), tensors(personal))
    assert set(found) == set(wanted) == set(WHOLE)
    for name, leaf in found.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, wanted[name].numpy())


@pytest.mark.parametrize("kind", MethodKind)
def test_without_personal_state_it_is_the_global_model(kind):
    shared = random_tree(Layout.of(WHOLE), 1)
    np.testing.assert_equal(effective_params(kind, shared, {}, FIXED), shared)


def test_the_blend_by_hand_and_what_is_not_blended():
    shared, own = random_tree(Layout.of(WHOLE), 1), random_tree(Layout.of(WHOLE), 2)
    personal = {**own, ALPHA: np.float32(0.25) * np.ones((), np.float32)}
    found = effective_params(MethodKind.APFL, shared, personal, FIXED)
    assert set(FIXED) == {"norm.running_mean", "norm.running_var"}
    for name, leaf in found.items():
        wanted = own[name] if name in FIXED else 0.75 * shared[name] + 0.25 * own[name]
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6)


def test_patterns_are_read_by_the_methods_that_have_personal_layers_alone():
    with pytest.raises(ConfigError, match="matches no parameter"):
        personal_layout(MethodKind.FEDPER, WHOLE, ("tail.*",))
    assert personal_layout(MethodKind.DITTO, WHOLE, ("tail.*",)).size == Layout.of(WHOLE).size


def test_it_needs_no_torch():
    code = "import sys, fedretrain.training.personal; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "False"
