"""Versions: a number and a package each, for good."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import DataError
from fedretrain.server import versions
from fedretrain.server.event_log import EventLog
from fedretrain.server.versions import Versions

A, B, W = "a" * 64, "b" * 64, "c" * 64


def test_the_fold_knows_both_ways(engine):
    log = EventLog(engine)
    log.append(versions.stream("p"), [versions.record(1, A, W, "imported")], at=1.0)
    log.append(versions.stream("p"), [versions.record(3, B, W, "retrain 1")], at=2.0)
    found = Versions.of(log.read(versions.stream("p")))
    assert (found.number_of(A), found.number_of(B), found.number_of(""), found.number_of(W)) == (
        1,
        3,
        0,
        None,
    )
    assert (found.package_of(3), found.package_of(0)) == (B, "")
    assert found.digests == {0: "", 1: A, 3: B}
    assert found.next_number == 4
    assert found.by_number[3].at == 2.0
    with pytest.raises(DataError, match="no version 2"):
        found.package_of(2)


def test_an_empty_stream_has_the_rules_baseline_alone():
    assert (Versions().digests, Versions().next_number) == ({0: ""}, 1)


@pytest.mark.parametrize(("number", "package"), [(1, B), (2, A), (0, B)])
def test_nothing_is_made_twice(engine, number, package):
    log = EventLog(engine)
    made = [versions.record(1, A, W, ""), versions.record(number, package, W, "")]
    log.append(versions.stream("p"), made, at=1.0)
    with pytest.raises(DataError, match="made twice"):
        Versions.of(log.read(versions.stream("p")))
