"""The device API over real mutual TLS on loopback: who may speak, what is kept, what counts once."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from fedretrain.artifacts.encryption import file_info, open_sealed
from fedretrain.artifacts.identity import DEVICE_LIFETIME_S, fingerprint, request_certificate
from fedretrain.core.clock import Instant
from fedretrain.core.errors import DataError
from fedretrain.edge.control import ControlError, Credentials
from fedretrain.edge.records import Batch, Record
from fedretrain.server import announcements, fleet
from fedretrain.server.announcements import Announcement
from fedretrain.server.config import Quota
from fedretrain.server.database import open_database
from fedretrain.server.fleet import Standing
from fedretrain.server.gateway import HASTE
from fedretrain.server.lateness import LEAST_DEVICES, MOST_STRETCH, Lateness
from fedretrain.server.tables import telemetry
from fedretrain.wire.control import CALL_S, PROTOCOL
from fedretrain.wire.sequence import Gap, Key, Priority
from fedretrain.wire.v1 import fleet_pb2 as pb
from tests.fleet_cases import loopback

INSTALLATION = "0" * 32
NOW = Instant(3, 10.0, 1000.0)


@pytest.fixture
def here(tmp_path, database_url):
    engine = open_database(database_url)
    with loopback(tmp_path, engine) as running:
        yield running
    engine.dispose()


def _heartbeat(**more):
    return pb.HeartbeatRequest(protocol=PROTOCOL, healthy=True, counter=0, **more)


def _batch(*sequences, gaps=(), payload=b"x"):
    records = tuple(
        Record(Key(INSTALLATION, 3, Priority.LABELS, n), Instant(3, float(n), 900.0 + n), payload, n)
        for n in sequences
    )
    return Batch(records, tuple(gaps), (), 3)


def _stored(here):
    with here.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(telemetry))


def test_a_device_enrols_and_is_heard(here):
    client = here.client(here.join("a"))
    reply = client.heartbeat(_heartbeat(serves="ab"))
    assert (reply.assignment, reply.next_s, reply.trust_version) == (b"", 1.0, 7)
    here.peers.flush()
    with here.engine.connect() as connection:
        device = fleet.find(connection, "p", "a")
    assert device.heartbeat["serves"] == "ab"
    assert device.heartbeat["ledger"] == [0, ""]  # an agent of the version before says nothing of it
    assert device.traits.site == "north"
    assert device.seen_at > 0


def test_devices_are_heard_sooner_while_it_is_announced(here):
    client = here.client(here.join("a"))
    for hasten, next_s in ((True, HASTE), (False, 1.0)):
        announcements.tell(here.engine, None, "p", Announcement(hasten=hasten))
        here.peers.poll()
        assert client.heartbeat(_heartbeat()).next_s == pytest.approx(next_s)


def test_devices_come_more_rarely_while_calls_wait(tmp_path, database_url):
    now_s = 0.0
    engine = open_database(database_url)
    with loopback(tmp_path, engine, lateness=Lateness(lambda: now_s)) as here:
        clients = [here.client(here.join(f"d{number}")) for number in range(LEAST_DEVICES)]
        for waited_s, least_s, most_s in (
            (1.0, 1.5, MOST_STRETCH),  # a call may have waited here for longer than is pretended
            (CALL_S - 3.0, 1.0, 1.0),  # a deadline of 3 s, as at an agent's start, says nothing
            (4.0, MOST_STRETCH, MOST_STRETCH),
        ):
            for client in clients:  # its deadline is so much nearer, as if the call had waited
                client.heartbeat(_heartbeat(), timeout_s=CALL_S - waited_s)
            now_s += 1.0
            assert least_s - 0.1 <= clients[0].heartbeat(_heartbeat()).next_s <= most_s
    engine.dispose()


def test_what_a_device_says_of_itself_is_short(here):
    client = here.client(here.join("a"))
    long = "f" * 50_000
    client.heartbeat(
        _heartbeat(serves=long, shadows=long, refused=long, holds=[long] * 100, ledger_hash=long)
    )
    here.peers.flush()
    with here.engine.connect() as connection:
        kept = fleet.find(connection, "p", "a").heartbeat
    assert [len(kept[key]) for key in ("serves", "shadows", "refused")] == [64, 64, 64]
    assert [len(one) for one in kept["holds"]] == [64] * 64
    assert len(kept["ledger"][1]) == 64


def test_an_assignment_reaches_its_device_alone(here):
    a, b = here.client(here.join("a")), here.client(here.join("b"))
    with here.engine.begin() as connection:
        fleet.assign(connection, "p", [("a", b"signed", 1)], here.peers._clock())
    here.peers.poll()
    assert (a.heartbeat(_heartbeat()).assignment, b.heartbeat(_heartbeat()).assignment) == (b"signed", b"")


def test_a_token_is_used_up_by_the_first_key(here):
    token = here.token("a")
    here.join("a", token=token)
    assert here.join("a", token=token).certificate  # the same key: its answer may have been lost
    with pytest.raises(ControlError, match="token does not count") as refused:
        here.join("a", token=token, key="thief")
    assert refused.value.is_refusal


@pytest.mark.parametrize("token", ["nonsense", "x" * 100_000])
def test_a_made_up_token_is_refused(here, token):
    with pytest.raises(ControlError, match="token does not count"):
        here.join("a", token=token)


def test_a_token_that_ran_out_is_refused_in_the_same_words(here):
    with pytest.raises(ControlError, match="token does not count"):
        here.join("a", token=here.token("a", lifetime_s=-1.0))


def test_a_stranger_without_a_certificate_of_the_fleet_is_refused(here, tmp_path):
    from fedretrain.artifacts.identity import FleetAuthority, request_certificate

    other = FleetAuthority(tmp_path / "other", now=0.0)
    forged = other.issue_device(
        request_certificate(here.key("forger"), "p", "a"), "p", "a", now=here.peers._clock()
    )
    mine = Credentials((tmp_path / "forger.key").read_bytes(), forged, here.authority.certificate)
    with pytest.raises(ControlError):
        here.client(mine).heartbeat(_heartbeat(), timeout_s=3.0)


def test_a_revoked_device_is_refused_from_the_next_call(here):
    client = here.client(here.join("a"))
    client.heartbeat(_heartbeat())
    with here.engine.begin() as connection:
        fleet.set_standing(connection, "p", "a", Standing.REVOKED, here.peers._clock())
    here.peers.poll()
    with pytest.raises(ControlError, match="no enrolled device"):
        client.heartbeat(_heartbeat())
    with pytest.raises(ControlError, match="no enrolled device"):
        client.send(_batch(0), NOW, INSTALLATION)
    again = here.client(here.join("a", key="new"))
    assert again.heartbeat(_heartbeat()).protocol == PROTOCOL


def test_an_old_key_is_refused_after_the_device_enrolled_anew(here):
    old = here.client(here.join("a", key="old"))
    here.join("a", key="new")
    with pytest.raises(ControlError, match="no enrolled device"):
        old.heartbeat(_heartbeat())


def test_each_record_counts_once(here):
    client = here.client(here.join("a"))
    batch = _batch(0, 1, 2)
    assert client.send(batch, NOW, INSTALLATION) == batch
    assert client.send(batch, NOW, INSTALLATION) == batch  # the acknowledgement was lost
    assert client.send(_batch(2, 3), NOW, INSTALLATION).records[1].key.sequence == 3
    assert _stored(here) == 4


def test_what_cannot_be_kept_is_sent_again_and_the_device_sees_no_trace_of_ours(here, monkeypatch):
    client = here.client(here.join("a"))

    def full(*_):
        raise OperationalError("INSERT INTO telemetry", {}, OSError("the disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr("fedretrain.server.intake.keep_all", full)
        with pytest.raises(ControlError, match="cannot be kept just now") as refused:
            client.send(_batch(0), NOW, INSTALLATION)
    assert "telemetry" not in str(refused.value)
    assert not refused.value.is_refusal
    assert client.send(_batch(0), NOW, INSTALLATION) == _batch(0)
    assert _stored(here) == 1


def test_the_same_numbers_of_two_devices_are_two_records(here):
    for name in "ab":
        here.client(here.join(name)).send(_batch(0, 1), NOW, INSTALLATION)
    assert _stored(here) == 4


def test_a_restarted_server_remembers_what_counted(here, tmp_path, database_url):
    credentials = here.join("a")
    here.client(credentials).send(_batch(0, 1), NOW, INSTALLATION)
    engine = open_database(database_url)
    with loopback(tmp_path, engine) as again:
        again.client(credentials).send(_batch(0, 1, 2), NOW, INSTALLATION)
        assert _stored(again) == 3
    engine.dispose()


def test_what_was_dropped_is_settled_and_never_counts_later(here):
    client = here.client(here.join("a"))
    client.send(_batch(0, gaps=[Gap(INSTALLATION, 3, Priority.LABELS, 1, 2)]), NOW, INSTALLATION)
    client.send(_batch(2, 3), NOW, INSTALLATION)
    assert _stored(here) == 2


def test_a_hostile_numbering_is_refused_and_stays_on_the_device(here):
    client = here.client(here.join("a"))
    odd = _batch(*range(1, 301, 2))
    kept = client.send(odd, NOW, INSTALLATION)
    assert len(kept.records) < len(odd.records)
    assert _stored(here) == len(kept.records)


@pytest.mark.parametrize(
    ("batch", "installation", "named"),
    [
        (_batch(0), "../../etc", "installation"),
        (_batch(0, payload=b"x" * 600_000), INSTALLATION, "bytes"),
        (_batch(*range(2500), payload=b""), INSTALLATION, "records"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_name(here, batch, installation, named):
    client = here.client(here.join("a"))
    with pytest.raises(ControlError, match=named) as refused:
        client.send(batch, NOW, installation)
    assert refused.value.is_refusal
    assert _stored(here) == 0


def test_a_device_that_asks_too_much_is_refused_by_name_and_the_others_are_not(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/server.db")
    quota = Quota(calls_per_s=1e-3, burst_calls=3, bytes_per_s=1.0)
    with loopback(tmp_path, engine, quota=quota) as here:
        a, b = here.client(here.join("a")), here.client(here.join("b"))
        for _ in range(3):
            a.heartbeat(_heartbeat())
        with pytest.raises(ControlError, match="call more rarely") as refused:
            a.heartbeat(_heartbeat())
        assert not refused.value.is_refusal  # it is tried again, later
        with pytest.raises(ControlError, match="call more rarely"):
            a.fetch_blob("ab" * 32, 10)
        big = _batch(*range(14), payload=b"x" * 500_000)
        for _ in range(quota.burst_bytes // 7_000_500):
            a.send(big, NOW, INSTALLATION)
        with pytest.raises(ControlError, match="send the rest later"):
            a.send(big, NOW, INSTALLATION)
        assert b.heartbeat(_heartbeat()).protocol == PROTOCOL
        assert b.send(_batch(0), NOW, INSTALLATION) == _batch(0)
    engine.dispose()


def test_an_oversize_message_does_not_reach_us(here):
    client = here.client(here.join("a"))
    with pytest.raises(ControlError, match=r"larger|exhausted"):
        client.send(_batch(*range(40), payload=b"x" * 400_000), NOW, INSTALLATION)
    assert client.heartbeat(_heartbeat()).protocol == PROTOCOL


def test_an_older_protocol_is_refused_and_a_newer_one_is_not(here):
    client = here.client(here.join("a"))
    with pytest.raises(ControlError, match="protocol 0"):
        client.heartbeat(pb.HeartbeatRequest(protocol=0))
    assert client.heartbeat(pb.HeartbeatRequest(protocol=PROTOCOL + 1)).protocol == PROTOCOL


def test_files_come_in_parts_and_no_longer_than_asked(here):
    here.blobs["ab" * 32] = content = bytes(range(256)) * 4000
    here.trust["timestamp.json"] = b"{}"
    client = here.client(here.join("a"))
    assert client.fetch_blob("ab" * 32, len(content)) == content
    with pytest.raises(ControlError, match="more than"):
        client.fetch_blob("ab" * 32, 1000)
    with pytest.raises(ControlError, match="there is no"):
        client.fetch_blob("cd" * 32, 1000)
    assert b"".join(client.fetch_trust("timestamp.json", 10)) == b"{}"
    with pytest.raises(FileNotFoundError):
        b"".join(client.fetch_trust("../secret", 10))


def test_a_server_that_is_gone_is_named(here):
    credentials = here.join("a")
    from fedretrain.edge.control import ControlClient

    with pytest.raises(ControlError, match=r"unavailable|deadline") as gone:
        ControlClient("127.0.0.1:9", credentials).heartbeat(_heartbeat(), timeout_s=2.0)
    assert not gone.value.is_refusal


def test_a_device_is_known_by_its_own_node_key_or_that_of_its_agent(here):
    from fedretrain.artifacts.identity import public_pem, request_certificate
    from fedretrain.edge.control import enrol

    here.join("a")
    own = public_pem(here.key("a").public_key())
    request = pb.EnrolRequest(
        protocol=PROTOCOL,
        token=here.token("b"),
        certificate_request=request_certificate(here.key("b"), "p", "b"),
        traits=pb.DeviceTraits(node_key=own.encode()),
    )
    enrol(here.enrolment, here.authority.certificate, request)
    with here.engine.connect() as connection:
        assert [fleet.find(connection, "p", name).traits.node_key for name in "ab"] == [own, own]


def _renewal(here, name):
    asked = request_certificate(here.key(name), "p", name)
    return pb.RenewRequest(protocol=PROTOCOL, certificate_request=asked)


def test_a_certificate_is_renewed_over_the_present_one_and_both_count(here):
    old = here.join("a")
    reply = here.client(old).renew(_renewal(here, "a"))
    new = replace(old, certificate=reply.certificate)
    assert fingerprint(new.certificate) != fingerprint(old.certificate)
    for shown in (new, old):  # the answer may be lost: then it asks again
        assert here.client(shown).heartbeat(_heartbeat()).protocol == PROTOCOL
    with pytest.raises(ControlError, match="another key"):
        here.client(new).renew(_renewal(here, "b"))


def test_a_revoked_device_renews_nothing(here):
    client = here.client(here.join("a"))
    client.heartbeat(_heartbeat())
    with here.engine.begin() as connection:
        fleet.set_standing(connection, "p", "a", Standing.REVOKED, time.time())
    here.peers.poll()
    with pytest.raises(ControlError, match="no enrolled device") as caught:
        client.renew(_renewal(here, "a"))
    assert caught.value.is_refusal


def test_a_certificate_that_expires_while_the_connection_lasts_counts_no_more(here):
    client = here.client(here.join("a"))
    client.heartbeat(_heartbeat())
    here.offset_s = DEVICE_LIFETIME_S + 1.0
    with pytest.raises(ControlError, match="no enrolled device"):
        client.heartbeat(_heartbeat())


def test_files_are_sealed_for_the_device_that_asks(here):
    content = bytes(range(256)) * 4000
    here.blobs = {"d" * 64: content}
    plain, keys = here.join("a"), {"b": b"b" * 32, "c": b"c" * 32}
    sealed = {name: replace(here.join(name, sealing=key), sealing_key=key) for name, key in keys.items()}
    assert here.client(plain).fetch_blob("d" * 64, len(content)) == content
    client = here.client(sealed["b"])
    assert client.fetch_blob("d" * 64, len(content)) == content
    asked = pb.ArtifactRequest(protocol=PROTOCOL, digest="d" * 64, sealed=True, offset=10)
    chunks = list(client._stub.FetchArtifact(asked))
    assert all(chunk.sealed for chunk in chunks)
    carried = b"".join(chunk.content for chunk in chunks)
    assert content[10:60] not in carried
    info = file_info("p", "b", "d" * 64)
    assert open_sealed(carried, keys["b"], info) == content[10:]
    for key, told in ((keys["c"], info), (keys["b"], file_info("p", "b", "e" * 64))):
        with pytest.raises(DataError, match="not sealed for this device"):
            open_sealed(carried, key, told)
    with pytest.raises(ControlError, match="more than"):
        client.fetch_blob("d" * 64, len(content) - 1)


def test_a_device_that_seals_still_talks_to_a_server_that_does_not(here):
    here.blobs = {"d" * 64: b"content"}
    shown = replace(
        here.join("a"), sealing_key=b"a" * 32
    )  # the server knows no key: it sends the file as it is
    assert here.client(shown).fetch_blob("d" * 64, 7) == b"content"
