"""Refreshes are counted once for each device, whatever is told again, and shown to people."""

from __future__ import annotations

import json

import pytest

from fedretrain.server.refreshes import KEPT, folded, last, notes, ordered, text_of
from fedretrain.training.keep import Verdict
from fedretrain.wire.control import Refreshed


def said(device, verdict=Verdict.KEPT, refresh=3):
    return Refreshed(device, refresh, "a" * 64, verdict)


def test_a_device_counts_once_by_the_first_word_that_came():
    known = ordered({}, 3, 10.0)
    told = [said(0), said(1, Verdict.FELL), said(0, Verdict.FELL), said(1, Verdict.FELL)]
    (note,) = notes(known, told, 11.0)
    known = folded(known, json.loads(json.dumps(note)))
    assert known[3].counts() == {"kept": 1, "refused": 1, "too_few_labels": 0, "not_possible": 0}
    assert notes(known, told, 12.0) == []
    (later,) = notes(known, [*told, said(2, Verdict.TOO_FEW)], 13.0)
    assert later["body"]["outcomes"] == [[3, 2, "too_few"]]


def test_a_refresh_that_nobody_ordered_or_that_is_long_ago_is_not_counted():
    known = {}
    for number in range(1, KEPT + 3):
        known = ordered(known, number, float(number))
    assert min(known) == 3
    assert notes(known, [said(0, refresh=number) for number in (0, 1, 2, 99)], 1.0) == []
    assert notes({}, [said(0)], 1.0) == []


def test_the_newest_refresh_is_shown_with_what_became_of_it():
    assert last({}) is None
    known = ordered(ordered({}, 3, 10.0), 5, 20.0)
    every = [said(device, verdict, 5) for device, verdict in enumerate(Verdict)]
    (note,) = notes(known, [*every, said(7, refresh=3)], 21.0)
    assert note["body"]["reason"] == (
        "refresh 3: 1 kept; refresh 5: 1 kept, 2 refused, 1 too few labels, 1 not possible"
    )
    assert last(folded(known, note)) == {
        "number": 5,
        "ordered_at": 20.0,
        "kept": 1,
        "refused": 2,
        "too_few_labels": 1,
        "not_possible": 1,
    }
    assert text_of(5, known[5]) == "refresh 5: nobody yet"


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_is_counted_somewhere(verdict):
    known = ordered({}, 3, 10.0)
    (note,) = notes(known, [said(0, verdict)], 1.0)
    assert sum(folded(known, note)[3].counts().values()) == 1
