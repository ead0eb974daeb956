"""The SuperLink under 50, 200 and 1,000 SuperNodes: what it answers, how fast, and where it saturates.

Rules of this file:
    * The SuperLink is the coordinator's own child: TLS, and only nodes that were admitted. The nodes are light: threads of this process that
      speak Flower's HTTP fleet API as a SuperNode does at rest, one connection and one key each, a pull every three seconds and a heartbeat
      every thirty. A thousand SuperNode processes would take 137 MB each.
    * It saturates where it answers less than `LEAST_ANSWERED` of what is asked, or the p99 of a pull is beyond the interval of pulls.
    * Where it does not in what was measured, the figure is an estimate from its CPU time for each node, and says so.
"""

from __future__ import annotations

import heapq
import ipaddress
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import psutil
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.fleet.driving import Shares
from benchmarks.fleet.office import free_ports
from fedretrain.artifacts.identity import (
    FleetAuthority,
    create_key,
    load_key,
    public_pem,
    request_certificate,
)
from fedretrain.server.superlink import SuperLink, SuperLinkConfig

if TYPE_CHECKING:
    from benchmarks.fleet.sizes import Size

PULL_S, HEARTBEAT_S = 3.0, 30.0
LEAST_ANSWERED = 0.95
_THREADS = 24


@dataclass(order=True)
class Node:
    """A light SuperNode: when it is due, and what it speaks with."""

    due_at: float
    number: int
    client: Any = field(compare=False)
    node: Any = field(compare=False, default=None)
    beat_at: float = field(compare=False, default=0.0)


