import numpy as np
import pytest

from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import ConfigError
from sim.devices import Traits
from sim.fit.clusters import cluster_hours
from tests.contract.availability_contract import AvailabilityContract

CURVE = (0.5 + 0.4 * np.cos(np.arange(24) * np.pi / 12)).round(4).tolist()
CLUSTERS = [
    {"site": 0, "device_type": 0, "hourly": CURVE},
    {"site": 1, "device_type": 0, "hourly": [0.2] * 24},
    {"site": 1, "device_type": 1, "hourly": [0.8] * 24},
]


class TestClusterHours(AvailabilityContract):
    def make_model(self):
        return cluster_hours(clusters=CLUSTERS, keep=0.5)


def online(model, site, device_type, slots, num=4000):
    devices = np.arange(num)
    traits = Traits(devices, np.full(num, site), np.full(num, device_type))
    return np.stack([model.online(traits, 5, np.full(num, slot * HOUR_S)) for slot in slots], axis=1)


def test_without_memory_each_hour_has_its_clusters_share():
    seen = online(cluster_hours(clusters=CLUSTERS), 0, 0, range(24)).mean(axis=0)
    np.testing.assert_allclose(seen, CURVE, atol=4 * 0.5 / np.sqrt(4000))


def test_a_slot_keeps_the_state_as_often_as_it_says():
    states = online(cluster_hours(clusters=CLUSTERS, keep=0.7), 1, 0, range(2))
    # Kept, or drawn anew with the same outcome.
    expected = 0.7 + 0.3 * (0.2**2 + 0.8**2)
    assert (states[:, 0] == states[:, 1]).mean() == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(4000))
    assert states.mean() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("site", "device_type", "share"), [(1, 1, 0.8), (1, 7, 0.2), (4, 0, 0.2), (5, 1, 0.8)]
)
def test_a_device_of_no_measured_cluster_follows_one(site, device_type, share):
    seen = online(cluster_hours(clusters=CLUSTERS), site, device_type, [3]).mean()
    assert seen == pytest.approx(share, abs=4 * 0.5 / np.sqrt(4000))


def test_the_state_is_constant_through_a_slot():
    model, traits = cluster_hours(clusters=CLUSTERS, keep=0.3), Traits(*(np.zeros(1, np.int64),) * 3)
    inside = {
        bool(model.online(traits, 1, np.array([DAY_S + part * HOUR_S]))[0]) for part in (0.0, 0.4, 0.99)
    }
    assert len(inside) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"clusters": []},
        {"clusters": CLUSTERS, "keep": 1.0},
        {"clusters": CLUSTERS, "slot_s": 0.0},
        {"clusters": [{"site": 0, "hourly": CURVE}]},
        {"clusters": [{"site": 0, "device_type": 0, "hourly": [0.5] * 23}]},
        {"clusters": [{"site": 0, "device_type": 0, "hourly": [1.5] * 24}]},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        cluster_hours(**options)
