"""A device's disk loses a bit of a model, or its server's does: what is served is whole, a person is told, and it is mended."""

from __future__ import annotations

import pytest

from fedretrain.artifacts.manifest import Manifest
from fedretrain.core.clock import DAY_S
from tests.agent_cases import Clock, fleet_of, rows


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server") as running:
        yield running


def weights_of(fleet, package):
    return Manifest.from_bytes(fleet.store.get(package)).weights.digest


def rot(tmp_path, fleet, package):
    """One bit of a version's weights, as they lie on the device."""
    path = tmp_path / "edge" / "a" / "models" / "content" / weights_of(fleet, package)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def installed(fleet, tmp_path, *packages):
    """A device that served these, the last one last, and was switched off."""
    with fleet.device(tmp_path) as device:
        for package in packages:
            fleet.assign("a", package, valid_s=2 * DAY_S)
            device.sync()
            assert device.predict(rows())[0].package == package


def alerts(fleet):
    return [(alert.kind, alert.package) for alert in fleet.records("alert")]


@pytest.mark.faults
def test_a_slot_that_rotted_gives_way_to_the_one_before_is_told_and_fetched_again(fleet, tmp_path):
    first, second = fleet.make(2)
    installed(fleet, tmp_path, first, second)
    rot(tmp_path, fleet, second)
    with fleet.device(tmp_path, token="") as device:
        assert device.predict(rows())[0].package == first
        device.sync()
        assert device.predict(rows())[0].package == second
        assert alerts(fleet) == [("slot_damaged", second)]
    with fleet.device(tmp_path, token="") as device:
        assert device.predict(rows())[0].package == second


@pytest.mark.faults
def test_the_only_slot_that_rotted_is_told_and_fetched_again(fleet, tmp_path):
    (first,) = fleet.make()
    installed(fleet, tmp_path, first)
    rot(tmp_path, fleet, first)
    with fleet.device(tmp_path, token="") as device:
        assert device.predict(rows())[0].package == ""
        device.sync()
        assert device.predict(rows())[0].package == first
        assert alerts(fleet) == [("slot_damaged", first)]


@pytest.mark.faults
@pytest.mark.parametrize("rotten", [0, 1])
def test_a_slot_that_rots_while_it_is_served_is_found_within_a_day_and_fetched_again(fleet, tmp_path, rotten):
    versions, clock = fleet.make(2), Clock()
    installed(fleet, tmp_path, *versions)
    with fleet.device(tmp_path, clock, token="") as device:
        rot(tmp_path, fleet, versions[rotten])
        clock.go(DAY_S + 1.0, fleet)
        fleet.repository.refresh_timestamp(clock.at)  # as the coordinator does every hour
        fleet.here.trust_version += 1
        device.tick()
        assert device.predict(rows())[0].package == versions[1]
        device.sync()
        assert alerts(fleet) == [("slot_damaged", versions[rotten])]
        assert device.predict(rows())[0].package == versions[1]
    with fleet.device(tmp_path, token="") as device:
        assert device.predict(rows())[0].package == versions[1]
        assert device.slots.rollback().digest == versions[0]


@pytest.mark.faults
def test_a_delta_that_the_server_has_lost_gives_way_to_the_full_file(fleet, tmp_path):
    first, second = fleet.make(2)
    del fleet.here.blobs[Manifest.from_bytes(fleet.store.get(second)).delta.digest]
    installed(fleet, tmp_path, first, second)


def test_a_download_that_was_cut_goes_on_where_it_was(fleet, tmp_path):
    first, second = fleet.make(2)
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        manifest = Manifest.from_bytes(fleet.store.get(second))
        away = {blob.digest: fleet.here.blobs.pop(blob.digest) for blob in (manifest.delta, manifest.weights)}
        fleet.assign("a", second)
        device.sync()
        assert device.predict(rows())[0].package == first
        assert "not_found" in device.visit.problem
        fleet.here.blobs.update(away)
        device.sync()
        assert device.predict(rows())[0].package == second
