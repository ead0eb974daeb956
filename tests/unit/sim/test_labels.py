"""Label delay, loss, bias and delivery."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import ConfigError
from sim.labels import DelayKind, Labels, LabelsConfig, class_distance, hardness_ranks

N = 20_000
DEVICES, INDEX = np.arange(N) % 100, np.arange(N) // 100
AT = np.linspace(0.0, 5 * DAY_S, N)


def delays(**keys) -> np.ndarray:
    return Labels(LabelsConfig(**keys), 3).label_at(DEVICES, INDEX, AT) - AT


def test_without_settings_labels_are_there_at_once():
    np.testing.assert_array_equal(Labels(LabelsConfig(), 3).label_at(DEVICES, INDEX, AT), AT)


def test_constant_delay():
    np.testing.assert_allclose(delays(delay=DelayKind.CONSTANT, delay_s=77.0), 77.0, rtol=1e-6)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9, 0.99])
def test_delay_quantiles_match_their_distribution(q):
    from scipy.stats import expon, lognorm

    late = np.quantile(delays(delay=DelayKind.EXPONENTIAL, delay_s=HOUR_S), q)
    assert late == pytest.approx(expon(scale=HOUR_S).ppf(q), rel=0.08)
    late = np.quantile(delays(delay=DelayKind.LOGNORMAL, delay_s=HOUR_S, sigma=0.8), q)
    assert late == pytest.approx(lognorm(0.8, scale=HOUR_S).ppf(q), rel=0.08)


def test_nightly_batch():
    arrives = AT + delays(delay=DelayKind.NIGHTLY, batch_hour=3.0)
    np.testing.assert_allclose((arrives - 3 * HOUR_S) % DAY_S, 0.0, atol=1e-3)
    assert (arrives >= AT).all()
    assert (arrives - AT < DAY_S).all()
    cut = Labels(LabelsConfig(delay=DelayKind.NIGHTLY, batch_hour=3.0, cutoff_s=HOUR_S), 3)
    at = np.array([1.9 * HOUR_S, 2.1 * HOUR_S, -30 * HOUR_S])
    np.testing.assert_allclose(
        cut.label_at([0, 0, 0], [0, 1, 2], at), [3 * HOUR_S, 27 * HOUR_S, -21 * HOUR_S]
    )


def test_loss_and_bias_have_their_rates():
    hardness = hardness_ranks(np.random.default_rng(0).random(N), DEVICES)
    labels = Labels(LabelsConfig(loss_fraction=0.5, bias=0.8), 3)
    arrived = np.isfinite(labels.label_at(DEVICES, INDEX, AT, hardness=hardness))
    assert arrived.mean() == pytest.approx(0.5, abs=0.015)
    assert arrived[hardness > 0.9].mean() == pytest.approx(0.5 * (1 + 0.8 * 0.9), abs=0.04)
    assert arrived[hardness < 0.1].mean() == pytest.approx(0.5 * (1 - 0.8 * 0.9), abs=0.04)
    opposite = Labels(LabelsConfig(loss_fraction=0.5, bias=-0.8), 3)
    arrived = np.isfinite(opposite.label_at(DEVICES, INDEX, AT, hardness=hardness))
    assert arrived[hardness > 0.9].mean() < 0.2


def test_rate_of_each_class():
    y = np.arange(N) % 2
    labels = Labels(LabelsConfig(class_rate=(1.0, 0.3)), 3)
    arrived = np.isfinite(labels.label_at(DEVICES, INDEX, AT, y=y))
    assert arrived[y == 0].all()
    assert arrived[y == 1].mean() == pytest.approx(0.3, abs=0.02)
    for bad in (np.full(N, 2), np.full(N, 0.5), None):
        with pytest.raises(ConfigError, match="do not cover"):
            labels.label_at(DEVICES, INDEX, AT, y=bad)


def test_order_and_group_do_not_matter():
    labels = Labels(LabelsConfig(delay=DelayKind.EXPONENTIAL, loss_fraction=0.2), 3)
    together = labels.label_at(DEVICES, INDEX, AT)
    some = np.random.default_rng(1).permutation(N)[:500]
    np.testing.assert_array_equal(labels.label_at(DEVICES[some], INDEX[some], AT[some]), together[some])


def test_an_offline_device_gets_its_label_later_unless_told_otherwise():
    def later(devices, ready_at):
        return ready_at + 10.0 * devices

    for replay, wait in ((True, 10.0), (False, 0.0)):
        config = LabelsConfig(delay=DelayKind.CONSTANT, delay_s=1.0, replay_offline=replay, loss_fraction=0.1)
        at = Labels(config, 3, later).label_at(DEVICES, INDEX, AT)
        arrived = np.isfinite(at)
        assert 0.88 < arrived.mean() < 0.92
        np.testing.assert_allclose((at - AT)[arrived], (1.0 + wait * DEVICES)[arrived], rtol=1e-6)


def test_hardness_ranks_are_within_a_device():
    ranks = hardness_ranks([5.0, 1.0, 9.0, 2.0, 2.5], [1, 0, 1, 1, 0])
    np.testing.assert_allclose(ranks, [0.5, 0.25, 2.5 / 3, 0.5 / 3, 0.75])


def test_class_distance_is_to_the_devices_own_centroid():
    x = np.array([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0], [9.0, 0.0]], dtype=np.float32)
    far = class_distance(x, np.array([1, 1, 0, 1]), np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(far, [1.0, 1.0, 0.0, 0.0])
    targets = np.array([1.0, 3.0, 2.0, 8.0], dtype=np.float32)
    np.testing.assert_allclose(class_distance(x, targets, np.array([0, 0, 0, 1])), [1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"loss_fraction": 1.5}, "labels.loss_fraction"),
        ({"bias": 2.0}, "labels.bias"),
        ({"bias": 0.5, "loss_fraction": 0.1}, "labels.bias"),
        ({"batch_hour": 24.0}, "labels.batch_hour"),
        ({"delay_s": -1.0}, "labels.delay_s"),
        ({"class_rate": (1.0, 1.2)}, "labels.class_rate"),
    ],
)
def test_an_impossible_value_names_its_key(keys, key):
    with pytest.raises(ConfigError) as caught:
        LabelsConfig(**keys)
    assert caught.value.where == key
