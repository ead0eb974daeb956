"""The first start of an agent: nobody there yet, some devices enrolled before, and what a person has to mend."""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import replace

import pytest

from fedretrain import cli
from fedretrain.artifacts.identity import FleetAuthority
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.edge import agent as module
from fedretrain.edge.agent import Agent
from fedretrain.edge.config import read_edge
from fedretrain.edge.control import CALL_S, ControlError
from tests.agent_cases import fleet_of, rows
from tests.integration.test_agent import write_config


class Away:
    """A coordinator that gave out tokens and an address, and is not there now."""

    def __init__(self, tmp_path, *names):
        self.folder = tmp_path / "server"
        self.folder.mkdir()
        with self.begin() as fleet:
            self.config = write_config(fleet, tmp_path, *names)
            self.address = fleet.here.enrolment
            self.ports = tuple(int(one.rsplit(":", 1)[1]) for one in (fleet.here.control, self.address))

    def begin(self):
        return fleet_of(self.folder, ports=getattr(self, "ports", (0, 0)))

    def edit(self, old, new):
        self.config.write_text(self.config.read_text().replace(old, new))


@pytest.fixture
def away(tmp_path):
    return Away(tmp_path, "a", "b")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "JOIN_S", 0.05)


def waiting_for(holds):
    end = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_start_without_a_coordinator_says_so_once_goes_on_and_ends_when_told(away, run, number):
    running = run(away.config)
    status, found = running.ask("/v1/predict", {"device": "a", "rows": rows().tolist()})
    assert (status, "not enrolled yet" in found["error"], away.address in found["error"]) == (503, True, True)
    assert [(one["device"], one["enrolled"]) for one in running.ask("/v1/status")[1]["devices"]] == [
        ("a", False),
        ("b", False),
    ]
    code, errors = running.end(number)
    (line,) = errors.splitlines()
    assert (code, f"nobody enrols at {away.address} yet, it goes on trying for a, b" in line) == (0, True)


def test_devices_enrol_once_the_coordinator_is_there(away, run):
    running = run(away.config)
    with away.begin() as fleet:
        (first,) = fleet.make()
        running.until(lambda: all(one["enrolled"] for one in running.ask("/v1/status")[1]["devices"]))
        fleet.assign("a", first)
        running.until(lambda: running.predict(device="a")["package"] == first)
        code, _ = running.end()
    assert code == 0


def test_devices_that_were_enrolled_serve_meanwhile(away, quick):
    config = read_edge(away.config)
    only = [one for one in config.devices if one.name == "b"]
    with away.begin():
        Agent(replace(config, devices=only)).close()
    with Agent(config) as agent:
        assert (list(agent.devices), agent.waiting) == (["b"], ("a",))
        assert len(agent.device("b").predict(rows())) == 1
        with pytest.raises(ControlError, match="a is not enrolled yet"):
            agent.device("a")
        with pytest.raises(DataError, match="which device"):
            agent.device()
        with away.begin() as fleet:
            waiting_for(lambda: agent.waiting == () and fleet.heard("a"))
        assert agent.device("a").joined.number == 1


def test_an_enrolment_that_never_answers_keeps_nobody_from_serving(away, quick, caplog):
    config = read_edge(away.config)
    only = [one for one in config.devices if one.name == "b"]
    with away.begin():
        Agent(replace(config, devices=only)).close()
    with socket.create_server(("127.0.0.1", 0)) as mute:  # it takes what is sent, and says nothing
        config = replace(config, enrol=f"127.0.0.1:{mute.getsockname()[1]}")
        begun = time.monotonic()
        with Agent(config) as agent:
            assert time.monotonic() - begun < CALL_S / 2
            assert len(agent.device("b").predict(rows())) == 1
            assert agent.waiting == ("a",)
        assert time.monotonic() - begun < CALL_S
    assert caplog.text == ""  # an end is no silence of the enrolment


def test_a_token_that_is_refused_at_the_start_is_said_and_ends_nothing_that_serves(away, run, capsys):
    config = read_edge(away.config)
    only = [one for one in config.devices if one.name == "b"]
    away.edit('name = "a"\ntoken = "', 'name = "a"\ntoken = "x')
    with away.begin():
        Agent(replace(config, devices=only)).close()
        running = run(away.config)
        running.until(lambda: running.ask("/v1/status")[1]["devices"][1].get("mistake"))
        serving, refused = running.ask("/v1/status")[1]["devices"]
        assert (serving["device"], serving["enrolled"], refused["device"], refused["enrolled"]) == (
            "b",
            True,
            "a",
            False,
        )
        assert f"{away.address} does not enrol the device a: the enrolment token" in refused["mistake"]
        assert cli.main(["edge", "status", "--config", str(away.config)]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[2].startswith(f"a: not enrolled: {away.address} does not enrol the device a")
        assert running.ask("/v1/predict", {"device": "b", "rows": rows().tolist()})[0] == 200
        status, found = running.ask("/v1/predict", {"device": "a", "rows": rows().tolist()})
        assert (status, "ask an operator for a new one" in found["error"]) == (503, True)
        code, errors = running.end()
    (line,) = [one for one in errors.splitlines() if "does not enrol" in one]
    assert (code, "a: " in line) == (0, True)


def test_a_token_that_is_refused_late_ends_nothing_that_serves(away, quick, caplog):
    config = read_edge(away.config)
    only = [one for one in config.devices if one.name == "b"]
    with away.begin():
        Agent(replace(config, devices=only)).close()
    away.edit('name = "a"\ntoken = "', 'name = "a"\ntoken = "x')
    with Agent(read_edge(away.config)) as agent:
        with away.begin():
            waiting_for(lambda: "does not enrol the device a" in caplog.text)
        assert len(agent.device("b").predict(rows())) == 1


def test_a_token_that_is_refused_late_ends_an_agent_that_serves_nothing(tmp_path, run):
    away = Away(tmp_path, "a")
    away.edit('token = "', 'token = "x')
    running = run(away.config)
    with away.begin():
        _, errors = running.process.communicate(timeout=60)
    *_, line = errors.splitlines()
    assert running.process.returncode == 2
    assert line.startswith(f"fedretrain: {away.address} does not enrol the device a: the enrolment token")
    assert line.endswith("[devices.token] - ask an operator for a new one: `fedretrain enrol a`")


def test_an_authority_of_another_fleet_is_one_line_with_the_file(away, tmp_path, capsys):
    other = FleetAuthority(tmp_path / "other", now=time.time())
    (tmp_path / "ca.pem").write_bytes(other.certificate)
    with away.begin():
        assert cli.main(["edge", "run", "--config", str(away.config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedretrain: the certificate of {away.address} is not by the fleet's authority")
    assert f"[{tmp_path / 'ca.pem'}] - copy" in line


def test_a_used_token_is_refused_with_how_to_get_another(away, tmp_path):
    config = read_edge(away.config)
    with away.begin():
        Agent(config).close()
        with pytest.raises(ConfigError, match="ask an operator for a new one: `fedretrain enrol a`"):
            Agent(replace(config, folder=str(tmp_path / "again")))
