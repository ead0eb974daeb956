"""Orders of people: there and back, by name only, each taken once."""

from __future__ import annotations

import pytest

from fedretrain.coordinator.cycle_evidence import Propose, Quarantine, ServeAgain, Withdraw
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.rollout.evidence import Answer, Approval, Command, Operator
from fedretrain.rollout.quarantine import Release, Subject
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder, Switch
from fedretrain.server import orders
from fedretrain.server.event_log import EventLog
from fedretrain.server.people import OPEN

SAID = (
    SafetyOrder(SafetyCommand.STOP, "anna", Switch.TRAINING, "flood"),
    Release(Subject.DEVICE, 3, "anna", "mended"),
    Propose(4, "ben", "from the laboratory", (0.02, 0.01)),
    Withdraw(2, "anna", "wrong units"),
    ServeAgain("anna"),
    Quarantine(3, "anna", "loose"),
)


def test_orders_are_gathered_as_they_were_given(engine):
    log = EventLog(engine)
    for at, said in enumerate(SAID):
        orders.give(log, "p", said, float(at))
    found = orders.gather(log.read(orders.stream("p")), 0, OPEN, 0.0)
    assert found.cycle == SAID
    assert found.through == len(SAID)


@pytest.mark.parametrize("words", [(Answer.REFUSED, Answer.GRANTED), (Answer.GRANTED, Answer.REFUSED)])
def test_a_no_outweighs_a_yes_and_is_dated_by_the_log(engine, words):
    log = EventLog(engine)
    for at, word in enumerate(words, 1):
        orders.give(log, "p", Approval(word, f"{word}", 99.0), float(at))
    orders.give(log, "p", Operator(Command.PAUSE, "anna", "lunch"), 3.0)
    found = orders.gather(log.read(orders.stream("p")), 0, OPEN, 0.0)
    assert found.approval == Approval(Answer.REFUSED, "refused", 1.0 + words.index(Answer.REFUSED))
    assert (found.operator, found.through) == (Operator(Command.PAUSE, "anna", "lunch"), 3)


def test_a_second_yes_waits_for_the_next_tick(engine):
    log = EventLog(engine)
    for at, by in enumerate(("anna", "ben"), 1):
        orders.give(log, "p", Approval(Answer.GRANTED, by), float(at))
    first = orders.gather(log.read(orders.stream("p")), 0, OPEN, 0.0)
    assert (first.approval.by, first.through) == ("anna", 1)
    then = orders.gather(log.read(orders.stream("p"), after=1), 1, OPEN, 0.0)
    assert (then.approval.by, then.through) == ("ben", 2)


def test_what_was_taken_is_not_taken_again(engine):
    log = EventLog(engine)
    orders.give(log, "p", SAID[0], 1.0)
    through = orders.gather(log.read(orders.stream("p")), 0, OPEN, 0.0).through
    orders.give(log, "p", SAID[3], 2.0)
    assert orders.gather(log.read(orders.stream("p"), after=through), through, OPEN, 0.0).cycle == (SAID[3],)


def test_an_order_without_a_name_is_not_written(engine):
    log = EventLog(engine)
    with pytest.raises(ConfigError, match="needs a name"):
        orders.give(log, "p", Withdraw(2, " "), 0.0)
    assert log.head(orders.stream("p")).counter == 0


@pytest.mark.parametrize("record", [{}, {"kind": "dance"}, {"kind": "withdraw", "body": {"version": "x"}}])
def test_a_record_that_is_no_order_is_named(record):
    with pytest.raises(DataError, match="order"):
        orders.read(record)


def test_every_order_has_a_kind_and_every_kind_comes_back(engine):
    log = EventLog(engine)
    orders.give(log, "p", orders.KINDS["retrain"]("anna", "the season changes"), 1.0)
    (found,) = orders.gather(log.read(orders.stream("p")), 0, OPEN, 0.0).cycle
    assert (type(found).__name__, found.by, found.reason) == ("Retrain", "anna", "the season changes")


def test_a_second_order_to_a_rollout_waits_for_the_next_tick(engine):
    log = EventLog(engine)
    orders.give(log, "p", Operator(Command.ROLL_BACK, "anna", "it is wrong"), 1.0)
    orders.give(log, "p", SAID[0], 2.0)
    orders.give(log, "p", Operator(Command.PAUSE, "ben", "lunch"), 3.0)
    orders.give(log, "p", SAID[3], 4.0)
    first = orders.gather(log.read(orders.stream("p")), 0, OPEN, 0.0)
    assert (first.operator.command, first.cycle, first.through) == (Command.ROLL_BACK, (SAID[0],), 2)
    then = orders.gather(log.read(orders.stream("p"), after=2), 2, OPEN, 0.0)
    assert (then.operator.command, then.cycle, then.through) == (Command.PAUSE, (SAID[3],), 4)
