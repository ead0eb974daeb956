"""Which files of packages leave the store, and who holds the lease how long."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from fedretrain.artifacts.package import read_manifest, references, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.coordinator.policy import TelemetryMode
from fedretrain.coordinator.policy_book import Answered
from fedretrain.coordinator.roles import Roles
from fedretrain.rollout.evidence import Answer
from fedretrain.server import coordinator as module
from fedretrain.server import policies
from fedretrain.server.config import Population, ServerConfig, Watching
from fedretrain.server.coordinator import LEASE, LEASE_S, Coordinator, _files_of, _slot_s
from fedretrain.server.event_log import EventLog
from fedretrain.server.policies import Policies
from fedretrain.server.tables import leases
from fedretrain.wire.control import NO_TELEMETRY
from tests.package_cases import ABOUT, contents, weights


def test_a_damaged_manifest_keeps_no_other_package_from_devices(tmp_path):
    store = ContentStore(tmp_path / "packages")
    sound = write_package(store, contents(), **ABOUT)
    broken = write_package(store, contents(weights(1)), **{**ABOUT, "version": ABOUT["version"] + 1})
    whole = (tmp_path / "packages" / broken).read_bytes()
    (tmp_path / "packages" / broken).write_bytes(b"damaged")
    assert _files_of(store, sound) == {
        sound,
        *(one.digest for one in references(read_manifest(store, sound))),
    }
    assert _files_of(store, broken) == set()
    (tmp_path / "packages" / broken).write_bytes(whole)
    assert broken in _files_of(store, broken)


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


@pytest.mark.parametrize(("telemetry", "slot_s"), [("operational", 60.0), ("off", NO_TELEMETRY)])
def test_devices_are_told_to_report_nothing_where_the_policy_wants_no_telemetry(
    engine, tmp_path, telemetry, slot_s
):
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"name: mine\ntelemetry: '{telemetry}'\n")
    log, one = EventLog(engine), Population(str(policy), watching=Watching(slot_s=60.0))
    assert _slot_s(log, "p", one) == slot_s
    made = Coordinator(ServerConfig(str(tmp_path), {"p": one}), log, SimpleNamespace(), SimpleNamespace())
    file = Policies(log).open("p", str(policy), Roles(), None, 1.0)
    made._tell_slots()
    other = "off" if telemetry == "operational" else "operational"
    policy.write_text(f"name: mine\ntelemetry: '{other}'\n")
    Policies(log).open("p", str(policy), Roles(), None, 2.0)  # it waits for two people
    made._tell_slots()
    assert made._slot_s == {"p": slot_s}
    changed = replace(file, telemetry=TelemetryMode(other))
    for by in ("ada", "bob"):
        policies.answer(log, "p", Answered(changed.digest, by, Answer.GRANTED), 3.0)
    policies.keep(log, "p", changed, Roles(), None, 3.0)
    made._tell_slots()
    assert {slot_s, made._slot_s["p"]} == {60.0, NO_TELEMETRY}
    made._writer.close()
