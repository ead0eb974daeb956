"""What people signed, looked at again: whose word the records of the log are, long after they were followed.

Rules of this file:
    * A record that the coordinator refused proves nothing and is no damage: it is counted apart.
    * A signature is checked under the key that it names, which must be, or have been, its giver's (`people.Person.former`).
    * Who has signed in a stream does so ever after: a later record in that name without a signature is wrong. So is a signed order that
      the loop has taken, and that is not among the orders any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedretrain.server import fleet, labelling, memory, orders, policies
from fedretrain.server.people import giver, nonce_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.server.event_log import EventLog
    from fedretrain.server.people import Notary


def refused(log: EventLog, population: str) -> Mapping[str, Mapping[int, str]]:
    """By stream and number: why the coordinator found, when it took a record up, that it is not the word of whom it names."""
    ordered, answered = orders.stream(population), policies.stream(population)
    return {
        ordered: _reasons(log, memory.stream(population), "refused"),
        answered: _reasons(log, answered, "unproved"),
    }


def _reasons(log: EventLog, stream: str, kind: str) -> dict[int, str]:
    bodies = [entry.record["body"] for entry in log.read(stream) if entry.record.get("kind") == kind]
    return {body["number"]: body["reason"] for body in bodies if body.get("number")}


def check_signatures(log: EventLog, population: str, notary: Notary) -> tuple[str, list[str]]:
    """What was checked of people's records, and what is wrong with them.

    Args:
        log: The event log.
        population: Whose.
        notary: Has everybody's keys, those of before too.

    Raises:
        DataError: If a stream is damaged.
    """
    passed = refused(log, population)
    num_good, nonces, wrong = 0, set[str](), list[str]()
    for stream in (
        one(population) for one in (orders.stream, policies.stream, fleet.stream, labelling.stream)
    ):
        found = _look(log, stream, notary, passed.get(stream, {}))
        num_good += found.num_good
        nonces |= found.nonces
        wrong += [f"{stream}: {one}" for one in found.wrong]
    gone = sorted(_taken(log, population) - nonces)
    wrong += [
        f"{orders.stream(population)}: the signed order {one} was followed, and is gone" for one in gone
    ]
    return f"{num_good} good, {sum(map(len, passed.values()))} refused when they came", wrong


@dataclass
class _Looked:
    """Of one stream: how many records are signed well, the nonces of all that are signed, and what is wrong."""

    num_good: int = 0
    nonces: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def _look(log: EventLog, stream: str, notary: Notary, passed: Mapping[int, str]) -> _Looked:
    found, signers = _Looked(), set[str]()
    for entry in log.read(stream):
        by, what = giver(entry.record), notary.damage(entry.record)
        if not by or entry.number in passed:
            continue
        nonce = nonce_of(entry.record)
        if nonce:
            found.nonces.add(nonce)
            signers.add(by)
        elif by in signers:
            what = what or f"{by} has not signed it, as they did before"
        if what:
            found.wrong.append(f"record {entry.number}: {what}")
        elif nonce:
            found.num_good += 1
    return found


def _taken(log: EventLog, population: str) -> set[str]:
    """Nonces of the signed orders that the loop has followed."""
    notes = (entry.record for entry in log.read(memory.stream(population)))
    return {nonce for note in notes if note.get("kind") == memory.ORDERS for nonce in note.get("nonces", ())}
