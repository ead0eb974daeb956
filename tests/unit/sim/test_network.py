"""Hardware and reply times."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from sim.devices import Traits
from sim.network import Network, NetworkConfig

IDS = np.arange(5_000)
EXACT = NetworkConfig(
    step_s=0.5,
    start_s=2.0,
    speed_sigma=0.0,
    down_bps=8e6,
    up_bps=4e6,
    bandwidth_sigma=0.0,
    latency_s=0.25,
    latency_sigma=0.0,
    jitter_sigma=0.0,
)


def by_type(devices) -> Traits:
    return Traits(devices, np.zeros_like(devices), devices % 2)


def test_without_spread_the_reply_time_is_the_sum_of_its_parts():
    after = Network(EXACT, 0).reply_after_s(
        [0, 1], round_=0, down_bytes=1_000_000, up_bytes=[500_000, 0], num_steps=[10, 0]
    )
    np.testing.assert_allclose(after, [0.25 + 1.0 + 1.0 + 2.0 + 5.0, 0.25 + 1.0 + 2.0])


def test_medians_and_spreads_are_as_configured():
    config = NetworkConfig(speed_sigma=0.4, type_speed=(1.0, 4.0), bandwidth_sigma=0.7, down_bps=3e6)
    has = Network(config, 1, by_type).links(IDS)
    for kind, median in ((0, 1.0), (1, 4.0)):
        speed = np.log(has.compute_speed[kind == IDS % 2])
        assert np.median(speed) == pytest.approx(np.log(median), abs=0.05)
        assert speed.std() == pytest.approx(0.4, rel=0.06)
    assert np.log(has.down_bps).std() == pytest.approx(0.7, rel=0.05)
    np.testing.assert_allclose(has.down_bps / has.up_bps, 3e6 / config.up_bps)


def test_jitter_changes_from_round_to_round_and_hardware_does_not():
    network = Network(NetworkConfig(jitter_sigma=0.2), 1)
    work = {"down_bytes": 1e5, "up_bytes": 1e5, "num_steps": 20}
    first, second = (network.reply_after_s(IDS, round_=r, **work) for r in (1, 2))
    assert np.log(first / second).std() == pytest.approx(0.2 * np.sqrt(2), rel=0.06)
    np.testing.assert_array_equal(first[:7], network.reply_after_s(IDS[:7], round_=1, **work))


def test_some_are_stragglers_beyond_any_deadline_between():
    after = Network(NetworkConfig(), 1).reply_after_s(
        IDS, round_=1, down_bytes=1e6, up_bytes=1e6, num_steps=50
    )
    late = after > np.median(after) * 2
    assert 0.02 < late.mean() < 0.4


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"down_bps": 0.0}, "network.down_bps"),
        ({"type_speed": ()}, "network.type_speed"),
        ({"type_speed": (1.0, -1.0)}, "network.type_speed"),
        ({"latency_s": -1.0}, "network.latency_s"),
        ({"jitter_sigma": float("inf")}, "network.jitter_sigma"),
    ],
)
def test_an_impossible_value_names_its_key(keys, key):
    with pytest.raises(ConfigError) as caught:
        NetworkConfig(**keys)
    assert caught.value.where == key
