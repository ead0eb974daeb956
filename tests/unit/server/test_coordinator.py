"""Who holds the lease how long, and what becomes of gateways that end."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

from sqlalchemy import select

from fedretrain.rollout.safety import SafetyCommand, SafetyOrder
from fedretrain.server import coordinator as module
from fedretrain.server.config import Population, ServerConfig, Watching
from fedretrain.server.coordinator import LEASE, LEASE_S, Coordinator
from fedretrain.server.event_log import EventLog
from fedretrain.server.gateway_process import TOLD
from fedretrain.server.orders import give
from fedretrain.server.tables import leases


def test_a_long_turn_does_not_lose_the_lease(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEASE_S", 0.3)
    config = ServerConfig(str(tmp_path), {"p": Population("-", watching=Watching(tick_s=0.01))})
    now = [1000.0]
    log, stores = EventLog(engine), SimpleNamespace()
    made = Coordinator(config, log, SimpleNamespace(), stores, lambda: now[0])

    def expires_at():
        with engine.connect() as connection:
            return connection.scalar(select(leases.c.expires_at))

    def turn():
        made._fence = log.acquire(LEASE, made._holder, now=now[0], ttl_s=0.3)
        before, now[0] = expires_at(), now[0] + 0.2
        until = time.monotonic() + 30.0
        while expires_at() == before and time.monotonic() < until:
            time.sleep(0.05)
        seen.append((expires_at() > before, log.acquire(LEASE, "another", now=before + 0.1, ttl_s=1.0)))
        made._stop.set()

    seen: list[tuple[bool, object]] = []
    monkeypatch.setattr(made, "_turn", turn)
    asyncio.run(made._lead())
    made._writer.close()
    assert seen[0] == (True, None)


def test_an_order_brings_the_next_turn_forward(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "Steward", lambda _config, log, _keys, _stores, fence, _clock: Deciding(log, fence)
    )
    config = ServerConfig(str(tmp_path), {"p": Population("-")})
    made = Coordinator(config, EventLog(engine), SimpleNamespace(), SimpleNamespace())
    made._turn()  # it leads
    give(EventLog(engine), "p", SafetyOrder(SafetyCommand.ENTER, "anna"), 1.0)
    begun = time.monotonic()
    assert not asyncio.run(made._rest(60.0))
    assert time.monotonic() - begun < 30.0
    assert not made._is_ordered()  # it is the turn's from now on
    made._writer.close()


class Deciding:
    """A leader's work, which may take long: it reads the stream, thinks, and appends what it concluded."""

    def __init__(self, log, fence):
        self._log, self._fence = log, fence
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.trust_version = 0

    def turn(self, now):
        read = self._log.head("decisions").counter
        self.begun.set()
        assert self.go_on.wait(timeout=30)
        self._log.append("decisions", [{"token": self._fence.token}], at=now, fence=self._fence, after=read)

    def close(self):
        pass


def test_of_two_coordinators_at_once_one_decides(engine, tmp_path, monkeypatch):
    """The first one hangs in a turn until its lease is over; the second decides; the first finds that out, and resigns."""
    monkeypatch.setattr(
        module, "Steward", lambda _config, log, _keys, _stores, fence, _clock: Deciding(log, fence)
    )
    config = ServerConfig(str(tmp_path), {"p": Population("-")})
    now = [1000.0]
    one, other = (
        Coordinator(config, EventLog(engine), SimpleNamespace(), SimpleNamespace(), lambda: now[0])
        for _ in range(2)
    )
    one._turn()
    other._turn()
    assert other._steward is None
    hanging = one._steward
    hanging.begun.clear()
    hanging.go_on.clear()
    turn = threading.Thread(target=one._turn)
    turn.start()
    assert hanging.begun.wait(timeout=30)
    now[0] += LEASE_S + 1.0
    other._turn()
    hanging.go_on.set()
    turn.join(timeout=30)
    assert one._steward is None
    assert [entry.record["token"] for entry in EventLog(engine).read("decisions")] == [1, 2]
    one._turn()
    assert one._steward is None
    for each in (one, other):
        each._writer.close()


class Gateway:
    """A child that ends with the statuses that it is given, one after the other; then it runs, and calls `stop_all`."""

    def __init__(self, *statuses):
        self.statuses, self.num_starts, self.is_stopped = list(statuses), 0, False
        self.stop_all = None

    @property
    def exit_status(self):
        return self.statuses[0] if self.num_starts and self.statuses else None

    def ensure(self, _now):
        if self.num_starts and not self.statuses:
            return
        if self.num_starts:
            self.statuses.pop(0)
            if not self.statuses:
                self.stop_all()
        self.num_starts += 1

    def stop(self):
        self.is_stopped = True


def _kept(engine, tmp_path, monkeypatch, gateways):
    """The exit status of a coordinator that keeps gateways and never leads."""
    monkeypatch.setattr(module, "_KEEP_S", 0.001)
    config = ServerConfig(str(tmp_path), {"p": Population("-")})
    parts = SimpleNamespace(), SimpleNamespace(), lambda: 1000.0
    made = Coordinator(config, EventLog(engine), *parts, gateways)
    monkeypatch.setattr(made, "_turn", lambda: None)

    for gateway in gateways:
        gateway.stop_all = made.stop
    return asyncio.run(asyncio.wait_for(made.run(), 60.0))


def test_a_gateway_that_dies_is_started_again_and_all_end_with_the_coordinator(engine, tmp_path, monkeypatch):
    gateways = Gateway(-9, 1), Gateway()
    assert _kept(engine, tmp_path, monkeypatch, gateways) == 0
    assert [one.num_starts for one in gateways] == [3, 1]
    assert all(one.is_stopped for one in gateways)


def test_a_gateway_that_says_why_it_cannot_run_ends_the_coordinator(engine, tmp_path, monkeypatch):
    gateways = Gateway(), Gateway(TOLD)
    assert _kept(engine, tmp_path, monkeypatch, gateways) == TOLD
    assert [one.num_starts for one in gateways] == [1, 1]
    assert all(one.is_stopped for one in gateways)
