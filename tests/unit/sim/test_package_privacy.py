"""What rides in a model package must not carry un-noised data of those whom a claim protects."""

import pytest

from fedretrain.core.errors import PrivacyError
from sim.arm import Arms
from sim.configure import configure

EXAMPLE = [
    "training.example_dp={noise_multiplier: 1.0, clip_norm: 1.0}",
    "training.epochs=0",
    "training.max_steps=3",
    "privacy=none",
]


def table(tmp_path, *words):
    rows = [f"d{i % 8},{i % 5},{i % 3},{10.0 * i}" for i in range(160)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["device,x,label,target", *rows]))
    base = [
        "experiment=table",
        f"table.path={path}",
        "table.device=device",
        "runner=local",
        "personalization=fedavg",
    ]
    return Arms().get(configure([*base, *words]), 0)


def test_scalers_fitted_on_pooled_data_are_refused_with_dp(tmp_path):
    words = ["table.label=label", "table.features=[x]"]
    assert table(tmp_path, *words).rules.rounds.dp is None
    with pytest.raises(PrivacyError, match="without noise"):
        _ = table(tmp_path, *words, "privacy=central").rules
    assert table(tmp_path, *words, "privacy=central", "table.scaler=local").rules.rounds.dp is not None


def test_targets_scaled_by_pooled_labels_are_refused_with_dp(tmp_path):
    words = ["table.label=target", "table.features=[x]", "table.task=regression", "training.loss=mse"]
    private = [*words, "privacy=central", "table.scaler=local"]
    with pytest.raises(PrivacyError, match="targets are scaled"):
        _ = table(tmp_path, *private).rules
    arm = table(tmp_path, *private, "table.target_scale=1000")
    assert arm.rules.rounds.dp is not None
    assert arm.setting.dataset is not None
    assert arm.setting.dataset.target_scale == 1000
    assert arm.setting.dataset.y.max() == pytest.approx(1.59)


def test_a_local_scaler_is_refused_with_example_level_dp():
    words = ["experiment=watch_streams", "runner=local", *EXAMPLE]
    with pytest.raises(PrivacyError, match="own scaler"):
        _ = Arms().get(configure(words), 0).rules
    assert Arms().get(configure([*words, "dataset.options.pipeline=fixed"]), 0).rules.rounds.dp is None


def test_balanced_class_weights_are_the_data_sets_and_refused_with_dp(tmp_path):
    words = ["table.label=label", "table.features=[x]", "dataset.balance_classes=true"]
    weights = table(tmp_path, *words).training.class_weights
    assert weights == pytest.approx((1.0, 1.0, 1.0), rel=0.1)  # three classes of nearly one size
    with pytest.raises(PrivacyError, match="class weights"):
        _ = table(tmp_path, *words, "table.scaler=local", "privacy=central").training
