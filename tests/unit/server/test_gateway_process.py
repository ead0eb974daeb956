"""Which files of packages leave the store, and what devices are told of telemetry."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fedretrain.artifacts.package import read_manifest, references, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.coordinator.policy import TelemetryMode
from fedretrain.coordinator.policy_book import Answered
from fedretrain.coordinator.roles import Roles
from fedretrain.rollout.evidence import Answer
from fedretrain.server import policies
from fedretrain.server.config import Population, ServerConfig, Watching
from fedretrain.server.event_log import EventLog
from fedretrain.server.gateway_process import GatewayProcess, _files_of, _slot_s
from fedretrain.server.people import OPEN
from fedretrain.server.policies import Policies
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


@pytest.mark.parametrize(("telemetry", "slot_s"), [("operational", 60.0), ("off", NO_TELEMETRY)])
def test_devices_are_told_to_report_nothing_where_the_policy_wants_no_telemetry(
    engine, tmp_path, telemetry, slot_s
):
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"name: mine\ntelemetry: '{telemetry}'\n")
    log, one = EventLog(engine), Population(str(policy), watching=Watching(slot_s=60.0))
    assert _slot_s(log, "p", one) == slot_s
    made = GatewayProcess(ServerConfig(str(tmp_path), {"p": one}), log, SimpleNamespace(), SimpleNamespace())
    file = Policies(log, {"p": OPEN}).open("p", str(policy), Roles(), None, 1.0)
    made._tell_slots()
    other = "off" if telemetry == "operational" else "operational"
    policy.write_text(f"name: mine\ntelemetry: '{other}'\n")
    Policies(log, {"p": OPEN}).open("p", str(policy), Roles(), None, 2.0)  # it waits for two people
    made._tell_slots()
    assert made._slot_s == {"p": slot_s}
    changed = replace(file, telemetry=TelemetryMode(other))
    for by in ("ada", "bob"):
        policies.answer(log, "p", Answered(changed.digest, by, Answer.GRANTED), 3.0)
    policies.keep(log, "p", changed, Roles(), OPEN, None, 3.0)
    made._tell_slots()
    assert {slot_s, made._slot_s["p"]} == {60.0, NO_TELEMETRY}
    made._writer.close()
