"""Which rows a device holds, and how skewed the fleet is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.core.types import Objective
from sim.fleet import FleetConfig, FleetKind
from sim.sharding import sharding_for
from sim.skew import drawn_groups, label_bins, log_label_shares, quantities
from tests.world_cases import small_dataset

DATA = small_dataset(num_streams=5, rows=60)


def sharding(kind: FleetKind, num_devices: int = 0, data=DATA, seed: int = 0, **keys):
    return sharding_for(data, FleetConfig(kind=kind, num_devices=num_devices, **keys), seed)


def rows_by_device(made, devices) -> list[np.ndarray]:
    held = made.held(np.asarray(devices))
    return [held.row[held.owner == k] for k in range(len(devices))]


def test_natural_devices_are_the_streams():
    made = sharding(FleetKind.NATURAL)
    assert made.num_devices == 5
    for device, rows in zip((3, 1), rows_by_device(made, [3, 1]), strict=True):
        np.testing.assert_array_equal(rows, np.flatnonzero(DATA.stream == device))
    traits = made.traits(np.array([3, 1]))
    np.testing.assert_array_equal(traits.site, DATA.site[[3, 1]])
    np.testing.assert_array_equal(traits.device_type, DATA.device_type[[3, 1]])
    assert made.name(3) == "s3"
    assert sharding(FleetKind.NATURAL, 2).num_devices == 2


def test_more_natural_devices_than_streams_are_refused():
    with pytest.raises(ConfigError, match="5 natural devices, 6 were asked") as caught:
        sharding(FleetKind.NATURAL, 6)
    assert "virtual" in caught.value.fix


@pytest.mark.parametrize("keys", [{}, {"label_alpha": 0.2, "quantity_sigma": 1.0}])
def test_a_partition_deals_every_row_once(keys):
    made = sharding(FleetKind.PARTITION, 40, **keys)
    rows = np.concatenate(rows_by_device(made, np.arange(40)))
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(DATA)))


def test_a_partition_without_skew_is_even_and_with_skew_is_not():
    data = small_dataset(num_streams=5, rows=600)
    even = [len(rows) for rows in rows_by_device(sharding(FleetKind.PARTITION, 20, data), np.arange(20))]
    assert max(even) - min(even) <= 6  # two sides, three classes
    rows = rows_by_device(sharding(FleetKind.PARTITION, 20, data, label_alpha=0.1), np.arange(20))
    top = [np.bincount(data.y[r], minlength=3).max() / len(r) for r in rows if len(r) > 20]
    assert np.mean(top) > 0.7


def test_past_and_scored_rows_are_dealt_by_the_same_shares():
    data = small_dataset(num_streams=10, rows=600)
    rows = rows_by_device(sharding(FleetKind.PARTITION, 10, data, label_alpha=0.3), np.arange(10))
    past, scored = (
        np.array([np.bincount(data.y[r][data.future[r] == side], minlength=3) for r in rows])
        for side in (False, True)
    )
    np.testing.assert_allclose(past / past.sum(axis=0), scored / scored.sum(axis=0), atol=0.002)


def test_virtual_devices_hold_rows_of_their_source_alone_on_each_side():
    made = sharding(FleetKind.VIRTUAL, 1_000_000, rows_fraction=0.5, quantity_sigma=0.5, label_alpha=0.5)
    asked = np.array([999_999, 7, 3, 500_001])
    for device, rows in zip(asked, rows_by_device(made, asked), strict=True):
        assert set(DATA.stream[rows]) == {device % 5}
        assert len(set(rows)) == len(rows)
        assert (np.diff(DATA.event_at[rows]) >= 0).all()
        assert (~DATA.future[rows]).any()
    assert made.name(7) == "virtual 7 (of s2)"
    np.testing.assert_array_equal(made.traits(asked).site, DATA.site[asked % 5])


def test_virtual_quantity_and_label_skew():
    made = sharding(FleetKind.VIRTUAL, 500, rows_fraction=0.4, quantity_sigma=0.6, min_rows=3)
    sizes = np.array([(~DATA.future[r]).sum() for r in rows_by_device(made, np.arange(500))])
    assert sizes.min() >= 3
    assert sizes.max() <= 40
    assert sizes.mean() == pytest.approx(0.4 * 40, rel=0.1)
    skewed = sharding(FleetKind.VIRTUAL, 300, rows_fraction=0.2, label_alpha=0.05)
    rows = rows_by_device(skewed, np.arange(300))
    top = [np.bincount(DATA.y[r], minlength=3).max() / len(r) for r in rows]
    assert np.mean(top) > 0.8


def test_a_virtual_device_holds_the_classes_of_its_own_shares():
    data = small_dataset(num_streams=1, rows=3_000)
    made = sharding(FleetKind.VIRTUAL, 60, data, rows_fraction=0.05, label_alpha=0.5, keep_natural=False)
    counts = np.array([np.bincount(data.y[r], minlength=3) for r in rows_by_device(made, np.arange(60))])
    shares = np.exp(log_label_shares(0, np.arange(60), 3, 0.5))
    held = counts / counts.sum(axis=1, keepdims=True)
    assert np.corrcoef(held.ravel(), shares.ravel())[0, 1] > 0.95


def test_rounding_favours_no_device():
    data = small_dataset(num_streams=2, rows=3_000, num_classes=600)
    sizes = [len(rows) for rows in rows_by_device(sharding(FleetKind.PARTITION, 50, data), np.arange(50))]
    assert min(sizes) > 60  # 120 on average; ten rows a class, cut alike, would go to the same ten devices
    assert max(sizes) < 180


def test_whole_virtual_devices_hold_all_rows_of_their_source():
    (rows,) = rows_by_device(sharding(FleetKind.VIRTUAL, 50), [12])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(DATA.stream == 2))


def test_drawn_sites_and_types():
    made = sharding(FleetKind.VIRTUAL, 3_000, num_sites=4, num_types=3)
    traits = made.traits(np.arange(3_000))
    np.testing.assert_allclose(np.bincount(traits.site) / 3_000, 0.25, atol=0.03)
    np.testing.assert_allclose(np.bincount(traits.device_type) / 3_000, 1 / 3, atol=0.03)


def test_dirichlet_shares_have_their_moments():
    for alpha in (0.05, 0.5, 5.0):
        shares = np.exp(log_label_shares(1, np.arange(20_000), 4, alpha))
        np.testing.assert_allclose(shares.sum(axis=1), 1.0)
        np.testing.assert_allclose(shares.mean(axis=0), 0.25, atol=0.015)
        expected = 0.25 * 0.75 / (4 * alpha + 1)  # of a symmetric Dirichlet
        np.testing.assert_allclose(shares.var(axis=0), expected, rtol=0.06)


def test_quantities_have_mean_one():
    size = quantities(1, np.arange(50_000), 0.8)
    assert size.mean() == pytest.approx(1.0, abs=0.02)
    assert np.log(size).std() == pytest.approx(0.8, rel=0.02)
    assert set(drawn_groups(1, np.arange(1000), 3, "x")) == {0, 1, 2}


def test_targets_of_a_regression_are_skewed_by_decile():
    y = np.random.default_rng(0).normal(size=1_000).astype(np.float32)
    assert np.bincount(label_bins(y)).tolist() == [100] * 10
    data = replace(DATA, objective=Objective.REGRESSION, num_outputs=1, class_names=(), y=y[: len(DATA)])
    rows = rows_by_device(sharding(FleetKind.PARTITION, 10, data, label_alpha=0.2), np.arange(10))
    assert sum(map(len, rows)) == len(data)


def test_a_generated_fleet_needs_no_sharding():
    with pytest.raises(ConfigError, match="no data set"):
        sharding(FleetKind.GENERATED, 5)


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"kind": FleetKind.VIRTUAL}, "fleet.num_devices"),
        ({"num_devices": -1}, "fleet.num_devices"),
        ({"label_alpha": 0.5}, "fleet.kind"),
        ({"remount": True}, "fleet.remount"),
        ({"rows_fraction": 1.5}, "fleet.rows_fraction"),
        ({"min_rows": 0}, "fleet.min_rows"),
        ({"kind": FleetKind.GENERATED, "num_devices": 5, "label_alpha": 0.5}, "fleet.label_alpha"),
    ],
)
def test_an_impossible_value_names_its_key(keys, key):
    with pytest.raises(ConfigError) as caught:
        FleetConfig(**keys)
    assert caught.value.where == key
