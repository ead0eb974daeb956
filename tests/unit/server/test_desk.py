"""An operator's desk on a small real folder: what it reads, what it orders, and what it finds wrong."""

from __future__ import annotations

import json
import time

import pytest
from sqlalchemy import update

from fedretrain.artifacts.trust.words import TargetInfo
from fedretrain.server import orders, versions
from fedretrain.server.desk import Desk
from fedretrain.server.tables import events
from tests.server_cases import lines


@pytest.fixture
def furnished(office):
    """The folder with a first champion, made on its pool."""
    said = office.on("models", "import", "--rounds", "1", "--outputs", "a,b,c")
    assert said.status == 0, said.err
    return office


def _desk(office):
    return Desk(office.config, "")


def _package(office):
    ((_, found),) = _desk(office).models.versions.by_number.items()
    return found.package


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
    }
    assert said.json["wrong"] == []


def test_a_damaged_file_of_a_package_is_named(furnished):
    manifest = _desk(furnished).models.package(1).manifest
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
    digest = _desk(furnished).models.package(1).manifest.pipeline.digest
    (furnished.folder / "state" / "packages" / digest).unlink()
    (one,) = _wrong(furnished)
    assert one == f"version 1: there is no content {digest}"


def test_an_edited_order_is_named_and_the_rest_is_checked(furnished):
    furnished.on("retrain", "--by", "anna")
    _edit(furnished, orders.stream("pumps"), '{"body":{"by":"eve","reason":""},"kind":"retrain"}')
    (one,) = _wrong(furnished)
    assert one.startswith("population/pumps/orders: record 1")
    assert "signed list: 0 packages" in furnished.on("verify").out


def test_an_edited_version_is_named_beside_what_else_is_wrong(furnished):
    digest = _desk(furnished).models.package(1).manifest.weights.digest
    (furnished.folder / "state" / "packages" / digest).write_bytes(b"rubbish")
    _edit(furnished, versions.stream("pumps"), json.dumps(versions.record(1, "a" * 64, "b" * 64, "eve")))
    first, second = _wrong(furnished)
    assert first.startswith("population/pumps/versions: record 1")
    assert second == f"the file {digest} is damaged"


def test_a_version_whose_package_is_another_one_is_named(furnished):
    log = furnished.log()
    told = _desk(furnished).models.versions.by_number[1]
    log.append(
        versions.stream("pumps"), [versions.record(2, told.weights, told.weights, "by hand")], at=time.time()
    )
    log.engine.dispose()
    (one,) = _wrong(furnished)
    assert one.startswith("version 2: ")


def test_a_signed_list_that_offers_a_stranger_is_named(furnished):
    desk = _desk(furnished)
    stranger = TargetInfo("e" * 64, 100, "pumps", 9)
    desk._keys.trust.publish([stranger], time.time())
    (one,) = _wrong(furnished)
    assert one == f"the signed list offers {'e' * 64}, which no version is"
