"""What somebody can do to a population's loop who can write its database, and has nobody's key: nothing, and it is written down.

The genuine orders beside it are followed, through restarts, by a coordinator whose loop reads them as ever.
"""

from __future__ import annotations

import json

import pytest

from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import DataError
from fedretrain.rollout.evidence import Answer, Approval
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder
from fedretrain.server import memory, orders
from fedretrain.server.tables import events
from tests.population_cases import World
from tests.signing_cases import NOTARY, OTHER_FLEET, order, rewrite, signer

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
STREAM = orders.stream("p")
LEAVE = SafetyOrder(SafetyCommand.LEAVE, "anna", reason="it was nothing")


class Keyed(World):
    """A fleet in which anna and ben have keys."""

    notary = NOTARY

    def write(self, *records):
        self.log.append(STREAM, list(records), at=self.now)

    def give(self, said, by="anna"):
        orders.give(self.log, "p", said, self.now, signer(by))

    def refusals(self):
        found = (entry.record for entry in self.log.read(memory.stream("p")))
        return [one["body"] for one in found if one["kind"] == "refused"]


@pytest.fixture
def world(tmp_path, database_url):
    made = Keyed(tmp_path, database_url)
    made.until(lambda: made.state is not None)
    yield made
    made.engine.dispose()


def forged(world):
    world.write(order(key="", at=world.now))


def forged_with_a_key_of_ones_own(world):
    world.write(order(key="eve", at=world.now))


def in_anothers_name(world):
    record = order(at=world.now)
    world.write({**record, "body": {**record["body"], "by": "ben"}})


def with_a_key_that_was_given_up(world):
    world.write(order(key="old", at=world.now))


def another_fleets(world):
    world.write(order(fleet=OTHER_FLEET, at=world.now))


def another_populations(world):
    world.write(order(population="q", at=world.now))


def expired(world):
    world.write(order(at=world.now - DAY_S - 60.0))


def edited_before_it_was_taken(world):
    """A harmless order becomes another one, and the chain is made anew."""
    world.give(LEAVE)
    number = world.log.head(STREAM).counter
    *_, entry = world.log.read(STREAM)
    body = {**entry.record["body"], "command": "enter"}
    rewrite(world.log, STREAM, number, json.dumps({**entry.record, "body": body}))


def stripped_of_its_signature(world):
    record = order(at=world.now)
    del record["signed"]
    world.write(record)


ATTACKS = {
    "forged --by": (forged, "must be signed"),
    "a key of one's own": (forged_with_a_key_of_ones_own, "a key that is not anna's"),
    "another's name": (in_anothers_name, "a key that is not ben's"),
    "a former key": (with_a_key_that_was_given_up, "anna has another key now"),
    "another fleet's order": (another_fleets, "another fleet"),
    "another population's order": (another_populations, "not what anna signed"),
    "an old order": (expired, "signed 24.0 h ago"),
    "an edited row": (edited_before_it_was_taken, "not what anna signed"),
    "a row without its signature": (stripped_of_its_signature, "must be signed"),
}


def test_no_forged_order_has_an_effect_and_each_is_written_down_with_the_reason(world):
    for number, (attack, why) in enumerate(ATTACKS.values(), 1):
        attack(world)
        world.step()
        assert not world.state.safety.safe_mode
        (*_, told) = world.refusals()
        assert (told["order"], told["number"]) == ("safetyorder", number)
        assert why in told["reason"]
    world.restart()
    world.step()
    assert len(world.refusals()) == len(ATTACKS)  # each once
    assert not world.state.safety.safe_mode
    world.write(order(at=world.now))
    world.step()
    assert world.state.safety.safe_mode


def test_an_order_that_was_followed_is_followed_no_second_time(world):
    world.write(order(at=world.now))
    world.step()
    assert world.state.safety.safe_mode
    world.give(LEAVE)
    world.step()
    assert not world.state.safety.safe_mode
    (first, _) = (entry.record for entry in world.log.read(STREAM))
    world.write(first)
    world.step()
    world.restart()
    assert world.population.memory.nonces == {
        entry.record["signed"]["nonce"] for entry in world.log.read(STREAM)
    }
    world.write(first, first)
    world.step()
    assert not world.state.safety.safe_mode
    assert [one["reason"] for one in world.refusals()] == ["it was given before"] * 3


def test_a_row_that_is_edited_in_place_breaks_the_chain_and_nothing_is_followed(world):
    world.give(LEAVE)
    (entry,) = world.log.read(STREAM)
    body = json.dumps({**entry.record, "body": {**entry.record["body"], "command": "enter"}})
    with world.engine.begin() as connection:
        connection.execute(events.update().where(events.c.stream == STREAM).values(record=body))
    with pytest.raises(DataError, match="record 1 of the event log is missing or was changed"):
        world.step()
    assert not world.state.safety.safe_mode


def test_a_clock_that_was_set_back_keeps_no_signed_order_from_counting(world):
    world.now -= 3 * DAY_S
    world.write(order(at=world.now))
    world.population.tick(world.now)
    assert world.state.safety.safe_mode
    assert world.refusals() == []


def test_an_answer_is_dated_by_whoever_signed_it_not_by_the_row(world):
    world.give(Approval(Answer.GRANTED, "ben"), by="ben")
    signed_at = world.now
    with world.engine.begin() as connection:
        (row,) = connection.execute(events.select().where(events.c.stream == STREAM)).all()
        connection.execute(events.delete().where(events.c.stream == STREAM))
    world.log.append(STREAM, [json.loads(row.record)], at=signed_at + 7200.0)
    told = orders.gather(world.log.read(STREAM), 0, NOTARY, signed_at)
    assert told.approval == Approval(Answer.GRANTED, "ben", signed_at)
