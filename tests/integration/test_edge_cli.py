"""`fedretrain edge`: status, lineage and erasure, with the agent running and at rest; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedretrain.cli import main as command
from fedretrain.edge import cli
from fedretrain.edge.agent import Agent
from fedretrain.edge.api import LocalApi
from fedretrain.edge.config import read_edge
from fedretrain.edge.example_ledger import LEDGER, ExampleLedger
from fedretrain.privacy.example import ExampleBudget, ExampleCharge
from tests.agent_cases import fleet_of, rows
from tests.integration.test_agent import write_config


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server") as running:
        yield running


def say(capsys, *words):
    code = cli.main([*map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_status_and_lineage_of_a_running_agent_and_of_one_at_rest(fleet, tmp_path, capsys):
    path, (first,) = write_config(fleet, tmp_path, "a", "b"), fleet.make()
    code, out, _ = say(capsys, "status", "--config", path, "--json")
    assert (code, json.loads(out)["devices"][0]["enrolled"]) == (0, False)
    config = read_edge(path)
    agent = Agent(config)
    fleet.assign("a", first)
    with LocalApi(agent, config.api):
        device = agent.device("a")
        device.sync()
        (answer,) = device.predict(rows())
        device.flush()
        with device.store.database.mutex:
            told = device.store.lineage.used("c1", [answer.id], 1.0)
            device.store.lineage.came_of("c1", first)
        code, out, _ = say(capsys, "status", "--config", path, "--json")
        assert json.loads(out)["running"]
        assert [one["serves"] for one in json.loads(out)["devices"]] == [first, ""]
        code, out, _ = say(capsys, "lineage", "--config", path, "--device", "a", "--version", first, "--json")
        assert (code, json.loads(out)["uses"][0]["commitment"]) == (0, told)
        code, _, err = say(capsys, "erase", "--config", path, "--device", "a")
        assert (code, "another agent" in err, err.count("\n")) == (2, True, 1)
    agent.close()
    code, out, _ = say(capsys, "status", "--config", path)
    assert (code, out.splitlines()[:2]) == (0, ["not running", f"a: serves {first[:12]}"])
    code, out, _ = say(capsys, "lineage", "--config", path, "--device", "a", "--version", first)
    assert (code, told in out) == (0, True)
    code, out, _ = say(capsys, "erase", "--config", path, "--device", "a")
    assert (code, "erased" in out) == (0, True)
    code, out, _ = say(capsys, "lineage", "--config", path, "--device", "a", "--version", first)
    assert (code, "no example" in out) == (0, True)


def test_nothing_that_was_made_of_samples_is_left_after_an_erasure(fleet, tmp_path, capsys):
    path, (first,) = write_config(fleet, tmp_path, "a"), fleet.make()
    fleet.assign("a", first)
    agent = Agent(read_edge(path))
    device = agent.device("a")
    device.sync()
    (answer,) = device.predict(rows())
    device.label(answer.id, 1)
    device.alert("told", detail="what waits to be sent")
    device.flush()
    agent.close()
    folder = device.folder
    aside = folder / "agent.db.damaged-20260101-ab"
    aside.write_bytes(b"samples")
    left = tmp_path / "edge" / "campaign" / "data" / "0.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"samples of a campaign that was cut")
    code, out, _ = say(capsys, "erase", "--config", path)
    assert (code, "what waited to be sent" in out) == (0, True)
    assert not aside.exists()
    assert not left.parent.parent.exists()
    assert list((folder / "personal").iterdir()) == []
    kept = b"".join(file.read_bytes() for file in folder.glob("agent.db*"))
    assert b"what waits to be sent" not in kept
    assert answer.id.encode() not in kept
    again = Agent(read_edge(path)).device("a")
    assert again.status().num_labelled == 0
    again.sync()  # it is the same device, and tells what will never come
    assert not fleet.records("labels")
    again.close()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("status", "--config", "nowhere.toml"), "no file"),
        (("lineage", "--config", "edge.toml", "--version", "x"), "no device"),
        (("erase", "--config", "edge.toml", "--device", "c"), "no device"),
        (("erase", "--config", "edge.toml", "--device", "a"), "never enrolled"),
    ],
)
def test_a_mistake_is_one_line(fleet, tmp_path, capsys, monkeypatch, words, what):
    write_config(fleet, tmp_path, "a", "b")
    monkeypatch.chdir(tmp_path)
    code, out, err = say(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fedretrain: ")
    assert what in err
    assert command(["edge", *words]) == 2
    assert capsys.readouterr().err == err


def test_an_agent_whose_token_does_not_count_does_not_start(fleet, tmp_path, capsys):
    path = write_config(fleet, tmp_path, "a")
    path.write_text(path.read_text().replace('token = "', 'token = "x'))
    code, _, err = say(capsys, "run", "--config", path)
    assert (code, err.count("\n"), "token does not count [devices.token] - ask" in err) == (2, 1, True)


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "--config edge.toml" in capsys.readouterr().out


def test_erasure_of_a_running_device_takes_what_is_in_memory_too(fleet, tmp_path):
    (first,) = fleet.make()
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        answers = device.predict(rows(3))
        device.label(answers[0].id, 1)
        device.predict(rows(3))
        device.erase()
        device.flush()
        assert device.recent(10) == []
        assert device.status().num_labelled == 0
        assert np.isfinite(device.predict(rows())[0].confidence)


def test_what_example_level_privacy_has_cost_is_in_the_status(fleet, tmp_path, capsys):
    path = write_config(fleet, tmp_path, "a")
    folder = Path(read_edge(path).folder) / "a"
    folder.mkdir(parents=True)
    spent = ExampleLedger(folder / LEDGER).charge(
        ExampleCharge("c1", 0, 100, 5, 0.1, 1.2, 0.5, 10.0), ExampleBudget(0.0, 1e-5)
    )
    code, out, _ = say(capsys, "status", "--config", path)
    wanted = (
        f"example-level epsilon {spent:.3g} at delta 1e-05 for one training example (add_remove), 1 updates"
    )
    assert (code, wanted in out, "scope: what this device sends" in out) == (0, True, True)
    code, out, _ = say(capsys, "status", "--config", path, "--json")
    assert json.loads(out)["devices"][0]["example_privacy"]["epsilon"] == spent
    (folder / LEDGER).write_bytes(b"nothing" * 1000)
    code, out, _ = say(capsys, "status", "--config", path)
    assert (code, "cannot be used" in out) == (0, True)
