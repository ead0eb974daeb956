"""Which certificates of a server are a person's mistake, and which are not there yet."""

from __future__ import annotations

import socket
import ssl
import threading
import time

import pytest

from fedretrain.artifacts.identity import FleetAuthority, create_key, load_key, request_certificate
from fedretrain.core.clock import DAY_S
from fedretrain.edge.control import ControlError, enrol
from fedretrain.edge.unreached import mismatch
from fedretrain.wire.v1 import fleet_pb2 as pb


class Listener:
    """Shakes hands with whoever comes, with a certificate for some hosts."""

    def __init__(self, folder, hosts, issued_at):
        self.authority = FleetAuthority(folder / "authority", now=issued_at)
        create_key(folder / "server.key")
        request = request_certificate(load_key(folder / "server.key"), "p", "server")
        (folder / "server.pem").write_bytes(self.authority.issue_server(request, hosts, now=issued_at))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        try:
            connection, _ = self.socket.accept()
            with connection:
                self.context.wrap_socket(connection, server_side=True).close()
        except OSError:
            return  # it was not trusted, or is no longer wanted

    def close(self):
        self.thread.join(timeout=60)
        self.socket.close()


@pytest.fixture
def listening(tmp_path):
    made = []

    def listen(hosts=("127.0.0.1",), issued_at=None):
        made.append(Listener(tmp_path, hosts, time.time() if issued_at is None else issued_at))
        return made[-1]

    yield listen
    for one in made:
        one.close()


def test_a_certificate_that_is_sound_is_no_mistake(listening):
    server = listening()
    assert mismatch(server.address, server.authority.certificate, "ca.pem") is None


def test_a_certificate_of_another_authority_is_named_with_the_file(listening, tmp_path):
    other = FleetAuthority(tmp_path / "other", now=time.time())
    server = listening()
    said = str(mismatch(server.address, other.certificate, "ca.pem"))
    assert f"the certificate of {server.address} is not by the fleet's authority [ca.pem] - copy" in said


def test_a_certificate_for_another_host_names_where_hosts_are_written(listening):
    server = listening(hosts=("coordinator.example",))
    said = str(mismatch(server.address, server.authority.certificate, "ca.pem"))
    assert "is for another host [enrol]" in said
    assert "listen.hosts" in said


@pytest.mark.parametrize("days", [-20 * 365, 20 * 365])
def test_a_clock_that_is_not_set_yet_is_no_mistake(listening, days):
    server = listening(issued_at=time.time() + days * DAY_S)
    assert mismatch(server.address, server.authority.certificate, "ca.pem") is None


def test_nobody_there_is_no_mistake(tmp_path):
    authority = FleetAuthority(tmp_path / "authority", now=time.time())
    with socket.create_server(("127.0.0.1", 0)) as bound:
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    assert mismatch(address, authority.certificate, "ca.pem") is None


def test_an_enrolment_that_hangs_ends_with_the_agent(tmp_path):
    authority, ending = FleetAuthority(tmp_path / "authority", now=time.time()), threading.Event()
    ending.set()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ControlError, match="the agent ends"):
            enrol(address, authority.certificate, pb.EnrolRequest(), timeout_s=600.0, ending=ending)
