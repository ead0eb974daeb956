"""The demo's ports are free ones: two demos may run at once."""

from __future__ import annotations

import contextlib
import socket

import pytest

from fedretrain.core.errors import FedretrainError
from fedretrain.demo import run


def test_agents_get_free_ports_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    first = run._free_run(4)
    with contextlib.ExitStack() as held:
        for port in range(first, first + 4):
            held.enter_context(socket.socket()).bind(("127.0.0.1", port))
        offered = iter([first, first - 2, run._free_run(4)])  # another demo has those of the first two
        monkeypatch.setattr(run, "_free_ports", lambda _count: (next(offered),))
        found = run._free_run(4)
        assert not set(range(found, found + 4)) & set(range(first, first + 4))
        monkeypatch.setattr(run, "_free_ports", lambda _count: (first,))
        with pytest.raises(FedretrainError, match="no 4 free ports"):
            run._free_run(4)


def test_a_row_that_ends_beyond_the_last_port_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_free_ports", lambda _count: (2**16 - 1,))
    with pytest.raises(FedretrainError, match="no 4 free ports"):
        run._free_run(4)
