"""``fedretrain server`` as a process: a gateway that cannot run ends it, and says why."""

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
    said = f"fedretrain: cannot listen on 127.0.0.1:{port} [server] - choose a free address"
    assert ended.stderr.splitlines()[-1] == said
