"""A device is kept out by hand, and let in again: as it is ordered, shown and written down."""

from __future__ import annotations

import pytest

from fedretrain.coordinator.cycle_evidence import Quarantine
from fedretrain.rollout.quarantine import Release, Subject
from fedretrain.server import fleet
from fedretrain.server.account import account
from fedretrain.server.fleet import Traits
from tests.cycle_cases import POLICY, Drive
from tests.server_cases import lines

WHY = ("--by", "anna", "--reason", "loose")
ROLES = '\n[roles.day]\nmay = ["operate"]\npeople = ["anna"]\n[roles.night]\nmay = ["restore"]\npeople = ["ben"]\n'


@pytest.fixture
def manned(office):
    """A folder with two devices that were enrolled, and one that is watched."""
    office.enrol("pump-1")
    office.enrol("pump-2")
    log = office.log()
    with log.engine.begin() as connection:
        fleet.watch(connection, "pumps", "pump-3", Traits(), 1.0)
    log.engine.dispose()
    return office


@pytest.mark.parametrize(("device", "number"), [("pump-2", 1), ("pump-3", 2)])
def test_who_keeps_a_device_out_and_why_is_an_order_in_the_audit_log(manned, device, number):
    said = manned.on("devices", "quarantine", device, *WHY)
    assert (said.status, said.out) == (0, f"{device} is kept out from the next turn on\n")
    assert manned.ordered() == [Quarantine(number, "anna", "loose")]
    (told,) = manned.on("log", "--orders", "--json").json
    assert (told["kind"], told["by"], told["account"]) == ("quarantine", "anna", account())
    assert told["said"] == {"device": device, "reason": "loose"}


def test_a_device_that_a_person_or_a_monitor_keeps_out_is_shown_and_let_in_again(manned):
    drive = Drive(POLICY)
    drive.watch(outliers=(0,))
    drive.tick(orders=(Quarantine(1, "anna", "loose"),))
    manned.lived(drive)
    listed = {one["device"]: one["quarantine"] for one in manned.on("devices", "list", "--json").json}
    assert listed == {
        "pump-1": "its inputs are unlike the other devices'",
        "pump-2": "kept out by anna: loose",
        "pump-3": "",
    }
    shown = manned.on("devices", "list").out.splitlines()
    assert shown[1].endswith("in quarantine: kept out by anna: loose")
    assert "quarantine" not in shown[2]
    assert manned.on("status", "--json").json["kept_devices"] == ["pump-1", "pump-2"]
    assert "quarantine entered device 1 kept out by anna: loose" in manned.on("log").out
    for device in ("pump-1", "pump-2"):
        assert manned.on("devices", "release", device, *WHY).status == 0
    assert manned.ordered() == [Release(Subject.DEVICE, number, "anna", "loose") for number in (0, 1)]
    assert manned.on("log", "--orders").out.splitlines()[1].endswith("release pump-2 loose")


def test_an_order_that_waits_for_the_next_turn_can_be_taken_back(manned):
    assert manned.on("devices", "quarantine", "pump-1", *WHY).status == 0
    assert manned.on("devices", "release", "pump-1", *WHY).status == 0
    assert [type(one) for one in manned.ordered()] == [Quarantine, Release]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("quarantine", "ghost", *WHY), "there is no device ghost"),
        (("release", "ghost", *WHY), "there is no device ghost"),
        (("release", "pump-1", *WHY), "the device pump-1 is not in quarantine"),
        (("quarantine", "pump-1", "--by", "anna", "--reason", " "), "it needs a reason"),
        (("quarantine", "pump-2", *WHY), "the device pump-2 was retired"),
        (("release", "pump-1", "--by", "anna", "--reason", ""), "it needs a reason"),
    ],
)
def test_what_cannot_be_ordered_is_said_and_not_written(manned, words, named):
    manned.on("devices", "retire", "pump-2", "--by", "anna")
    said = manned.on("devices", *words)
    assert (said.status, said.out) == (2, "")
    (line,) = lines(said.err)
    assert named in line
    assert manned.ordered() == []


def test_keeping_out_is_an_operators_and_letting_in_needs_the_right_to_restore(manned):
    manned.config.write_text(manned.config.read_text() + ROLES)
    assert (
        "lacks the right operate" in manned.on("devices", "quarantine", "pump-1", "--by", "ben", *WHY[2:]).err
    )
    assert manned.on("devices", "quarantine", "pump-1", *WHY).status == 0
    assert "lacks the right restore" in manned.on("devices", "release", "pump-1", *WHY).err
    assert manned.on("devices", "release", "pump-1", "--by", "ben", *WHY[2:]).status == 0
