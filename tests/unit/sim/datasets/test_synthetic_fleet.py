"""The fleet that is generated on demand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.core.errors import ConfigError
from sim.datasets import synthetic
from sim.datasets.synthetic import SyntheticFleet

SMALL = SyntheticFleet(num_devices=1_000_000, num_samples=20, num_features=16, seed=3)


@given(st.lists(st.integers(0, 999_999), min_size=1, max_size=12), st.integers(0, 11))
@settings(max_examples=25, deadline=None)
def test_a_device_is_the_same_to_the_bit_whoever_is_generated_beside_it(devices, pick):
    x, y = SMALL.generate(np.array(devices))
    at = pick % len(devices)
    alone_x, alone_y = SMALL.generate(np.array([devices[at]]))
    np.testing.assert_array_equal(alone_x[0], x[at])
    np.testing.assert_array_equal(alone_y[0], y[at])


def test_block_borders_do_not_show(monkeypatch):
    x, y = SMALL.generate(np.arange(50))
    monkeypatch.setattr(synthetic, "_BLOCK", 7)
    again_x, again_y = SMALL.generate(np.arange(50))
    np.testing.assert_array_equal(x, again_x)
    np.testing.assert_array_equal(y, again_y)


def test_the_seed_changes_every_device():
    a, _ = SMALL.generate(np.arange(5))
    b, _ = SyntheticFleet(num_samples=20, num_features=16, seed=4).generate(np.arange(5))
    assert not np.isclose(a, b).all(axis=(1, 2)).any()


def test_values_lie_in_the_declared_ranges():
    x, y = SMALL.generate(np.arange(300))
    SMALL.schema.validate(x.reshape(-1, 16), ranges=True)
    assert y.min() == 0
    assert y.max() == SMALL.num_classes - 1


def test_label_skew_is_as_asked():
    def favourite_share(skew):
        _, y = SyntheticFleet(num_samples=200, num_features=2, label_skew=skew).generate(np.arange(200))
        counts = np.sort(np.apply_along_axis(np.bincount, 1, y, minlength=6), axis=1)
        return counts[:, -2:].sum() / counts.sum()

    assert favourite_share(1.0) == pytest.approx(1.0)
    assert favourite_share(0.0) < favourite_share(0.5) < 0.8


def test_classes_can_be_told_apart():
    x, y = SyntheticFleet(concept_shift=0.3).generate(np.arange(300))
    train, test = x[:200].reshape(-1, 64), x[200:].reshape(-1, 64)
    centers = np.stack([train[y[:200].reshape(-1) == c].mean(axis=0) for c in range(6)])
    nearest = np.argmin(((test[:, None] - centers) ** 2).sum(axis=2), axis=1)
    assert (nearest == y[200:].reshape(-1)).mean() > 0.8


def test_the_small_fleet_is_an_ordinary_data_set():
    data = synthetic.load(recipe=SyntheticFleet(num_devices=7, num_samples=10, num_features=4))
    assert data.num_streams == 7
    assert data.future.sum() == 7 * 2
    data.pipeline.require_private()


@pytest.mark.parametrize(
    "bad",
    [
        {"num_devices": 0},
        {"num_samples": 1},
        {"num_classes": 1},
        {"label_skew": 1.5},
        {"scored_fraction": 0.0},
        {"concept_shift": -1.0},
        {"feature_skew": 0.5},
    ],
)
def test_impossible_fleets_are_refused(bad):
    with pytest.raises(ConfigError):
        SyntheticFleet(**bad)


def test_devices_outside_the_fleet_are_refused():
    with pytest.raises(ConfigError, match="devices are 0 to 999999"):
        SMALL.generate(np.array([1_000_000]))
