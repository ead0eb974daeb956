"""Devices as witnesses of the privacy ledger: they remember what a coordinator that was restored whole has forgotten."""

from __future__ import annotations

import shutil
import time

import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.ledger import Head
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.event_log import EventLog
from fedretrain.server.fleet import Standing, set_standing
from fedretrain.server.witnesses import check_ledger, witness_file
from tests.agent_cases import NO_LEDGER, POPULATION, fleet_of
from tests.contract.ledger_contract import event


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    return folder


def said(fleet):
    return Head(*fleet.heard("a")["ledger"])


def charge(fleet, round_):
    """A round that is charged, and witnessed beside the database."""
    file = WitnessFile(witness_file(fleet.here.folder, POPULATION))
    ledger = DatabaseLedger(EventLog(fleet.here.engine), POPULATION, clock=time.time, witness=file)
    return ledger.append(event(round_, population=POPULATION))


def check(fleet):
    log, folder = EventLog(fleet.here.engine), fleet.here.folder
    check_ledger(log, POPULATION, folder, fleet.repository, time.time, frozenset())


def test_a_device_says_the_newest_head_of_the_ledger_that_was_ever_signed(server, tmp_path):
    newest = Head(5, "e" * 64)
    with fleet_of(server) as fleet:
        with fleet.device(tmp_path) as device:
            device.sync()
            assert said(fleet) == NO_LEDGER
            fleet.make(head=Head(3, "c" * 64))
            (last,) = fleet.make(head=newest)
            device.sync()
            assert said(fleet) == newest  # at once, though nothing was installed
            fleet.repository.quarantine(last, time.time())
            fleet.here.trust_version += 1
            device.sync()
            assert said(fleet) == newest
        with fleet.device(tmp_path, token="") as device:
            fleet.make(head=Head(5, "f" * 64))
            device.sync()
            assert said(fleet) == newest


def test_a_head_in_a_list_that_is_refused_was_not_seen(server, tmp_path):
    with fleet_of(server) as fleet, fleet.device(tmp_path) as device:
        device.sync()
        fleet.make(head=Head(9, "f" * 64))
        files = {
            name: fleet.here.trust[name] for name in ("timestamp.json", "2.snapshot.json", "2.targets.json")
        }
        assert b'"counter":9' in files["2.targets.json"]
        files["2.targets.json"] = files["2.targets.json"].replace(b'"counter":9', b'"counter":8')
        fleet.here.trust = files
        device.sync()
        assert "signed list is refused" in device.visit.problem
        assert said(fleet) == NO_LEDGER


def test_devices_remember_what_a_coordinator_that_was_restored_whole_has_forgotten(server, tmp_path):
    older = tmp_path / "older"
    with fleet_of(server) as fleet, fleet.device(tmp_path) as device:
        charge(fleet, 0)
        device.sync()
        ports = tuple(int(one.rpartition(":")[2]) for one in (fleet.here.control, fleet.here.enrolment))
    shutil.copytree(server, older)
    with fleet_of(server, ports=ports) as fleet, fleet.device(tmp_path, token="") as device:
        head = charge(fleet, 1)
        fleet.make(head=head)
        device.sync()
        check(fleet)
    shutil.rmtree(server)
    shutil.copytree(older, server)
    with fleet_of(server, ports=ports) as fleet, fleet.device(tmp_path, token="") as device:
        check(fleet)  # database, witness file and list are of one day
        device.sync()
        assert said(fleet) == head
        with pytest.raises(PrivacyError, match="has 1 events, a saw 2 in a signed list: an old copy"):
            check(fleet)
        with fleet.here.engine.begin() as connection:
            set_standing(connection, POPULATION, "a", Standing.REVOKED, time.time())
        check(fleet)
