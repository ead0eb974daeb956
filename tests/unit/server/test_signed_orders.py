"""Signed orders as people type them: keys, what is refused before it is written, and what `verify` finds ever after."""

from __future__ import annotations

import json
import stat
import time

import pytest

from fedretrain.artifacts.identity import FleetAuthority
from fedretrain.artifacts.signed_order import public_half
from fedretrain.artifacts.trust.keys import load_key
from fedretrain.cli import parser
from fedretrain.coordinator.cycle import CycleEvent, Refused
from fedretrain.coordinator.policy_book import Answered
from fedretrain.coordinator.roles import Roles
from fedretrain.core.build import plain
from fedretrain.rollout.evidence import Answer
from fedretrain.rollout.quarantine import QuarantineEvent, QuarantineEventKind, Subject
from fedretrain.server import fleet, labelling, memory, orders, policies
from fedretrain.server.command_line import KEY
from fedretrain.server.commands import ROLLOUT_ORDERS
from fedretrain.server.config import read_server
from fedretrain.server.desk import Desk
from fedretrain.server.examples import leaves
from fedretrain.server.orders import Signer, recorded
from tests.server_cases import Typed, lines
from tests.signing_cases import rewrite

STREAM = orders.stream("pumps")
LOOSER = {"rollout": {"alpha": 0.2}, "gate": {"alpha": 0.2}}


class Signing:
    """An office in which anna and ben have keys and others do not."""

    def __init__(self, office):
        self.office = office
        for name in ("anna", "ben"):
            self.give_key(name)
        FleetAuthority(office.folder / "state" / "authority", now=time.time())
        assert office.on("models", "import", "--rounds", "1").status == 0
        office.begin()
        self.log = office.log()

    def give_key(self, name, former=""):
        """A new key for somebody, and its lines in server.toml."""
        made = self.office.type("people", "key", name, "--out", self.file(name))
        assert (made.status, made.err) == (0, "")
        config = self.office.config
        config.write_text(f"{config.read_text()}\n{made.out}{former}")

    def file(self, name):
        return self.office.folder / f"{name}.key"

    def on(self, *words, by="anna", key="anna") -> Typed:
        given = ("--key", self.file(key)) if key else ()
        return self.office.on(*words, "--by", by, *given)

    def signer(self, name):
        return Signer(load_key(self.file(name)), read_server(self.office.config).notary_of("pumps").fleet)

    def forge(self, stream, kind, body, signer=None, at=None):
        """Write a record as somebody does who has the database."""
        at = time.time() if at is None else at
        self.log.append(stream, [recorded(kind, body, "pumps", at, signer)], at=at)

    def keep_out(self, subject, number):
        """A version or a device is in quarantine, as after somebody's order."""
        event = QuarantineEvent(QuarantineEventKind.ENTERED, subject, number, 1e9, "wrong units", by="ben")
        self.log.append(memory.stream("pumps"), [CycleEvent(1e9, event).to_record()], at=1e9)

    def take(self):
        """What the coordinator would write when it takes up what was ordered."""
        told = orders.gather(
            self.log.read(STREAM), 0, read_server(self.office.config).notary_of("pumps"), time.time()
        )
        events = [CycleEvent(2.0, one).to_record() for one in told.refused]
        note = {"kind": memory.ORDERS, "at": 2.0, "through": told.through, "nonces": sorted(told.nonces)}
        self.log.append(memory.stream("pumps"), [*events, note], at=2.0)
        return told

    def wrong(self):
        return self.office.on("verify", "--json").json["wrong"]

    def checked(self):
        return self.office.on("verify", "--json").json["checked"]["signatures"]


