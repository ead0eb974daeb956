"""Messages into the database: each counts once, with its offset, and nothing that one says stops another."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sqlalchemy import func, select

from fedretrain.server import fleet, intake
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.fleet import Standing, Traits
from fedretrain.server.sources import keeping, tallies
from fedretrain.server.sources.config import Kafka, Mqtt
from fedretrain.server.sources.keeping import Batch, Kind, Message, Position
from fedretrain.server.tables import dead_letters, sources, telemetry
from fedretrain.server.tables import tallies as tally_table
from fedretrain.wire.v1 import fleet_pb2 as pb
from tests.source_cases import NOW, SLOT_S, binner, counts_of, expected, message, watch

MQTT = Mqtt("plant", "p", samples="s/{device}", records="r/{device}", plain=True)
KAFKA = Kafka("lake", "p", samples="s", records="r", plain=True)
HOW = binner()


def samples(payload, device="a", offset=None, partition=0, kind=Kind.SAMPLES):
    position = None if offset is None else Position("s", partition, offset)
    return Message(kind, device, payload, position, "test")


def keep(engine, *messages, source=MQTT, **more):
    with engine.begin() as connection:
        return keeping.keep(connection, Batch(source, messages, HOW, NOW, **more))


def flushed(engine, now=NOW):
    with engine.begin() as connection:
        while tallies.flush(connection, "p", SLOT_S, now):
            pass
        return list(connection.scalars(select(telemetry.c.payload).order_by(telemetry.c.number)))


def size_of(engine, table):
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table))


def standing_of(engine, name):
    with engine.connect() as connection:
        return connection.execute(select(sources).where(sources.c.name == name)).one()


@pytest.fixture
def fed(engine):
    watch(engine, "a", "b")
    return engine


def test_messages_become_one_record_for_each_device_and_slot(fed):
    assert keep(fed, samples(message(0)), samples(message(1)), samples(message(2), "b")) == {"counted": 3}
    assert keep(fed, samples(message(3, at=NOW))) == {"counted": 1}  # its slot is not over
    found = flushed(fed)
    assert len(found) == 2
    np.testing.assert_array_equal(counts_of(found, HOW), expected(HOW, [0, 1, 2]))
    later = flushed(fed, NOW + SLOT_S)
    assert len(later) == 3
    assert size_of(fed, tally_table) == 0


def test_rows_that_come_after_their_record_are_another_record(fed):
    keep(fed, samples(message(0)))
    assert len(flushed(fed)) == 1
    keep(fed, samples(message(1)))
    found = flushed(fed)
    np.testing.assert_array_equal(counts_of(found, HOW), expected(HOW, [0, 1]))
    assert len({pb.Payload.FromString(one).report.row for one in found}) == 2


def test_a_message_that_comes_again_or_late_counts_once(fed):
    assert keep(fed, samples(message(2)), samples(message(0)), samples(message(2))) == {
        "counted": 2,
        "repeated": 1,
    }
    assert keep(fed, samples(message(0)), samples(message(1))) == {"repeated": 1, "counted": 1}
    assert keep(fed, samples(message(0, boot=2))) == {"counted": 1}  # another start numbers anew
    np.testing.assert_array_equal(counts_of(flushed(fed), HOW), expected(HOW, [2, 0, 1, 0]))


def test_offsets_change_with_the_counts(fed):
    first = [samples(message(None), offset=n) for n in range(3)]
    assert keep(fed, *first, source=KAFKA) == {"counted": 3}
    again = keep(fed, *first, samples(message(None), offset=3), source=KAFKA)
    assert again == {"repeated": 3, "counted": 1}
    assert keep(fed, samples(message(None), offset=0, partition=1), source=KAFKA) == {"counted": 1}
    with fed.connect() as connection:
        assert keeping.next_offsets(connection, "lake") == {("s", 0): 4, ("s", 1): 1}
        assert keeping.next_offsets(connection, "another") == {}
    assert counts_of(flushed(fed), HOW)[0].sum() == 5 * 5


def test_a_crash_between_state_and_offset_leaves_neither(fed, monkeypatch):
    class KilledError(Exception):
        pass

    def killed(*_arguments):
        raise KilledError

    batch = [samples(message(n), offset=n) for n in range(3)]
    for place in ("set_offset", "_add_counts"):
        with monkeypatch.context() as patch:
            patch.setattr(keeping, place, killed)
            with pytest.raises(KilledError):
                keep(fed, *batch, source=KAFKA)
        assert size_of(fed, tally_table) == 0
    assert keep(fed, *batch, source=KAFKA) == {"counted": 3}
    np.testing.assert_array_equal(counts_of(flushed(fed), HOW), expected(HOW, [0, 1, 2]))


@pytest.mark.parametrize(
    ("payload", "device", "reason"),
    [
        (b"\xff\x00", "a", "message"),
        (message(0, rows=[["x", 1]]), "a", "rows"),
        (message(0, num=1, rows=[[1.0]]), "a", "rows"),
        (message(0, at=NOW + 1e6), "a", "at"),
        (message(None), "a", "sequence"),
        (message(0), "nobody", "device"),
        (message(0), "../etc\x00", "device"),
        (message(0), "", "device"),
        (message(0), "revoked", "device"),
        (message(0), "agent", "device"),
    ],
)
def test_what_is_malformed_is_refused_by_name_and_stops_nothing(fed, payload, device, reason):
    with fed.begin() as connection:
        for name in ("agent", "revoked"):
            fleet.enrol(connection, "p", name, name, Traits(), 1.0)
        fleet.set_standing(connection, "p", "revoked", Standing.REVOKED, 2.0)
    found = keep(fed, samples(message(0), "b"), samples(payload, device), samples(message(1), "b"))
    assert found == {"counted": 2, reason: 1}
    with fed.connect() as connection:
        letter = connection.execute(select(dead_letters)).one()
    assert letter.reason.startswith(f"{reason}: ")
    assert (letter.source, letter.population, letter.payload) == ("plant", "p", payload)
    assert json.loads(standing_of(fed, "plant").counts) == {"counted": 2, "refused": {reason: 1}}
    np.testing.assert_array_equal(counts_of(flushed(fed), HOW), expected(HOW, [0, 1]))


def test_a_refused_message_of_a_partition_is_passed_over_for_good(fed):
    assert keep(fed, samples(b"nonsense", offset=0), source=KAFKA) == {"message": 1}
    assert keep(fed, samples(b"nonsense", offset=0), source=KAFKA) == {"repeated": 1}


def test_a_numbering_that_grows_without_end_is_refused(fed):
    assert keep(fed, *(samples(message(2 * n)) for n in range(100))) == {"counted": 64, "sequence": 36}


def test_a_defect_of_ours_is_a_refusal(fed, monkeypatch):
    def broken(*_arguments):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(type(HOW), "count", broken)
    assert keep(fed, samples(message(0))) == {"defect": 1}


def test_the_newest_dead_letters_are_kept(fed, monkeypatch):
    monkeypatch.setattr(keeping, "KEPT_LETTERS", 5)
    for n in range(4):
        keep(fed, *(samples(b"%d" % (3 * n + i)) for i in range(3)))
    with fed.connect() as connection:
        kept = connection.scalars(select(dead_letters.c.payload).order_by(dead_letters.c.number)).all()
    assert [int(one) for one in kept] == [7, 8, 9, 10, 11]


def test_without_a_model_nothing_is_counted(fed):
    with fed.begin() as connection:
        found = keeping.keep(connection, Batch(MQTT, [samples(message(0))], None, NOW))
        assert found == {"model": 1}
        assert connection.scalar(select(dead_letters.c.payload)) == b""


def test_who_lost_the_lease_keeps_nothing(fed):
    log = EventLog(fed)
    old = log.acquire("coordinator", "one", now=0.0, ttl_s=1.0)
    log.acquire("coordinator", "two", now=2.0, ttl_s=1.0)
    with pytest.raises(FencedError):
        keep(fed, samples(message(0)), fence=old)
    assert size_of(fed, tally_table) == 0


def _records(*sequences, installation="1" * 32):
    records = [pb.Record(boot=1, priority=0, sequence=n, at=5.0, payload=b"%d" % n) for n in sequences]
    return pb.TelemetryBatch(installation=installation, boot=1, records=records).SerializeToString()


def test_batches_of_an_agent_count_as_over_the_device_api(fed):
    with fed.begin() as connection:
        device = fleet.enrol(connection, "p", "agent", "1", Traits(), 1.0)
        intake.keep(connection, device, pb.TelemetryBatch.FromString(_records(0, 1)), NOW)
    found = keep(
        fed,
        samples(_records(1, 2), "agent", kind=Kind.RECORDS),
        samples(_records(1, 2), "agent", kind=Kind.RECORDS),
        samples(_records(3), "a", kind=Kind.RECORDS),
        samples(b"\xff", "agent", kind=Kind.RECORDS),
        samples(_records(3, installation="x"), "agent", kind=Kind.RECORDS),
    )
    assert found == {"counted": 1, "repeated": 1, "device": 1, "message": 1, "batch": 1}
    with fed.connect() as connection:
        assert [int(one) for one in connection.scalars(select(telemetry.c.payload))] == [0, 1, 2]


def test_a_source_that_breaks_is_counted_apart(fed):
    with fed.begin() as connection:
        keeping.note(connection, MQTT, "connected", 1.0)
        keeping.note(connection, MQTT, "away", 2.0, "ConnectionError: gone", broken=True)
        keeping.note(connection, MQTT, "connected", 3.0)
    keep(fed, samples(message(0)))
    found = standing_of(fed, "plant")
    assert (found.standing, found.since, found.error, found.num_broken) == ("connected", 3.0, "", 1)
    assert json.loads(found.counts)["counted"] == 1


def test_a_partition_that_was_made_anew_is_read_again_and_told(fed):
    keep(fed, samples(message(None), offset=9), source=KAFKA)
    with fed.begin() as connection:
        keeping.move(connection, KAFKA, Position("s", 0, 0), "anew")
    assert keep(fed, samples(message(None), offset=0), source=KAFKA) == {"counted": 1}
    assert json.loads(standing_of(fed, "lake").counts)["anew"] == 1


def test_what_was_sent_of_a_retired_device_is_erased(fed):
    keep(fed, samples(message(0)), samples(b"nonsense"), samples(message(0), "b"))
    with fed.begin() as connection:
        intake.forget(connection, "p", "a")
    assert size_of(fed, tally_table) == 1
    assert size_of(fed, dead_letters) == 0


def test_a_watched_device_is_no_agent_and_becomes_one_by_enrolling(fed):
    with fed.begin() as connection:
        known = fleet.find(connection, "p", "a")
        assert (known.standing, known.number) == (Standing.WATCHED, 0)
        again = fleet.watch(connection, "p", "a", Traits("pump", "south"), 2.0)
        assert (again.number, again.traits.site) == (0, "south")
        assert fleet.enrol(connection, "p", "a", "key", Traits(), 3.0).number == 0
        with pytest.raises(Exception, match="is active"):
            fleet.watch(connection, "p", "a", Traits(), 4.0)
