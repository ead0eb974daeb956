"""What a population's loop remembers, as the fold of its stream: everything a new process needs to go on.

Rules of this file:
    * The stream ``population/NAME/cycle`` holds the loop's own events and, between them, notes of the shell: which orders it
      has read, in which order devices are exposed, which look it took, where the baseline lies.
    * What follows from a tick is one transaction; a crash leaves all of it or none.
    * Folding the stream again gives the same memory.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import Begun, CycleState, Trained
from fedretrain.retraining.config import Where
from fedretrain.retraining.decision import Action, Decision
from fedretrain.rollout.assignment import Assignments, assign, unassigned
from fedretrain.rollout.events import RolloutEvent
from fedretrain.server.refreshes import REFRESHED, Refreshes, folded, ordered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from fedretrain.coordinator.cycle import CycleEvent
    from fedretrain.coordinator.policy import Policy
    from fedretrain.server.event_log import Entry

ORDERS, RANKS, LOOK, BASELINE = "note_orders", "note_ranks", "note_look", "note_baseline"


def stream(population: str) -> str:
    """Where a population's events are."""
    return f"population/{population}/cycle"


@dataclass(frozen=True)
class Ranks:
    """In which order devices are exposed in a rollout.

    Attributes:
        rollout: Its number.
        blob: Digest of the frozen ranks, in the store of states.
        seed: Of the looks' permutations.
    """

    rollout: int
    blob: str
    seed: int


@dataclass(frozen=True)
class BaselineNote:
    """The champion's record: what `coordinator.watching.Kept` holds.

    Attributes:
        blob: Digest of the frozen baseline; empty while there is none.
        settled_at: When one is due; None if none is.
        recorded_at: When the record of its devices is due; None if none is.
        inputs_slot: Where windows begin that are no part of the record of inputs; None if all are.
        where: Digest of the frozen place of drift; empty before it was looked for.
        stays: Who is, or lately was, kept out: (device, first slot, slot after the last or None).
    """

    blob: str = ""
    settled_at: float | None = None
    recorded_at: float | None = None
    inputs_slot: int | None = None
    where: str = ""
    stays: tuple[tuple[int, int, int | None], ...] = ()

    def to_record(self) -> dict[str, Any]:
        """As a note of the stream."""
        return {"kind": BASELINE, **asdict(self)}

    @staticmethod
    def of(record: dict[str, Any]) -> BaselineNote:
        """Of a note of the stream."""
        given = {name: value for name, value in record.items() if name != "kind"}
        return BaselineNote(**{**given, "stays": tuple(tuple(stay) for stay in given["stays"])})


@dataclass(frozen=True)
class Memory:
    """Where a population stands.

    Attributes:
        state: Of the loop; None before it began.
        assignments: Who shall run what under the present order.
        num_records: Records of the stream that are in it.
        orders: Number of the last order that was read.
        nonces: Of every signed order that was taken: none counts twice.
        ranks: Of the last rollout.
        look: ``(step, attempt, look)`` that was taken last; None before the first of a rollout.
        baseline: Where the champion's record is.
        decision: The last decision to train in a campaign.
        given_up: How the last training ended that made no version; None before one did.
        refreshes: The last refreshes of personal state, and what devices said of them.
    """

    state: CycleState | None = None
    assignments: Assignments = field(default_factory=lambda: unassigned(np.zeros(0), 0))
    num_records: int = 0
    orders: int = 0
    nonces: frozenset[str] = frozenset()
    ranks: Ranks | None = None
    look: tuple[int, int, int] | None = None
    baseline: BaselineNote = field(default_factory=BaselineNote)
    decision: Decision | None = None
    given_up: Trained | None = None
    refreshes: Refreshes = field(default_factory=dict)

    @property
    def begun(self) -> CycleState:
        """The state of a loop that has begun."""
        assert self.state is not None
        return self.state

    @property
    def is_exposed(self) -> bool:
        """Whether some devices shall serve a candidate that is not champion yet."""
        if self.state is None or not self.state.rollout_open:
            return False
        return bool((self.assignments.version_D != self.state.champion).any())


def recall(policy: Policy, entries: Iterable[Entry], load: Callable[[str], NDArray[np.float64]]) -> Memory:
    """Fold a stream.

    Args:
        policy: The population's.
        entries: Its records, oldest first.
        load: The ranks under a digest.
    """
    memory = Memory()
    for entry in entries:
        memory = fold(policy, memory, entry.record, load)
    return memory


def fold(
    policy: Policy, memory: Memory, record: dict[str, Any], load: Callable[[str], NDArray[np.float64]]
) -> Memory:
    """The memory after one more record."""
    memory = replace(memory, num_records=memory.num_records + 1)
    kind = record.get("kind")
    if kind == ORDERS:
        nonces = memory.nonces.union(record.get("nonces", ()))
        return replace(memory, orders=record["through"], nonces=nonces)
    if kind == RANKS:
        ranks = Ranks(record["rollout"], record["blob"], record["seed"])
        champion = memory.begun.champion
        return replace(memory, ranks=ranks, look=None, assignments=unassigned(load(ranks.blob), champion))
    if kind == LOOK:
        return replace(memory, look=(record["step"], record["attempt"], record["look"]))
    if kind == BASELINE:
        return replace(memory, baseline=BaselineNote.of(record))
    if kind == REFRESHED:
        return replace(memory, refreshes=folded(memory.refreshes, record))
    return _apply(policy, memory, cycle.from_record(record))


def _apply(policy: Policy, memory: Memory, event: CycleEvent) -> Memory:
    """The memory after an event of the loop."""
    if isinstance(event.body, Begun):
        return replace(memory, state=cycle.begin(event))
    before = memory.begun
    memory = replace(memory, state=cycle.apply(policy, before, event))
    body = event.body
    if isinstance(body, Decision) and body.action is Action.RETRAIN and body.where is not Where.DEVICE:
        memory = replace(memory, decision=body)
    if isinstance(body, Trained) and not body.made:
        memory = replace(memory, given_up=body)
    if memory.begun.refresh != before.refresh:
        refreshes = ordered(memory.refreshes, memory.begun.refresh, event.at)
        memory = replace(memory, refreshes=refreshes)
    if isinstance(body, RolloutEvent) and body.order is not None:
        memory = replace(memory, assignments=assign(memory.assignments, body.order, event.at))
    if memory.begun.champion != before.champion:
        memory = replace(
            memory, assignments=_crowned(memory.assignments, before.champion, memory.begun.champion)
        )
    return memory


def _crowned(assignments: Assignments, old: int, new: int) -> Assignments:
    """Everybody who was to run the old champion runs the new one; a holdback keeps what its order says."""
    order = assignments.order
    if order is not None and order.candidate == new:
        return assignments
    version_D = np.where(assignments.version_D == old, new, assignments.version_D)
    return replace(assignments, version_D=version_D)


def describe(record: dict[str, object]) -> str:
    """An event in one line, for the log."""
    body = record.get("body")
    if not isinstance(body, dict):
        return str(record.get("kind"))
    kind = body.get("kind") or body.get("action") or ""
    reason = body.get("reason") or ""
    version = body.get("version") or body.get("champion") or ""
    subject = f"{body['subject']} {body['ident']}" if "subject" in body else ""
    negation = "not" if body.get("made") is False else ""
    parts = (negation, record.get("kind"), kind, subject, version, reason)
    return " ".join(str(part) for part in parts if part)
