"""Simulations of versions: each verdict counted once, an interrupted simulation not at all, reports kept."""

from __future__ import annotations

import pytest

from fedretrain.artifacts.store import ContentStore
from fedretrain.rollout.verdict import Verdict
from fedretrain.server.event_log import ConflictError, EventLog, FencedError
from fedretrain.server.simulations import Found, SimulationBook


@pytest.fixture
def log(engine):
    return EventLog(engine)


def _book(log, tmp_path, fence=None, now=5.0):
    return SimulationBook("p", log, ContentStore(tmp_path / "store"), fence, lambda: now)


def test_a_version_that_nobody_looked_at_is_undecided(log, tmp_path):
    assert _book(log, tmp_path).of(2) == Found()
    assert Found().verdict is Verdict.INCONCLUSIVE


def test_a_verdict_and_its_report_are_there_for_every_process(log, tmp_path):
    book = _book(log, tmp_path)
    assert book.begin(2) == 1
    assert _book(log, tmp_path).of(2).running
    book.end(2, Verdict.FAIL, "accuracy", {"checks": [1]})
    other = _book(log, tmp_path)
    found = other.of(2)
    assert (found.verdict, found.attempt, found.running, found.ended_at) == (Verdict.FAIL, 1, False, 5.0)
    assert other.report(found.report) == {"checks": [1]}
    assert other.of(3) == Found()


def test_an_interrupted_attempt_leaves_no_verdict_and_the_next_has_another_number(log, tmp_path):
    _book(log, tmp_path).begin(2)
    again = _book(log, tmp_path)
    assert again.begin(2) == 2
    assert again.of(2).verdict is Verdict.INCONCLUSIVE
    again.end(2, Verdict.PASS)
    assert again.of(2).attempt == 2


def test_who_has_not_seen_the_last_record_writes_nothing(log, tmp_path):
    first, second = _book(log, tmp_path), _book(log, tmp_path)
    first.of(2)
    second.begin(2)
    with pytest.raises(ConflictError):
        first._append({"type": "begun", "version": 2, "attempt": 1})


def test_who_leads_no_more_writes_nothing(log, tmp_path):
    old = log.acquire("coordinator", "a", now=0.0, ttl_s=1.0)
    log.acquire("coordinator", "b", now=2.0, ttl_s=1.0)
    with pytest.raises(FencedError):
        _book(log, tmp_path, old).end(2, Verdict.PASS)
    assert _book(log, tmp_path).of(2) == Found()


def test_a_version_that_is_tried_again_is_simulated_again(log, tmp_path):
    book = _book(log, tmp_path)
    book.begin(2, "rollout-1")
    book.end(2, Verdict.PASS, "it passes")
    assert book.of(2, "rollout-1").verdict is Verdict.PASS
    assert book.of(2, "rollout-2") == Found(attempt=1)  # undecided, and due
    assert book.begin(2, "rollout-2") == 2
    assert (book.of(2, "rollout-2").running, book.of(2, "rollout-2").verdict) == (True, Verdict.INCONCLUSIVE)
    book.end(2, Verdict.FAIL, "it fails now")
    found = _book(log, tmp_path).of(2, "rollout-2")
    assert (found.verdict, found.attempt, found.rollout) == (Verdict.FAIL, 2, "rollout-2")
    assert _book(log, tmp_path).of(2, "rollout-1") == Found(attempt=2)
