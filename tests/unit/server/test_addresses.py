"""An address is free, or becomes so, or is somebody's."""

from __future__ import annotations

import socket
import threading

import pytest

from fedretrain.core.errors import DataError
from fedretrain.server.addresses import check_free


@pytest.fixture
def taken():
    """A socket that listens as gRPC's do: it would share its address."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one


def _address(one):
    return "{}:{}".format(*one.getsockname())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_an_address_on_which_somebody_listens_is_named(taken, host):
    address = f"{host}:{taken.getsockname()[1]}"
    with pytest.raises(DataError, match=f"somebody else listens on {address}"):
        check_free(address, 0.0)


def test_one_that_becomes_free_is_waited_for(taken):
    address = _address(taken)
    threading.Timer(0.3, taken.close).start()
    check_free(address)
    check_free(address, 0.0)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "192.0.2.1:7443", "no-such-host.invalid:7443"])
def test_what_nobody_here_listens_on_is_free(address):
    check_free(address, 0.0)
