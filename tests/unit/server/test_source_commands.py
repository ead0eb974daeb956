"""What people see of brokers, and how devices without an agent come into the fleet."""

from __future__ import annotations

from fedretrain.server.sources import keeping
from fedretrain.server.sources.config import Mqtt
from fedretrain.server.sources.keeping import Batch, Kind, Message
from tests.source_cases import NOW, binner, message

SOURCE = Mqtt("plant", "pumps", samples="plant/{device}", plain=True)


def test_devices_without_an_agent_are_watched(office):
    (office.folder / "names").write_text("pump-2\npump-3\n")
    said = office.on(
        "devices", "watch", "pump-1", "--batch", office.folder / "names", "--site", "north", "--json"
    )
    assert said.json == {"watched": ["pump-1", "pump-2", "pump-3"]}
    found = office.on("devices", "list", "--json").json
    assert [(one["device"], one["standing"], one["site"]) for one in found] == [
        (f"pump-{n}", "watched", "north") for n in (1, 2, 3)
    ]
    assert office.on("devices", "retire", "pump-2", "--by", "anna").status == 0
    assert "retired" in office.on("devices", "watch", "pump-2").err


def test_a_name_that_cannot_be_one_adds_nobody(office):
    said = office.on("devices", "watch", "pump-1", "../pump")
    assert said.status == 2
    assert "'../pump' is no name" in said.err
    assert office.on("devices", "list", "--json").json == []
    assert "no device" in office.on("devices", "watch").err


def test_a_device_with_an_agent_is_not_watched_too(office):
    office.enrol("pump-1")
    assert "the device pump-1 is active" in office.on("devices", "watch", "pump-1").err


def test_what_became_of_messages_is_shown(office):
    assert "no broker" in office.on("sources", "list").out
    assert "nothing was refused" in office.on("sources", "refused").out
    office.on("devices", "watch", "pump-1")
    log = office.log()
    told = [(b"nonsense", "pump-1"), (message(0), "pump-1"), (message(0), "pump-1"), (message(0), "ghost")]
    messages = [Message(Kind.SAMPLES, device, payload, origin="topic x") for payload, device in told]
    with log.engine.begin() as connection:
        keeping.note(connection, SOURCE, "away", NOW, "ConnectionError: gone", broken=True)
        keeping.keep(connection, Batch(SOURCE, messages, binner(), NOW))
    log.engine.dispose()
    (found,) = office.on("sources", "list", "--json").json
    assert (found["counted"], found["repeated"], found["refused"]) == (1, 1, {"message": 1, "device": 1})
    assert (found["standing"], found["num_broken"], found["error"]) == ("away", 1, "ConnectionError: gone")
    line = office.on("sources", "list").out
    assert "1 counted" in line
    assert "broken 1 times ConnectionError: gone" in line
    letters = office.on("sources", "refused", "--json").json
    assert [(one["reason"], one["device"], one["begins"][:8]) for one in letters] == [
        ("message: not JSON", "pump-1", "nonsense"),
        ("device: not in the fleet", "ghost", '{"at": ['),
    ]
    assert "message: not JSON (topic x, pump-1)" in office.on("sources", "refused", "--limit", "2").out


def test_config_check_reads_brokers(office):
    more = (
        '\n[[mqtt]]\nname = "plant"\npopulation = "pumps"\nsamples = "plant/{device}"\nauthority = "ca.pem"\n'
    )
    office.config.write_text(office.config.read_text() + more)
    assert "mqtt.plant.authority" in office.type("config", "check", office.config).err
    (office.folder / "ca.pem").write_text("")
    found = office.type("config", "check", office.config, "--json").json
    assert found["source plant"] == "127.0.0.1:8883, TLS, for pumps"
