"""``fedretrain server``: what keeps it from serving ends it, and is said."""

from __future__ import annotations

import socket
import subprocess
import sys
from functools import partial

from fedretrain.cli import main
from fedretrain.server import serving
from fedretrain.server.addresses import check_free
from tests.flower_cases import free_port
from tests.plant_cases import SERVER
from tests.server_cases import write_office


def _written(folder, **ports):
    """A ``server.toml`` with its files; ports that are not given are free."""
    write_office(folder)
    given = {name: free_port() for name in ("control", "public", "enrol", "flower")} | ports
    path = folder / "server.toml"
    path.write_text(SERVER.format(**given))
    return path


def test_an_address_on_which_somebody_listens_ends_it_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(serving, "check_free", partial(check_free, patience_s=0.0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["server", "--config", str(_written(tmp_path, control=port))]) == 2
    said = (
        f"fedretrain: somebody else listens on 127.0.0.1:{port} [server] - end that, or choose a free address"
    )
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_an_address_that_is_not_this_machine_s_is_said_by_the_gateway_and_ends_it(tmp_path):
    path = _written(tmp_path)
    path.write_text(path.read_text().replace('enrol = "127.0.0.1', 'enrol = "192.0.2.1'))
    words = [sys.executable, "-m", "fedretrain", "server", "--config", str(path)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    # Not the last line always: another thread may log that it leads.
    (said,) = (line for line in ended.stderr.splitlines() if line.startswith("fedretrain: "))
    assert said.startswith("fedretrain: cannot listen on 192.0.2.1:")
    assert said.endswith("[server] - choose a free address")
