"""Which policy a fleet is under: a file whose decision thresholds are others waits until two people have agreed.

Rules of this file:
    * Decision thresholds are everything in a policy but its name, and when and how it retrains: whatever raises an alert, lets a version
      in, or takes one out, and what devices may say, without which none of these sees anything. They decide what happens to people and
      plants; a retrain only makes a candidate, which all of them judge.
    * The policy in force stays until the new one is taken. The first one is taken as it is: there is nothing to compare it with.
    * Two different people, each with the right to approve what is critical when it counts; a no takes every yes back. Their word is
      about one digest: a file that changes again is another one.
    * Pure, as a fold: `decide(book, file, roles, now) -> events`, `apply(book, event) -> book`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from fedretrain.coordinator.policy import Policy  # noqa: TC001 - `core.build` reads the annotations
from fedretrain.coordinator.roles import Right
from fedretrain.core.build import plain
from fedretrain.rollout.evidence import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedretrain.coordinator.roles import Roles

FREE = frozenset({"format", "name", "retraining"})
"""The parts of a policy that may change without anybody's word."""
PEOPLE = 2


@dataclass(frozen=True)
class Taken:
    """A policy is in force from now on.

    Attributes:
        policy: Which.
        by: Who agreed; nobody where nobody had to.
    """

    policy: Policy
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offered:
    """A file's policy has other decision thresholds than the one in force, and waits.

    Attributes:
        policy: Which.
        changed: Its keys that differ.
    """

    policy: Policy
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """A person's word on the policy that waits.

    Attributes:
        digest: Of the policy that they were shown.
        by: Who.
        answer: Yes or no.
        reason: For people.
    """

    digest: str
    by: str
    answer: Answer
    reason: str = ""


@dataclass(frozen=True)
class Unproved:
    """An answer that is not the word of whom it names: it counts for nothing.

    Attributes:
        number: Of its record.
        name: Whose it says that it is.
        reason: Why not; for people.
    """

    number: int
    name: str
    reason: str


PolicyEvent: TypeAlias = Taken | Offered | Answered | Unproved


@dataclass(frozen=True)
class PolicyBook:
    """Where a fleet's policy stands.

    Attributes:
        in_force: What decides; None before the first.
        waiting: What two people have to agree to; None for nothing.
        agreed: Who has, and when.
    """

    in_force: Policy | None = None
    waiting: Policy | None = None
    agreed: tuple[tuple[str, float], ...] = ()

    def people(self, roles: Roles, now: float) -> tuple[str, ...]:
        """Whose yes counts now."""
        if self.in_force is None:
            return ()
        since = now - self.in_force.rollout.approvals.valid_s
        return tuple(
            by for by, at in self.agreed if at >= since and not roles.lacks(by, Right.APPROVE_CRITICAL)
        )


def changes(old: Policy, new: Policy) -> tuple[str, ...]:
    """The decision thresholds that differ, as ``key: old -> new``."""
    before, after = plain(old), plain(new)
    return tuple(
        said for part in before if part not in FREE for said in _differences(part, before[part], after[part])
    )


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _differences(f"{key}.{name}", old.get(name), new.get(name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (was, becomes) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{key}[{place}]", was, becomes)
    else:
        yield f"{key}: {old} -> {new}"


def current(book: PolicyBook, file: Policy) -> Policy:
    """What decides, given what the file says now."""
    if book.in_force is None or not changes(book.in_force, file):
        return file
    return book.in_force


def decide(book: PolicyBook, file: Policy, roles: Roles, now: float) -> tuple[PolicyEvent, ...]:
    """What follows from a policy file.

    Args:
        book: Where things stand.
        file: What the file says.
        roles: Of the population.
        now: Instant.
    """
    old = book.in_force
    changed = () if old is None else changes(old, file)
    if not changed:
        is_settled = old is not None and old.digest == file.digest and book.waiting is None
        return () if is_settled else (Taken(file),)
    if book.waiting is None or book.waiting.digest != file.digest:
        return (Offered(file, changed),)
    people = book.people(roles, now)
    return (Taken(file, people),) if len(people) >= PEOPLE else ()


def apply(book: PolicyBook, event: PolicyEvent, at: float) -> PolicyBook:
    """The book after an event; an answer that nobody proved, or about another policy than the one that waits, changes nothing."""
    if isinstance(event, Taken):
        return PolicyBook(event.policy)
    if isinstance(event, Offered):
        return replace(book, waiting=event.policy, agreed=())
    if isinstance(event, Unproved) or book.waiting is None or event.digest != book.waiting.digest:
        return book
    if event.answer is not Answer.GRANTED:
        return replace(book, agreed=())
    return replace(book, agreed=(*(one for one in book.agreed if one[0] != event.by), (event.by, at)))


def refusal(book: PolicyBook, roles: Roles, said: Answered, now: float, account: str | None = None) -> str:
    """Why an answer would change nothing; empty where it counts.

    Args:
        book: Where things stand.
        roles: Of the population.
        said: The answer.
        now: Instant.
        account: From which it is given; None where that is not asked.
    """
    if book.waiting is None:
        return "no policy waits for anybody's word"
    if said.digest != book.waiting.digest:
        return "the policy file has changed since the coordinator read it: restart the coordinator, then look again"
    lacks = roles.lacks(said.by, Right.APPROVE_CRITICAL, account)
    if lacks or said.answer is not Answer.GRANTED:
        return lacks
    return (
        f"{said.by} has agreed already; {PEOPLE} different people must"
        if said.by in book.people(roles, now)
        else ""
    )
