"""The signed list over gRPC with mutual TLS on loopback: streams, missing files, deadlines, and who asked."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from fedretrain.artifacts.identity import (
    FleetAuthority,
    create_key,
    load_key,
    read_identity,
    request_certificate,
)
from fedretrain.artifacts.trust.client import TrustClient
from fedretrain.artifacts.trust.words import Block, TrustError
from fedretrain.core.errors import DataError
from tests.trust_cases import NOW, TrustWorld, target

METHOD = "/test.Trust/Fetch"


class TrustServer(grpc.GenericRpcHandler):
    """Streams the repository's files to devices of the fleet; it is slow, or endless, on demand."""

    def __init__(self, world):
        self.world, self.devices, self.mood = world, set(), "well"

    def service(self, details):
        return grpc.unary_stream_rpc_method_handler(self.answer) if details.method == METHOD else None

    def answer(self, name, context):
        certificate = context.auth_context()["x509_pem_cert"][0]
        self.devices.add(read_identity(certificate).device)
        if self.mood == "endless":
            yield from itertools.repeat(bytes(10_000))
        while self.mood == "slow" and context.is_active():
            time.sleep(0.01)
        try:
            content = self.world.repository.read(name.decode())
        except (FileNotFoundError, DataError):
            context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        for start in range(0, len(content), 500):
            yield content[start : start + 500]


def fetcher(channel, deadline_s):
    """What a device's agent hands to `TrustClient`."""
    call = channel.unary_stream(METHOD)

    def fetch(name, _max_bytes):
        answer = call(name.encode(), timeout=deadline_s)
        try:
            yield from answer
        except grpc.RpcError as error:
            missing = error.code() is grpc.StatusCode.NOT_FOUND
            raise (FileNotFoundError(name) if missing else ConnectionError(str(error.code()))) from error
        finally:
            answer.cancel()

    return fetch


def keys_of(folder, name):
    create_key(folder / f"{name}.key")
    return (folder / f"{name}.key").read_bytes(), request_certificate(
        load_key(folder / f"{name}.key"), "pumps", name
    )


@pytest.fixture
def world(tmp_path):
    return TrustWorld(tmp_path)


@pytest.fixture
def channel_and_server(world, tmp_path):
    now = time.time()  # TLS reads the machine's clock
    authority = FleetAuthority(tmp_path / "ca", now=now)
    server_key, server_request = keys_of(tmp_path, "server")
    device_key, device_request = keys_of(tmp_path, "pump-17")
    own = authority.issue_server(server_request, ["localhost"], now=now)
    handler = TrustServer(world)
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    port = server.add_secure_port(
        "localhost:0",
        grpc.ssl_server_credentials([(server_key, own)], authority.certificate, require_client_auth=True),
    )
    server.start()
    mine = authority.issue_device(device_request, "pumps", "pump-17", now=now)
    credentials = grpc.ssl_channel_credentials(authority.certificate, device_key, mine)
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        yield channel, handler
    server.stop(None).wait()


def client_of(world, channel, deadline_s=20.0):
    return TrustClient(world.folder / "device", world.root, fetcher(channel, deadline_s))


def test_a_device_refreshes_and_is_known(world, channel_and_server):
    channel, handler = channel_and_server
    client = client_of(world, channel)
    client.refresh(NOW)
    assert world.installs(1, NOW, client) == target(1)
    assert handler.devices == {"pump-17"}


@pytest.mark.parametrize(
    ("mood", "deadline_s", "block"), [("slow", 0.3, Block.UNREACHABLE), ("endless", 20.0, Block.OVERSIZE)]
)
def test_a_slow_or_endless_server_is_refused_by_name(world, channel_and_server, mood, deadline_s, block):
    channel, handler = channel_and_server
    handler.mood = mood
    with pytest.raises(TrustError) as caught:
        client_of(world, channel, deadline_s).refresh(NOW)
    assert caught.value.block is block
    handler.mood = "well"
    client_of(world, channel).refresh(NOW)
