"""The examples in C and shell, run against a local API on a Unix socket."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fedretrain.edge.api import LocalApi
from fedretrain.edge.config import ApiConfig
from tests.api_cases import Agent

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "edge"


def run(words):
    return subprocess.run(words, check=False, capture_output=True, text=True)


@pytest.fixture
def api(tmp_path):
    with LocalApi(Agent(), ApiConfig(http="", socket=str(tmp_path / "edge.sock"))) as running:
        yield running


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")
def test_a_c_program_asks_for_a_prediction(api, tmp_path):
    program = tmp_path / "predict"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
    assert run(["gcc", *flags, "-o", program, EXAMPLES / "predict.c"]).returncode == 0
    done = run([program, api.config.socket, "0.5", "-1e3"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["name"] == "warm"
    assert api.agent.device().rows == [([[0.5, -1000.0]], None)]
    assert run([program, api.config.socket, "x"]).returncode == 2
    assert run([program, tmp_path / "nobody", "1"]).returncode == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_a_shell_script_asks_and_labels(api):
    words = ["sh", EXAMPLES / "predict.sh", api.config.socket, "[[1, 2]]"]
    done = run([*words, "warm"])
    assert (done.returncode, done.stdout) == (0, "p0 1 0.5\n"), done.stderr
    assert api.agent.device().labels == [("p0", 1, "user", 1.0)]
    done = run([*words, "cold"])
    assert done.returncode != 0
    assert "there is no class" in done.stdout + done.stderr
