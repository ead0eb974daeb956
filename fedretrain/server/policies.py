"""The policy of a population as the event log has it: what is in force, what waits, and whose word was given.

Rules of this file:
    * The stream ``population/NAME/policy`` is the fold of `coordinator.policy_book`. A policy is in it whole: the file of the one in
      force may have been overwritten.
    * The leader takes and offers, under its fence; people answer from the command line.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator import policy_book
from fedretrain.coordinator.policy import read_policy
from fedretrain.coordinator.policy_book import Answered, Offered, PolicyBook, Taken, changes
from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.server.account import account
from fedretrain.server.training_file import read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.coordinator.policy import Policy
    from fedretrain.coordinator.policy_book import PolicyEvent
    from fedretrain.coordinator.roles import Roles
    from fedretrain.server.event_log import EventLog, Fence

KINDS: Mapping[str, type] = {"taken": Taken, "offered": Offered, "answered": Answered}
_log = logging.getLogger(__name__)
_NAMES = {cls: name for name, cls in KINDS.items()}


def stream(population: str) -> str:
    """Where it is."""
    return f"population/{population}/policy"


def recall(log: EventLog, population: str) -> PolicyBook:
    """Fold the stream.

    Raises:
        DataError: If a record cannot be understood.
    """
    return _read(log, population).book


@dataclass
class _Folded:
    """A book, and how far it was read."""

    book: PolicyBook = field(default_factory=PolicyBook)
    number: int = 0


def _read(log: EventLog, population: str) -> _Folded:
    found, entries = _Folded(), list(log.read(stream(population)))
    taken = [place for place, entry in enumerate(entries) if entry.record.get("kind") == "taken"]
    for entry in entries[taken[-1] if taken else 0 :]:  # nothing before it counts any more
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
        found.book, found.number = policy_book.apply(found.book, event, entry.at), entry.number
    return found


def keep(
    log: EventLog, population: str, file: Policy, roles: Roles, fence: Fence | None, now: float
) -> PolicyBook:
    """Take or offer what the file says; where things stand then.

    Args:
        log: The event log.
        population: Which.
        file: Its policy file's.
        roles: Of the population.
        fence: The leader's lease.
        now: Instant, seconds since the epoch.

    Raises:
        FencedError: If somebody else decides now.
    """
    known = _read(log, population)
    for event in policy_book.decide(known.book, file, roles, now):
        log.append(stream(population), [record_of(event)], at=now, fence=fence, after=known.number)
        known.book, known.number = policy_book.apply(known.book, event, now), known.number + 1
    return known.book


def answer(log: EventLog, population: str, said: Answered, at: float) -> None:
    """Write a person's word down; the leader counts it at its next turn."""
    log.append(stream(population), [{**record_of(said), "account": account()}], at=at)


def record_of(event: PolicyEvent) -> dict[str, Any]:
    """As a record of the stream."""
    return {"kind": _NAMES[type(event)], "body": plain(event)}


class Policies:
    """What each population of a leader decides by. Mutable.

    Args:
        log: The event log.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
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
        book = keep(self._log, population, policy, roles, fence, now)
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
        if keep(self._log, population, policy, roles, fence, now).waiting is not None:
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