@pytest.fixture
def signing(office, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    made = Signing(office)
    yield made
    made.log.engine.dispose()


def _refused(said, named):
    (line,) = lines(said.err)
    assert (said.status, named in line) == (2, True), line


def test_a_key_is_a_new_file_for_its_owner_alone_and_a_line_for_server_toml(office):
    file = office.folder / "anna.key"
    said = office.type("people", "key", "anna b", "--out", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert said.out == f'[people."anna b"]\nkey = "{public_half(load_key(file))}"\n'
    before = file.read_bytes()
    _refused(office.type("people", "key", "anna", "--out", file), "there is such a file")
    assert file.read_bytes() == before
    office.config.write_text(f"{office.config.read_text()}\n{said.out}")
    assert read_server(office.config).people["anna b"].key == public_half(load_key(file))


def test_who_has_a_key_signs_and_who_has_none_is_believed(signing):
    _refused(signing.on("retrain", key=""), "what anna orders must be signed [--by] - give --key FILE")
    _refused(signing.on("retrain", key="ben"), "a key that is not anna's")
    _refused(signing.on("retrain", by="carl"), "server.toml has no key of carl")
    assert signing.log.head(STREAM).counter == 0
    assert signing.on("retrain").status == 0
    assert signing.on("retrain", by="carl", key="").status == 0
    first, second = (entry.record for entry in signing.log.read(STREAM))
    assert first["signed"]["key"] == public_half(load_key(signing.file("anna")))
    assert "signed" not in second
    assert [one.by for one in signing.take().cycle] == ["anna", "carl"]


def test_the_key_may_be_named_by_the_environment(signing, monkeypatch):
    monkeypatch.setenv(KEY, str(signing.file("anna")))
    assert signing.on("safe-mode", "on", key="").status == 0
    monkeypatch.setenv(KEY, str(signing.file("ben")))
    _refused(signing.on("safe-mode", "on", key=""), "not anna's")
    assert signing.on("safe-mode", "on").status == 0  # the flag goes before


def test_a_key_that_others_may_read_is_refused(signing):
    signing.file("anna").chmod(0o644)
    _refused(signing.on("retrain"), "others may have read it")
    _refused(signing.on("retrain", key="nobody"), "cannot be read")


def test_a_fleet_without_an_authority_cannot_be_signed_for(signing):
    (signing.office.folder / "state" / "authority" / "ca.pem").unlink()
    _refused(signing.on("retrain"), "start the coordinator once")


EVERY = [
    ("retrain",),
    ("safe-mode", "on"),
    ("safe-mode", "off"),
    ("kill-switch", "stop", "training"),
    ("models", "withdraw", "1"),
    ("models", "propose", "--weights", "new.safetensors"),
    ("rollout", "start", "1"),
    *(("rollout", word) for word in ("approve", "refuse", *ROLLOUT_ORDERS)),
    ("policy", "approve"),
    ("policy", "refuse"),
    ("incident", "resubmit", "9"),
    ("incident", "discard", "9"),
    *(("devices", word, "pump-1") for word in ("quarantine", "release", "revoke", "retire")),
    ("labels", "import", "later.csv"),
    ("baseline", "collect"),
]


def test_every_command_with_a_name_behind_it_is_asked_for_a_key():
    named = {words for words, made in leaves(parser("")) if "--by BY" in made.format_help()}
    assert {next(one for one in named if " ".join(words).startswith(one)) for words in EVERY} == named


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_no_order_of_who_has_a_key_goes_without_it(signing, monkeypatch, words):
    signing.office.ask("ben")
    signing.keep_out(Subject.VERSION, 9)
    signing.keep_out(Subject.DEVICE, 0)
    signing.office.enrol("pump-1")
    monkeypatch.chdir(signing.office.folder)
    for name in ("new.safetensors", "later.csv"):
        (signing.office.folder / name).write_bytes(b"device,prediction,label\n")
    more = ("--reason", "x")
    before = {stream: signing.log.head(stream).counter for stream in signing.log.streams()}
    said = signing.on(*words, *more, key="")
    _refused(said, "must be signed")
    assert {stream: signing.log.head(stream).counter for stream in signing.log.streams()} == before


def test_a_revoked_device_and_brought_labels_are_signed_for_the_record(signing):
    signing.office.enrol("pump-1")
    assert signing.on("devices", "revoke", "pump-1", "--reason", "stolen").status == 0
    (signing.office.folder / "later.csv").write_text("device,prediction,label\npump-1,7,0\n")
    assert signing.on("labels", "import", signing.office.folder / "later.csv", "--reason", "may").status == 0
    assert signing.wrong() == []
    assert signing.checked() == "2 good, 0 refused when they came"
    (entry,) = signing.log.read(labelling.stream("pumps"))
    other = {**entry.record, "body": {**entry.record["body"], "file": "0" * 64}}
    rewrite(signing.log, labelling.stream("pumps"), 1, json.dumps(other))
    signing.forge(fleet.stream("pumps"), "device", {"device": "pump-1", "standing": "retired", "by": "anna"})
    assert signing.wrong() == [
        "population/pumps/devices: record 2: anna has not signed it, as they did before",
        "population/pumps/labels: record 1: it is not what anna signed",
    ]


def test_what_was_forged_is_refused_once_and_is_no_damage_ever_after(signing):
    signing.on("retrain", "--reason", "new season")
    (good,) = signing.log.read(STREAM)
    signing.forge(STREAM, "retrain", {"by": "anna", "reason": "forged"})
    signing.log.append(STREAM, [good.record], at=time.time())
    told = signing.take()
    assert [one.reason for one in told.cycle] == ["new season"]
    assert told.refused == (
        Refused("retrain", "anna", "what anna orders must be signed", 2),
        Refused("retrain", "anna", "it was given before", 3),
    )
    assert signing.wrong() == []
    assert signing.checked() == "1 good, 2 refused when they came"
    told = signing.office.on("log", "--orders")
    assert [line.partition(" REFUSED: ")[2] for line in lines(told.out)] == [
        "",
        "what anna orders must be signed",
        "it was given before",
    ]
    key = public_half(load_key(signing.file("anna")))
    assert f", key {key[:12]}) retrain new season" in told.out
    assert [one["key"] for one in signing.office.on("log", "--orders", "--json").json] == [key, "", key]
    assert "refused" in signing.office.on("log").out


def test_a_signed_order_that_is_edited_afterwards_is_found_though_the_chain_was_made_anew(signing):
    signing.on("retrain", "--reason", "new season")
    signing.on("retrain", "--reason", "again")
    signing.take()
    assert signing.wrong() == []
    (first, _) = signing.log.read(STREAM)
    nonce = first.record["signed"]["nonce"]
    edited = {**first.record, "body": {"by": "anna", "reason": "I never said so"}}
    rewrite(signing.log, STREAM, 1, json.dumps(edited))
    assert signing.wrong() == [f"{STREAM}: record 1: it is not what anna signed"]
    rewrite(signing.log, STREAM, 1, json.dumps({k: v for k, v in edited.items() if k != "signed"}))
    assert signing.wrong() == [f"{STREAM}: the signed order {nonce} was followed, and is gone"]


def test_a_replaced_key_signs_nothing_new_and_what_it_signed_stays_good(signing):
    signing.on("retrain")
    signing.take()
    old, config = public_half(load_key(signing.file("anna"))), signing.office.config
    signing.file("anna").rename(signing.file("before"))
    new = signing.office.type("people", "key", "anna", "--out", signing.file("anna"), "--json").json["key"]
    config.write_text(config.read_text().replace(f'key = "{old}"', f'key = "{new}"'))
    (line,) = signing.wrong()
    assert f"no key {old} that it is or was anna's" in line
    config.write_text(config.read_text().replace(f'key = "{new}"', f'key = "{new}"\nformer = ["{old}"]'))
    assert signing.wrong() == []
    _refused(signing.on("retrain", key="before"), "anna has another key now")
    assert signing.on("retrain").status == 0
    listed = signing.office.on("people", "list", "--json").json["anna"]
    assert (listed["key"], listed["former"]) == (new, [old])


@pytest.fixture
def waiting(signing):
    """A policy with other thresholds waits for two people."""
    signing.fence = signing.log.acquire("coordinator", "me", now=0.0, ttl_s=1e12)
    signing.notary = read_server(signing.office.config).notary_of("pumps")
    signing.leader = policies.Policies(signing.log, {"pumps": signing.notary})
    file = str(signing.office.folder / "policy.yaml")
    signing.open = lambda: signing.leader.open("pumps", file, Roles(), signing.fence, time.time())
    signing.turn = lambda: signing.leader.is_taken("pumps", Roles(), signing.fence, time.time())
    signing.open()
    signing.office.write_policy(**LOOSER)
    signing.open()
    return signing


def test_two_signatures_let_a_policy_in(waiting):
    assert waiting.on("policy", "approve").status == 0
    assert not waiting.turn()
    assert waiting.on("policy", "approve", by="ben", key="ben").status == 0
    assert waiting.turn()
    assert waiting.wrong() == []


def test_forged_and_replayed_words_let_no_policy_in(waiting):
    stream, desk = policies.stream("pumps"), Desk(waiting.office.config, "")
    assert waiting.on("policy", "approve").status == 0
    *_, good = waiting.log.read(stream)
    said = plain(Answered(desk.policy_file.digest, "ben", Answer.GRANTED))
    waiting.forge(stream, "answered", said)
    waiting.forge(stream, "answered", said, waiting.signer("anna"))
    waiting.log.append(stream, [{**good.record, "body": said}], at=time.time())
    waiting.on("policy", "refuse")
    waiting.log.append(stream, [good.record], at=time.time())  # anna's yes from before her no
    assert not waiting.turn()
    assert policies.recall(waiting.log, "pumps", waiting.notary).agreed == ()
    passed = [one["refused"] for one in waiting.office.on("log", "--orders", "--json").json if one["refused"]]
    assert passed == [
        "what ben orders must be signed",
        "it is signed with a key that is not ben's",
        "it is signed with a key that is not ben's",
        "it was given before",
    ]
    assert waiting.wrong() == []
    written = waiting.log.head(stream).counter
    waiting.open()
    assert waiting.log.head(stream).counter == written  # said once


def test_a_configuration_says_whose_orders_are_signed(office, signing):
    check = ("config", "check", office.config, "--json")
    assert office.type(*check).json["orders"] == (
        "signed by anna, ben; any other name is believed (orders.require_keys = true ends that)"
    )
    keyed = office.config.read_text()
    office.config.write_text(f"{keyed}\n[orders]\nrequire_keys = true\n")
    assert office.type(*check).json["orders"] == "signed by anna, ben; nobody else is followed"
    _refused(signing.on("retrain", by="carl", key=""), "server.toml has no key of carl")
    role = '[roles.release]\nmay = ["operate"]\npeople = ["anna", "carl"]\n'
    office.config.write_text(f"{keyed}\n{role}[orders]\nrequire_keys = true\n")
    _refused(office.type(*check), "no key of carl [")
    office.config.write_text(f"{keyed}\n{role}")
    assert signing.office.on("people", "list").out.splitlines()[2] == f"{'carl':20} no key        operate"


def test_without_keys_a_name_is_a_convention_and_the_check_says_so(office):
    found = office.type("config", "check", office.config, "--json").json["orders"]
    assert found.startswith("not signed: --by is a convention")
    assert office.on("people", "list").out == "server.toml names nobody\n"
