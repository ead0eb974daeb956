"""Enrolment: a token becomes one device, once; a stranger learns nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select

from fedretrain.artifacts.encryption import public_half
from fedretrain.artifacts.enrolment import EnrolmentError, TokenRefusal, hash_token
from fedretrain.artifacts.identity import (
    FleetAuthority,
    create_key,
    load_key,
    read_identity,
    request_certificate,
)
from fedretrain.core.errors import DataError
from fedretrain.server import fleet
from fedretrain.server.enrolment import Enrolling, Told, make_tokens
from fedretrain.server.fleet import Standing, Traits
from fedretrain.server.tables import tokens
from fedretrain.wire.control import PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb

NOW = 1_750_000_000.0
TRAITS = pb.DeviceTraits(
    device_type="pump", site="north", person="anna", trains=True, methods=["fedper", "finetune"]
)


class Peers:
    """Who was made known."""

    def __init__(self):
        self.known = []

    def know(self, device):
        self.known.append(device)


class Desk:
    """Enrolling at an instant that a test sets."""

    def __init__(self, folder, engine):
        self.folder, self.engine, self.now, self.peers = folder, engine, NOW, Peers()
        (folder / "authority").mkdir()
        self.authority = FleetAuthority(folder / "authority", now=NOW)
        told = Told(b"root", "fleet.example:7443")
        self.enrolling = Enrolling(engine, self.authority, self.peers, told, lambda: self.now)

    def token(self, *names, lifetime_s=60.0):
        made = make_tokens(self.engine, "p", names, now=self.now, lifetime_s=lifetime_s)
        return [secret for _, secret in made]

    def request(self, token, key="one", traits=TRAITS, name="whatever"):
        path = self.folder / f"{key}.key"
        create_key(path)
        wanted = request_certificate(load_key(path), "elsewhere", name)
        return pb.EnrolRequest(protocol=PROTOCOL, token=token, certificate_request=wanted, traits=traits)

    def public_key(self, key):
        """PEM of the public half of a key that a request was made with."""
        public = load_key(self.folder / f"{key}.key").public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def devices(self):
        with self.engine.connect() as connection:
            return fleet.everybody(connection, "p")

    def used(self, token):
        with self.engine.connect() as connection:
            return connection.scalar(select(tokens.c.used_by).where(tokens.c.hash == hash_token(token)))


@pytest.fixture
def desk(tmp_path, engine):
    return Desk(tmp_path, engine)


def test_a_token_makes_the_device_that_it_is_for(desk):
    first, second = desk.token("pump-1", "pump-2")
    replies = [desk.enrolling.enrol(desk.request(one, key=one[:5])) for one in (second, first)]
    assert [(reply.device, reply.number) for reply in replies] == [("pump-2", 0), ("pump-1", 1)]
    reply = replies[0]
    assert (reply.population, reply.root_metadata, reply.control_address) == (
        "p",
        b"root",
        "fleet.example:7443",
    )
    assert reply.authority == desk.authority.certificate
    identity = read_identity(reply.certificate)
    assert (identity.population, identity.device) == ("p", "pump-2")  # not what the request says
    found = desk.devices()[0]
    assert found.fingerprint == identity.key_fingerprint
    own = desk.public_key(second[:5])  # it trains for itself, as it names nobody else
    assert found.traits == Traits("pump", "north", "anna", True, ("fedper", "finetune"), own)
    assert [one.device for one in desk.peers.known] == ["pump-2", "pump-1"]


def test_a_device_that_lost_the_answer_asks_again_with_its_key_and_nobody_else_may(desk):
    (token,) = desk.token("pump-1")
    desk.enrolling.enrol(desk.request(token, key="mine"))
    assert desk.enrolling.enrol(desk.request(token, key="mine")).number == 0
    before = desk.devices()
    with pytest.raises(EnrolmentError) as caught:
        desk.enrolling.enrol(desk.request(token, key="theirs"))
    assert caught.value.refusal is TokenRefusal.USED
    assert desk.devices() == before


def test_a_stranger_is_told_the_same_whatever_is_wrong(desk):
    used, late = desk.token("pump-1", "pump-2")
    desk.enrolling.enrol(desk.request(used, key="mine"))
    desk.now += 60.0
    said = {}
    for token in ("made up", late, used):
        with pytest.raises(EnrolmentError) as caught:
            desk.enrolling.enrol(desk.request(token, key="theirs"))
        said[caught.value.refusal] = str(caught.value)
    assert TokenRefusal.UNKNOWN in said
    assert TokenRefusal.EXPIRED in said
    assert len(set(said.values())) == 1
    assert [one.device for one in desk.devices()] == ["pump-1"]


@pytest.mark.parametrize(
    "traits",
    [
        pb.DeviceTraits(device_type="x" * 101),
        pb.DeviceTraits(site="two\nlines"),
        pb.DeviceTraits(person="\x00"),
        pb.DeviceTraits(methods=["y" * 101]),
        pb.DeviceTraits(methods=["m"] * 17),
    ],
)
def test_a_request_that_cannot_be_leaves_the_token_unused(desk, traits):
    (token,) = desk.token("pump-1")
    with pytest.raises(DataError, match=r"trait|methods"):
        desk.enrolling.enrol(desk.request(token, traits=traits))
    assert desk.used(token) == ""
    assert (desk.devices(), desk.peers.known) == ([], [])
    assert desk.enrolling.enrol(desk.request(token)).device == "pump-1"


def test_another_agents_node_may_train_for_a_device_if_its_key_is_one(desk):
    first, second = desk.token("pump-1", "pump-2")
    desk.enrolling.enrol(desk.request(first, key="host"))
    host = desk.public_key("host")
    desk.enrolling.enrol(desk.request(second, traits=pb.DeviceTraits(node_key=host.encode())))
    assert [one.traits.node_key for one in desk.devices()] == [host, host]
    (third,) = desk.token("pump-3")
    with pytest.raises(DataError):
        desk.enrolling.enrol(desk.request(third, traits=pb.DeviceTraits(node_key=b"rubbish")))
    assert desk.used(third) == ""


def test_a_request_without_a_certificate_request_leaves_the_token_unused(desk):
    (token,) = desk.token("pump-1")
    with pytest.raises(DataError):
        desk.enrolling.enrol(pb.EnrolRequest(protocol=PROTOCOL, token=token, certificate_request=b"rubbish"))
    assert desk.used(token) == ""


def test_a_retired_device_stays_out_and_its_token_unused(desk):
    first, second = desk.token("pump-1", "pump-1")
    desk.enrolling.enrol(desk.request(first))
    with desk.engine.begin() as connection:
        fleet.set_standing(connection, "p", "pump-1", Standing.RETIRED, NOW)
    with pytest.raises(DataError, match="was retired"):
        desk.enrolling.enrol(desk.request(second, key="new"))
    assert desk.used(second) == ""


def test_secrets_are_not_kept_and_one_bad_name_makes_no_token(desk):
    (secret,) = desk.token("pump-1")
    with desk.engine.connect() as connection:
        (row,) = connection.execute(select(tokens)).all()
    assert secret not in map(str, row)
    assert (row.hash, row.device, row.expires_at) == (hash_token(secret), "pump-1", NOW + 60.0)
    with pytest.raises(DataError, match="is no name"):
        desk.token("pump-2", "pump 3")
    with desk.engine.connect() as connection:
        assert len(connection.execute(select(tokens)).all()) == 1
    assert desk.token() == []


def _renewal(desk, key, sealing=b""):
    path = desk.folder / f"{key}.key"
    create_key(path)
    asked = request_certificate(load_key(path), "elsewhere", "whatever")
    return pb.RenewRequest(protocol=PROTOCOL, certificate_request=asked, sealing_key=sealing)


def test_a_certificate_is_renewed_for_the_same_key_and_the_device_stays_who_it_is(desk):
    (token,) = desk.token("pump-1")
    first = read_identity(desk.enrolling.enrol(desk.request(token)).certificate)
    (before,) = desk.devices()
    desk.now += 300 * 86_400.0
    reply = desk.enrolling.renew(before, _renewal(desk, "one"))
    second = read_identity(reply.certificate)
    assert (second.population, second.device, second.key_fingerprint) == (
        "p",
        "pump-1",  # whatever the request calls itself
        first.key_fingerprint,
    )
    assert second.expires_at == first.expires_at + 300 * 86_400.0
    assert desk.devices() == [before]


def test_another_key_needs_a_token(desk):
    (token,) = desk.token("pump-1")
    desk.enrolling.enrol(desk.request(token))
    (device,) = desk.devices()
    with pytest.raises(DataError, match="for another key"):
        desk.enrolling.renew(device, _renewal(desk, "two"))


def test_the_key_for_sealing_is_kept_and_may_come_with_a_renewal(desk):
    (token,) = desk.token("pump-1")
    old, new = public_half(b"a" * 32), public_half(b"b" * 32)
    desk.enrolling.enrol(desk.request(token, traits=pb.DeviceTraits(sealing_key=old)))
    (device,) = desk.devices()
    assert device.traits.sealing_key == old.hex()
    desk.enrolling.renew(device, _renewal(desk, "one"))
    assert desk.devices() == [device]
    desk.enrolling.renew(device, _renewal(desk, "one", new))
    (after,) = desk.devices()
    assert (
        after == desk.peers.known[-1] == replace(device, traits=replace(device.traits, sealing_key=new.hex()))
    )
    with pytest.raises(DataError, match="public key"):
        desk.enrolling.renew(after, _renewal(desk, "one", b"short"))
