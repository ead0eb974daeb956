"""``fedretrain server`` as a process: what keeps it from serving ends it, and is said."""

from __future__ import annotations

import socket
import subprocess
import sys

from tests.flower_cases import free_port
from tests.plant_cases import SERVER
from tests.server_cases import write_office


def test_a_port_in_use_ends_the_server_with_what_to_do(tmp_path):
    write_office(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = SERVER.format(control=port, public=port, enrol=free_port(), flower=free_port())
        path = tmp_path / "server.toml"
        path.write_text(text)
        words = [sys.executable, "-m", "fedretrain", "server", "--config", str(path)]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    said = (
        f"fedretrain: somebody else listens on 127.0.0.1:{port} [server] - end that, or choose a free address"
    )
    assert ended.stderr.splitlines()[-1] == said


def test_an_address_that_is_not_this_machine_s_is_said_by_the_gateway_and_ends_the_server(tmp_path):
    write_office(tmp_path)
    text = SERVER.format(control=free_port(), public=free_port(), enrol=free_port(), flower=free_port())
    path = tmp_path / "server.toml"
    path.write_text(text.replace('enrol = "127.0.0.1', 'enrol = "192.0.2.1'))
    words = [sys.executable, "-m", "fedretrain", "server", "--config", str(path)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("fedretrain: cannot listen on 192.0.2.1:")
    assert last.endswith("[server] - choose a free address")