class Nodes:
    """Nodes that pull and heart-beat in turn, by a few threads."""

    def __init__(self, link: SuperLink, keys: list[ec.EllipticCurvePrivateKey], authority: bytes) -> None:
        from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
        from flwr.supernode.fleet_http_client import FleetHttpClient
        from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

        self._keys = keys
        self._heap: list[Node] = []
        self._lock, self._ending = threading.Lock(), threading.Event()
        self.pulls: list[tuple[float, float]] = []
        self.failures: dict[str, int] = {}
        for number, key in enumerate(keys):
            client = FleetHttpClient.from_server_address(
                link.config.address,
                False,
                authority,
                [
                    RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                    NodeAuthHttpInterceptor(key, key.public_key()),
                ],
            )
            self._heap.append(Node(time.monotonic() + PULL_S * number / len(keys), number, client))
        heapq.heapify(self._heap)
        self._all = list(self._heap)
        self._threads = [
            threading.Thread(target=self._run, daemon=True) for _ in range(min(_THREADS, len(keys)))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads and the connections."""
        self._ending.set()
        for thread in self._threads:
            thread.join(60.0)
        for one in self._all:
            one.client.close()

    @property
    def num_active(self) -> int:
        """Nodes that the SuperLink knows."""
        return sum(one.node is not None for one in self._all)

    def _run(self) -> None:
        while not self._ending.is_set():
            with self._lock:
                one = heapq.heappop(self._heap) if self._heap else None
            if one is None:
                self._ending.wait(0.01)
                continue
            self._ending.wait(max(0.0, one.due_at - time.monotonic()))
            try:
                self._visit(one)
            except httpx.HTTPError as error:
                name = type(error).__name__
                self.failures[name] = self.failures.get(name, 0) + 1
            # A node that was late is not late again: what could not be asked is what could not be answered.
            one.due_at = max(one.due_at + PULL_S, time.monotonic())
            with self._lock:
                heapq.heappush(self._heap, one)

    def _visit(self, one: Node) -> None:
        from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
        from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
        from flwr.proto.node_pb2 import Node as NodeMessage
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        if one.node is None:
            key = public_key_to_bytes(self._keys[one.number].public_key())
            reply = one.client.ActivateNode(
                ActivateNodeRequest(public_key=key, heartbeat_interval=HEARTBEAT_S)
            )
            one.node, one.beat_at = NodeMessage(node_id=reply.node_id), time.monotonic()
        elif time.monotonic() - one.beat_at >= HEARTBEAT_S:
            one.beat_at = time.monotonic()
            one.client.SendNodeHeartbeat(
                SendNodeHeartbeatRequest(node=one.node, heartbeat_interval=HEARTBEAT_S)
            )
        begun = time.perf_counter()
        one.client.PullMessages(PullMessagesRequest(node=one.node))
        self.pulls.append((time.monotonic(), time.perf_counter() - begun))


def measure(size: Size) -> list[dict[str, Any]]:
    """A line for each number of nodes, then where it saturates."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        authority, config = _keys(folder)
        link = SuperLink(config, folder / "superlink")
        try:
            link.ensure(time.monotonic())
            link.wait_until_healthy()
            lines = [_level(link, authority, count, size) for count in size.num_nodes]
        finally:
            link.stop()
    return [*lines, _saturation(lines)]


def _keys(folder: Path) -> tuple[bytes, SuperLinkConfig]:
    """The authority (PEM) and a SuperLink's keys of it."""
    authority = FleetAuthority(folder / "ca", now=time.time())
    create_key(folder / "link.key")
    request = request_certificate(load_key(folder / "link.key"), "bench", "superlink")
    hosts = [str(ipaddress.IPv4Address("127.0.0.1"))]
    (folder / "link.pem").write_bytes(authority.issue_server(request, hosts, now=time.time()))
    (folder / "root.pem").write_bytes(authority.certificate)
    config = SuperLinkConfig(
        port=free_ports(1)[0],
        certificate=folder / "link.pem",
        private_key=folder / "link.key",
        root_certificates=folder / "root.pem",
    )
    return authority.certificate, config


def _level(link: SuperLink, authority: bytes, count: int, size: Size) -> dict[str, Any]:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(count)]
    begun = time.monotonic()
    link.admit(public_pem(key.public_key()).encode() for key in keys)
    admitted_s = time.monotonic() - begun
    nodes = Nodes(link, keys, authority)
    try:
        until = time.monotonic() + 120.0
        while nodes.num_active < 0.98 * count and time.monotonic() < until:
            time.sleep(0.5)
        connected_s = time.monotonic() - begun - admitted_s
        process = psutil.Process(link.child.pid)
        shares, first = Shares(_cpu_s(process), time.process_time()), time.monotonic()
        time.sleep(size.ramp_s)
        last = time.monotonic()
        used = shares.until(_cpu_s(process), time.process_time())
    finally:
        nodes.stop()
    seconds = [took for at, took in nodes.pulls if first <= at < last]
    answered = len(seconds) / (count / PULL_S * (last - first))
    p99_ms = 1e3 * float(np.percentile(seconds, 99)) if seconds else float("inf")
    return {
        "case": f"superlink_{count}",
        "answered_over_asked": round(answered, 3),
        "p99_over_interval": round(p99_ms / 1e3 / PULL_S, 3),
        "saturated": bool(answered < LEAST_ANSWERED or p99_ms > 1e3 * PULL_S),
        "num_nodes": count,
        "num_active": nodes.num_active,
        "pulls_per_s": round(len(seconds) / (last - first), 1),
        "p50_ms": round(1e3 * float(np.median(seconds)), 1) if seconds else None,
        "p99_ms": round(p99_ms, 1),
        "superlink_cores": used["coordinator_cores"],
        "load_generator_cores": used["load_generator_cores"],
        "others_cores": used["others_cores"],
        "machine_load": used["machine_load"],
        "superlink_mib": round(process.memory_info().rss / 2**20),
        "admit_s": round(admitted_s, 1),
        "connect_s": round(connected_s, 1),
        "failed_calls": nodes.failures,
    }


def _saturation(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The first number of nodes that is too many, and what the CPU time of the SuperLink for a node allows on one core."""
    over = [line["num_nodes"] for line in lines if line["saturated"]]
    sound = [line for line in lines if not line["saturated"]] or lines
    largest = sound[-1]
    per_pull_s = largest["superlink_cores"] / max(largest["pulls_per_s"], 1e-9)
    return {
        "case": "superlink_saturation",
        "saturated_at_nodes": over[0] if over else None,
        "most_nodes_sustained": largest["num_nodes"] if not largest["saturated"] else 0,
        "nodes_for_one_core_estimated": round(PULL_S / per_pull_s) if per_pull_s else None,
        "superlink_cpu_ms_per_pull": round(1e3 * per_pull_s, 2),
    }


def _cpu_s(process: psutil.Process) -> float:
    """Of the SuperLink and what it started."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total
