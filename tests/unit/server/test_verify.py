"""What is damaged, edited or foreign in a small real folder is found, each by its name."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing

from sqlalchemy import update

from fedretrain.artifacts.trust.words import TargetInfo
from fedretrain.coordinator.cycle import CycleEvent
from fedretrain.rollout.quarantine import QuarantineEvent, QuarantineEventKind, Subject
from fedretrain.server import memory, orders, versions
from fedretrain.server.tables import events
from tests.server_cases import lines


def _edit(office, stream, text):
    """Change the first record of a stream by hand, as somebody with the database could."""
    log = office.log()
    with log.engine.begin() as connection:
        where = (events.c.stream == stream) & (events.c.number == 1)
        assert connection.execute(update(events).where(where).values(record=text)).rowcount == 1
    log.engine.dispose()


def _wrong(office):
    said = office.on("verify", "--json")
    (line,) = lines(said.err)
    assert said.status == 1
    wrong = said.json["wrong"]
    assert wrong[0] in line
    return wrong


def test_what_is_sound_is_verified(furnished):
    said = furnished.on("verify", "--json")
    assert (said.status, said.err) == (0, "")
    assert said.json["checked"] == {
        "population/pumps/versions": "1 records",
        "packages": "1 packages",
        "signed list": "0 packages",
        "states": "0 files",
        "signatures": "0 good, 0 refused when they came",
    }
    assert said.json["wrong"] == []


def test_a_damaged_file_of_a_package_is_named(furnished):
    manifest = furnished.desk().models.package(1).manifest
    digest = manifest.weights.digest
    file = furnished.folder / "state" / "packages" / digest
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    wrong = _wrong(furnished)
    assert wrong[0] == f"the file {digest} is damaged"
    assert len(wrong) == 2
    assert wrong[1].startswith("version 1: ")
    assert digest in wrong[1]
    assert f"WRONG {wrong[1]}" in furnished.on("verify").out


def test_a_missing_file_of_a_package_is_named(furnished):
    digest = furnished.desk().models.package(1).manifest.pipeline.digest
    (furnished.folder / "state" / "packages" / digest).unlink()
    (one,) = _wrong(furnished)
    assert one == f"version 1: there is no content {digest}"


def test_a_damaged_page_of_the_database_is_named_and_files_are_checked_all_the_same(furnished):
    digest = furnished.desk().models.package(1).manifest.weights.digest
    (furnished.folder / "state" / "packages" / digest).write_bytes(b"damaged")
    path = furnished.folder / "state" / "fedretrain.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)
    path.write_bytes(content)
    wrong = _wrong(furnished)
    assert wrong[0].startswith("the database is damaged: ")
    assert wrong[1] == f"the file {digest} is damaged"


def test_an_edited_order_is_named_and_the_rest_is_checked(furnished):
    furnished.on("retrain", "--by", "anna")
    _edit(furnished, orders.stream("pumps"), '{"body":{"by":"eve","reason":""},"kind":"retrain"}')
    (one,) = _wrong(furnished)
    assert one.startswith("population/pumps/orders: record 1")
    assert "signed list: 0 packages" in furnished.on("verify").out


def test_an_edited_version_is_named_beside_what_else_is_wrong(furnished):
    digest = furnished.desk().models.package(1).manifest.weights.digest
    (furnished.folder / "state" / "packages" / digest).write_bytes(b"rubbish")
    _edit(furnished, versions.stream("pumps"), json.dumps(versions.record(1, "a" * 64, "b" * 64, "eve")))
    first, second = _wrong(furnished)
    assert first.startswith("population/pumps/versions: record 1")
    assert second == f"the file {digest} is damaged"


def test_a_ledger_that_a_device_has_seen_more_of_is_named_until_the_device_is_kept_out(furnished):
    furnished.begin()
    furnished.enrol("liar", 1.0, {"ledger": [2, "f" * 64]})
    (one,) = _wrong(furnished)
    assert "has 0 events, liar saw 2 in a signed list: an old copy" in one
    assert "restore the newest copy" in one
    out = QuarantineEvent(QuarantineEventKind.ENTERED, Subject.DEVICE, 0, 2.0, "it lies", by="anna")
    log = furnished.log()
    log.append(memory.stream("pumps"), [CycleEvent(2.0, out).to_record()], at=2.0)
    log.engine.dispose()
    said = furnished.on("verify", "--json")
    assert said.json["wrong"] == []


def test_where_nobody_knows_who_is_kept_out_every_device_s_word_counts(furnished):
    furnished.begin()
    furnished.enrol("a", 1.0, {"ledger": [2, "f" * 64]})
    _edit(furnished, memory.stream("pumps"), "{}")
    first, second = _wrong(furnished)
    assert first.startswith(f"{memory.stream('pumps')}: record 1")
    assert "a saw 2 in a signed list" in second


def test_a_version_whose_package_is_another_one_is_named(furnished):
    log = furnished.log()
    told = furnished.desk().models.versions.by_number[1]
    log.append(
        versions.stream("pumps"), [versions.record(2, told.weights, told.weights, "by hand")], at=time.time()
    )
    log.engine.dispose()
    (one,) = _wrong(furnished)
    assert one.startswith("version 2: ")


def test_a_signed_list_that_offers_a_stranger_is_named(furnished):
    desk = furnished.desk()
    stranger = TargetInfo("e" * 64, 100, "pumps", 9)
    desk._keys.trust.publish([stranger], time.time())
    (one,) = _wrong(furnished)
    assert one == f"the signed list offers {'e' * 64}, which no version is"


def test_a_damaged_state_of_the_loop_is_named(furnished):
    digest = furnished.desk().models.stores.campaigns.put(b"in which order devices are exposed")
    (furnished.folder / "state" / "campaigns" / digest).write_bytes(b"damaged")
    assert _wrong(furnished) == [f"the file {digest} is damaged"]
