"""The training file: read whole, and each mistake one line with its key."""

from __future__ import annotations

import pytest
import yaml

from fedretrain.core.errors import ConfigError, PrivacyError, UserError
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.server.example_rules import check_whole
from fedretrain.server.training_file import TrainingFile, read_training, read_yaml
from fedretrain.training.plan import ModelName
from tests.server_cases import TRAINING


def _write(tmp_path, values):
    path = tmp_path / "training.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_a_file_is_read_with_its_defaults(tmp_path):
    found = read_training(_write(tmp_path, TRAINING))
    assert (found.plan.model, found.plan.input_shape, found.plan.num_outputs) == (ModelName.MLP, (4,), 3)
    assert found.num_rounds == 2
    assert found == TrainingFile(found.plan, num_rounds=2)
    assert (found.interval_s, found.patience_s, found.max_s) == (0.0, 3600.0, 172_800.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_rounds": 0}, "num_rounds"),
        ({"interval_s": -1.0}, "interval_s"),
        ({"patience_s": 0.0}, "patience_s"),
        ({"max_s": float("inf")}, "max_s"),
        ({"surprise": 1}, "surprise"),
        ({"num_rounds": "many"}, "num_rounds"),
        ({"plan": {**TRAINING["plan"], "model": "oracle"}}, "model"),
        ({"rules": {"quorum": 0}}, "quorum"),
        (
            {"rules": {"privacy": {"noise_multiplier": -1.0, "clip_norm": 1.0, "delta": 1e-5}}},
            "noise_multiplier",
        ),
    ],
)
def test_what_cannot_be_is_named(tmp_path, changes, named):
    with pytest.raises(UserError, match=named):
        read_training(_write(tmp_path, {**TRAINING, **changes}))


def test_a_plan_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="plan"):
        read_training(_write(tmp_path, {"num_rounds": 3}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("- 1\n- 2", "holds no keys"),
        ("", "holds no keys"),
        ("a: !!python/name:os.system", "cannot be read"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path, text, message):
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_a_folder_or_no_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "binary.yaml")


def _private(**changes):
    """A training file with example-level DP, but for a part of it."""
    local = {"batch_size": 8, "epochs": 0, "max_steps": 4, "example_dp": {"noise_multiplier": 1.2}}
    plan = {
        **TRAINING["plan"],
        "training": {**local, **changes.pop("training", {})},
        **changes.pop("plan", {}),
    }
    return {**TRAINING, "plan": plan, **changes}


def test_example_level_privacy_is_read(tmp_path):
    found = read_training(_write(tmp_path, _private()))
    assert found.plan.training.claims_examples
    check_whole(found.plan, Pipeline((Scaler("range"),)))
    with pytest.raises(PrivacyError, match="own scaler"):
        check_whole(found.plan, Pipeline((Scaler("local"),)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": {"example_dp": {"noise_multiplier": 0.0}}}, "without noise claims nothing"),
        ({"training": {"epochs": 1}}, "number of steps must not depend"),
        ({"training": {"class_weights": [1.0, 1.0, 2.0]}}, "class weights"),
        ({"plan": {"method": {"kind": "fedrep"}}}, "fedrep"),
        ({"plan": {"executor": "batched"}}, "use each on devices"),
        ({"rules": {"step": {"aggregator": "example_weighted"}}}, "example_weighted"),
        ({"rules": {"step": {"aggregator": "median"}}}, "median"),
    ],
)
def test_what_would_make_an_example_level_claim_false_is_refused(tmp_path, changes, named):
    with pytest.raises(UserError, match=named):
        read_training(_write(tmp_path, _private(**changes)))
