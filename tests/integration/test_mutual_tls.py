"""Real TLS over loopback: whom a server lets in that trusts the fleet's authority, and which server a device believes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time

import pytest

from fedretrain.artifacts.identity import (
    FleetAuthority,
    create_key,
    load_key,
    read_identity,
    request_certificate,
)

NOW = time.time()  # the TLS library reads the machine's clock
DAY = 86_400.0


class Party:
    """A key file and certificates for it."""

    def __init__(self, folder, name):
        self.folder = folder
        self.key = folder / f"{name}.key"
        create_key(self.key)
        self.request = request_certificate(load_key(self.key), "pumps", name)

    def context(self, side, trusted, certificate):
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=trusted.decode())
        if certificate is not None:
            path = self.folder / "certificate.pem"
            path.write_bytes(certificate)
            context.load_cert_chain(path, self.key)
        return context


class World:
    def __init__(self, folder):
        self.folder = folder
        self.authority = FleetAuthority(folder / "ca", now=NOW)
        self.stranger = FleetAuthority(folder / "other", now=NOW)
        self.server, self.device = Party(folder, "server"), Party(folder, "pump-17")

    def meet(self, device_certificate, *, server_certificate=None, trusts=None, host="localhost"):
        """One connection: what the server reads out of the device's certificate, and what went wrong on each side."""
        own = server_certificate or self.authority.issue_server(
            self.server.request, ["localhost", "127.0.0.1"], now=NOW
        )
        server_side = self.server.context(ssl.PROTOCOL_TLS_SERVER, self.authority.certificate, own)
        device_side = self.device.context(
            ssl.PROTOCOL_TLS_CLIENT, trusts or self.authority.certificate, device_certificate
        )
        seen = {}
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(20)
            thread = threading.Thread(target=self.serve, args=(listener, server_side, seen))
            thread.start()
            try:
                with (
                    socket.create_connection(listener.getsockname(), timeout=20) as plain,
                    device_side.wrap_socket(plain, server_hostname=host) as channel,
                ):
                    if answer := channel.recv(100):  # with TLS 1.3 a refusal arrives with the first read
                        seen["answer"] = answer
            except (ssl.SSLError, ConnectionError) as error:
                seen["device"] = error
            finally:
                thread.join()
        return seen

    @staticmethod
    def serve(listener, context, seen):
        try:
            plain, _ = listener.accept()
            with contextlib.closing(plain), context.wrap_socket(plain, server_side=True) as channel:
                certificate = ssl.DER_cert_to_PEM_cert(channel.getpeercert(binary_form=True)).encode()
                seen["identity"] = read_identity(certificate)
                channel.sendall(b"welcome")
        except (ssl.SSLError, ConnectionError) as error:
            seen["server"] = error

    def issue(self, authority=None, **how):
        return (authority or self.authority).issue_device(
            self.device.request, "pumps", "pump-17", **{"now": NOW, **how}
        )


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_device_of_the_fleet_is_let_in_and_known_by_name(world, host):
    certificate = world.issue()
    seen = world.meet(certificate, host=host)
    assert seen == {"identity": read_identity(certificate), "answer": b"welcome"}


def test_a_device_of_another_authority_is_refused(world):
    seen = world.meet(world.issue(world.stranger))
    assert "identity" not in seen
    assert "answer" not in seen
    assert "certificate verify failed" in str(seen["server"])


def test_a_device_without_a_certificate_is_refused(world):
    seen = world.meet(None)
    assert "answer" not in seen
    assert "peer did not return a certificate" in str(seen["server"])


@pytest.mark.parametrize("how", [{"lifetime_s": -1.0}, {"now": NOW + 2 * DAY}])
def test_a_certificate_that_has_expired_or_not_begun_is_refused(world, how):
    seen = world.meet(world.issue(**how))
    assert "answer" not in seen
    assert "certificate verify failed" in str(seen["server"])


def test_a_server_certificate_lets_no_device_in(world):
    seen = world.meet(world.authority.issue_server(world.device.request, ["localhost"], now=NOW))
    assert "answer" not in seen
    assert "certificate verify failed" in str(seen["server"])


def test_a_device_does_not_talk_to_a_server_of_another_authority(world):
    seen = world.meet(world.issue(), trusts=world.stranger.certificate)
    assert "answer" not in seen
    assert "certificate verify failed" in str(seen["device"])


def test_a_device_does_not_talk_to_another_device_that_plays_the_server(world):
    played = world.authority.issue_device(world.server.request, "pumps", "localhost", now=NOW)
    seen = world.meet(world.issue(), server_certificate=played)
    assert "answer" not in seen
    assert "certificate verify failed" in str(seen["device"])


def test_a_device_does_not_talk_to_a_server_of_another_name(world):
    seen = world.meet(world.issue(), host="link.example")
    assert "answer" not in seen
    assert "Hostname mismatch" in str(seen["device"])
