"""The policy of a population as the event log has it: what is in force, what waits, and whose word was given.

Rules of this file:
    * The stream ``population/NAME/policy`` is the fold of `coordinator.policy_book`. A policy is in it whole: the file of the one in
      force may have been overwritten.
    * The leader takes and offers, under its fence; people answer from the command line.
    * An answer that is not the word of whom it names counts for nothing, and the leader writes that down once: later keys change nothing
      about it. A signed answer is dated by whoever signed it, and good for as long as the policy's approvals.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator import policy_book
from fedretrain.coordinator.policy import read_policy
from fedretrain.coordinator.policy_book import Answered, Offered, PolicyBook, Taken, Unproved, changes
from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.server.orders import recorded
from fedretrain.server.people import OPEN, nonce_of, signature_of
from fedretrain.server.training_file import read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.coordinator.policy import Policy
    from fedretrain.coordinator.policy_book import PolicyEvent
    from fedretrain.coordinator.roles import Roles
    from fedretrain.server.event_log import Entry, EventLog, Fence
    from fedretrain.server.orders import Signer
    from fedretrain.server.people import Notary

KINDS: Mapping[str, type] = {"taken": Taken, "offered": Offered, "answered": Answered, "unproved": Unproved}
_log = logging.getLogger(__name__)
_NAMES = {cls: name for name, cls in KINDS.items()}


def stream(population: str) -> str:
    """Where it is."""
    return f"population/{population}/policy"


def recall(log: EventLog, population: str, notary: Notary) -> PolicyBook:
    """Fold the stream.

    Args:
        log: The event log.
        population: Which.
        notary: Says which answers are nobody's word.

    Raises:
        DataError: If a record cannot be understood.
    """
    return _read(log, population, notary).book


def in_force(log: EventLog, population: str) -> Policy | None:
    """The policy that decides; None before the first. The leader has taken it, whatever answers wait."""
    return _read(log, population, OPEN).book.in_force


@dataclass
class _Folded:
    """A book, how far it was read, and the answers in it that nobody proved and nobody has written down as such."""

    book: PolicyBook = field(default_factory=PolicyBook)
    number: int = 0
    unproved: dict[int, Unproved] = field(default_factory=dict)


def _read(log: EventLog, population: str, notary: Notary) -> _Folded:
    found, entries = _Folded(), list(log.read(stream(population)))
    taken = [place for place, entry in enumerate(entries) if entry.record.get("kind") == "taken"]
    begin = taken[-1] if taken else 0  # nothing before it counts any more
    passed = {entry.record["body"]["number"] for entry in entries if entry.record.get("kind") == "unproved"}
    nonces = {nonce_of(entry.record) for entry in entries[:begin]}
    for entry in entries[begin:]:
        event, at = _event_of(entry, population), entry.at
        if isinstance(event, Answered):
            reason = notary.refusal(entry.record, at, nonces)
            if reason or entry.number in passed:
                found.unproved[entry.number] = Unproved(entry.number, event.by, reason)
                found.number = entry.number
                continue
            signature = signature_of(entry.record)
            if signature is not None:
                at = signature.at
                nonces.add(signature.nonce)
        found.book, found.number = policy_book.apply(found.book, event, at), entry.number
    for number in passed:
        found.unproved.pop(number, None)
    return found


def _event_of(entry: Entry, population: str) -> PolicyEvent:
    """What a record says.

    Raises:
        DataError: If it cannot be understood.
    """
    cls = KINDS.get(str(entry.record.get("kind")))
    if cls is None:
        raise DataError(
            f"a record of kind {entry.record.get('kind')!r}",
            where=stream(population),
            fix="use the release that wrote it",
        )
    try:
        event: PolicyEvent = build(cls, entry.record["body"], where=stream(population))
    except ConfigError as error:
        raise DataError(
            f"record {entry.number} is of another release: {error.what}",
            where=stream(population),
            fix="use the release that wrote it",
        ) from error
    return event


def keep(
    log: EventLog,
    population: str,
    file: Policy,
    roles: Roles,
    notary: Notary,
    fence: Fence | None,
    now: float,
) -> PolicyBook:
    """Take or offer what the file says, and write down what nobody proved; where things stand then.

    Args:
        log: The event log.
        population: Which.
        file: Its policy file's.
        roles: Of the population.
        notary: Says which answers are nobody's word.
        fence: The leader's lease.
        now: Instant, seconds since the epoch.

    Raises:
        FencedError: If somebody else decides now.
    """
    known = _read(log, population, notary)
    for event in (*known.unproved.values(), *policy_book.decide(known.book, file, roles, now)):
        log.append(stream(population), [record_of(event)], at=now, fence=fence, after=known.number)
        known.book, known.number = policy_book.apply(known.book, event, now), known.number + 1
    return known.book


def answer(log: EventLog, population: str, said: Answered, at: float, signer: Signer | None = None) -> None:
    """Write a person's word down, signed with their key where there is one; the leader counts it at its next turn."""
    log.append(stream(population), [recorded("answered", plain(said), population, at, signer)], at=at)


def record_of(event: PolicyEvent) -> dict[str, Any]:
    """As a record of the stream."""
    return {"kind": _NAMES[type(event)], "body": plain(event)}


class Policies:
    """What each population of a leader decides by. Mutable.

    Args:
        log: The event log.
        notaries: Of each population.
    """

    def __init__(self, log: EventLog, notaries: Mapping[str, Notary]) -> None:
        self._log, self._notaries = log, notaries
        self._offered: dict[str, tuple[Policy, int]] = {}

    def open(self, population: str, file: str, roles: Roles, fence: Fence, now: float) -> Policy:
        """The policy in force, the file being read now.

        Args:
            population: Which.
            file: Its policy file.
            roles: Of the population.
            fence: The leader's lease.
            now: Instant, seconds since the epoch.
        """
        policy = read_policy(read_yaml(Path(file)), where=file)
        notary = self._notaries[population]
        book = keep(self._log, population, policy, roles, notary, fence, now)
        assert book.in_force is not None
        self._offered.pop(population, None)
        if book.waiting is not None:
            self._offered[population] = (policy, 0)
            _log.warning(
                "%s: the policy file has other decision thresholds (%s): the old ones stay until two people agree "
                "(fedretrain policy approve)",
                population,
                "; ".join(changes(book.in_force, policy)),
            )
        return book.in_force

    def is_taken(self, population: str, roles: Roles, fence: Fence, now: float) -> bool:
        """Whether the policy that waited was taken just now: the population is to be opened anew."""
        if population not in self._offered:
            return False
        (policy, read), end = self._offered[population], self._log.head(stream(population)).counter
        if end == read:
            return False
        self._offered[population] = (policy, end)
        notary = self._notaries[population]
        if keep(self._log, population, policy, roles, notary, fence, now).waiting is not None:
            return False
        del self._offered[population]
        _log.info("%s: two people agreed to the policy %s (%s)", population, policy.name, policy.digest[:12])
        return True


def waits(book: PolicyBook, roles: Roles, now: float) -> dict[str, Any] | None:
    """The policy that waits, for people; None where none does."""
    if book.waiting is None or book.in_force is None:
        return None
    return {
        "digest": book.waiting.digest,
        "changed": list(changes(book.in_force, book.waiting)),
        "agreed": list(book.people(roles, now)),
        "people": policy_book.PEOPLE,
    }
