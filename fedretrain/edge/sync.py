"""One visit to the coordinator: a heartbeat, what it tells, what there is to send.

Rules of this file:
    * The answer's time is trusted: it is fresh, and it came over a connection whose other end the fleet's authority vouches
      for. Old signatures raise the floor alone.
    * An assignment is verified and kept before it is followed, then a notice to the whole population; a withdrawn version is left before
      anything is fetched.
    * What cannot be had now is had next time. Only a heartbeat that nobody answers is an error.
    * After something has changed a second heartbeat says so at once; what a notice has changed the next one says.
    * A heartbeat bears witness of the privacy ledger: of the newest head in any signed list that was ever verified here.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from fedretrain.artifacts.assignment import AssignmentError, verify
from fedretrain.artifacts.envelope import Refusal
from fedretrain.artifacts.notice import NoticeError
from fedretrain.artifacts.notice import verify as verify_notice
from fedretrain.artifacts.trust.client import TrustClient
from fedretrain.artifacts.trust.root import online_keys, read_root
from fedretrain.artifacts.trust.words import Block, TrustError
from fedretrain.core.clock import Anchor
from fedretrain.core.errors import DataError
from fedretrain.edge.annotating import take_annotations
from fedretrain.edge.conditions import conditions
from fedretrain.edge.control import ControlClient, ControlError
from fedretrain.edge.evaluating import Evaluating
from fedretrain.edge.joining import credentials, renew, renewal_at
from fedretrain.wire.control import CALL_S, PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedretrain.artifacts.assignment import Assignment
    from fedretrain.artifacts.trust.words import TargetInfo
    from fedretrain.edge.device import DeviceRuntime

BATCH_BYTES = 1 << 20
RENEW_AGAIN_S = 3600.0
"""Until a renewal that was asked for is asked for again."""
MAX_BATCHES = 64
"""In one visit: a long backlog does not keep a device from hearing of a rollback."""


@dataclass(frozen=True)
class Visit:
    """How the last visits went.

    Attributes:
        heard_at: When the coordinator was heard last, seconds since the epoch; 0 for never.
        trust_version: Of the trust metadata that was refreshed last.
        problem: What went wrong last; empty if nothing did.
        next_s: Until the next visit, as the coordinator wishes.
    """

    heard_at: float = 0.0
    trust_version: int = -1
    problem: str = ""
    next_s: float = 60.0


class Syncing:
    """Visits for one device.

    Args:
        runtime: The device.
    """

    def __init__(self, runtime: DeviceRuntime) -> None:
        self._runtime = runtime
        self._client: ControlClient | None = None
        self._trust = TrustClient(runtime.folder / "trust", runtime.joined.root.encode(), self._fetch_trust)
        self._evaluating = Evaluating(runtime)
        self._busy = threading.Lock()
        self._renew_from_s = 0.0
        self.visit = Visit()
        with contextlib.suppress(TrustError):  # the first visit refreshes
            self._trust.recall(runtime.store.clock.look().guess_at)
        self._learn()

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def sync(self, *, timeout_s: float | None = None) -> float:
        """See `DeviceRuntime.sync`. A second caller waits for the first."""
        with self._busy:
            # Where the database is damaged nothing comes of a visit, and the next one is soon enough.
            self.visit = replace(self.visit, next_s=self._runtime.config.heartbeat_s)
            try:
                with self._runtime.mending():
                    self._visit(timeout_s)
            except ControlError as error:
                if error.is_silence:  # the next visit has a connection of its own: this one may be half-open
                    self.close()
                raise
            return self.visit.next_s

    def _visit(self, timeout_s: float | None) -> None:
        reply = self._heartbeat(timeout_s)
        before = self._runtime.serves, self._runtime.remembered.value
        problem = self._follow(reply)
        # A notice is heard by all within one heartbeat: if all came twice for it, the last would wait for twice as long.
        if not reply.notice and (self._runtime.serves, self._runtime.remembered.value) != before:
            reply = self._heartbeat(timeout_s)
        problem = self._renew() or problem
        self.visit = replace(self.visit, problem=problem, next_s=reply.next_s or self.visit.next_s)
        self._runtime.flush()
        if reply.annotations:
            take_annotations(self._runtime, self._connection())
        self._send()
        self._evaluate(reply.evaluation)

    def _evaluate(self, envelope: bytes) -> None:
        """Answer the federated evaluation that is on, once what was said before is sent."""
        if not envelope:
            return
        try:
            if self._evaluating.answer(envelope, self._installable, self._download):
                self._send()
        except (ControlError, DataError) as error:  # not for this device, or not to be had just now
            self.visit = replace(self.visit, problem=str(error))

    def _renew(self) -> str:
        """Renew the certificate once that is due and the time is trusted; what went wrong."""
        runtime, now = self._runtime, self._runtime.store.clock.look().at
        if now is None or runtime.now_s < self._renew_from_s:
            return ""
        try:
            if now >= renewal_at(runtime.joined):
                self._renew_from_s = runtime.now_s + RENEW_AGAIN_S
                runtime.joined = renew(self._connection(), runtime.folder, runtime.joined)
                self.close()  # the next call shows the new one
        except (ControlError, DataError) as error:
            return f"the certificate cannot be renewed: {error}"
        return ""

    def _heartbeat(self, timeout_s: float | None) -> pb.HeartbeatReply:
        runtime, client = self._runtime, self._connection()
        reply = client.heartbeat(heartbeat_of(runtime), timeout_s=timeout_s or CALL_S)
        store = runtime.store
        if runtime.answering.trust(reply.server_at):
            state = store.clock.look()
            assert state.offset_s is not None  # it was trusted just now
            store.outbox.anchor(Anchor(state.boot, state.offset_s))
            store.database.raise_floor(reply.server_at)
        slot_s = max(reply.slot_s, 0.0)  # below 0: the policy wants no telemetry
        if reply.slot_s and slot_s != runtime.remembered.value.slot_s:
            runtime.remembered.note(lambda told: replace(told, slot_s=slot_s))
        self.visit = replace(self.visit, heard_at=reply.server_at)
        return reply

    def _follow(self, reply: pb.HeartbeatReply) -> str:
        """Do what the reply tells; what went wrong."""
        runtime, problem = self._runtime, ""
        if reply.trust_version != self.visit.trust_version:
            problem = self._refresh(reply.trust_version)
        try:
            problem = self._take(reply.assignment) or problem
            # After it: a notice counts by how new the assignment is.
            problem = self._heed(reply.notice) or problem
            if runtime.follower.leave_withdrawn():
                runtime.serve()
        except DataError as error:  # the disk would not have it: nobody follows it
            return str(error)
        runtime.serve()  # safe mode needs no download
        try:
            runtime.follower.install(self._installable, self._download, runtime.now_s)
        except (ControlError, TrustError) as error:
            problem = str(error)
        runtime.serve()
        return problem

    def _take(self, envelope: bytes) -> str:
        """Remember what this device shall run; what is wrong with it."""
        if not envelope:
            return ""
        runtime = self._runtime
        try:
            assignment = self._verified(envelope)
        except AssignmentError as error:  # not for this device, or not to be believed
            return str(error)
        runtime.store.clock.raise_floor(assignment.issued_at)
        runtime.remembered.change(lambda told: told.told(assignment))
        return ""

    def _heed(self, envelope: bytes) -> str:
        """Remember what the whole population must leave, unless this device's assignment is as new; what is wrong with it."""
        if not envelope:
            return ""
        runtime = self._runtime
        try:
            notice = verify_notice(
                envelope,
                [bytes.fromhex(runtime.remembered.value.assignment_key)],
                population=runtime.joined.population,
                now=runtime.store.clock.look().guess_at,
            )
        except NoticeError as error:
            return str(error)
        runtime.remembered.change(lambda told: told.heeding(notice))
        return ""

    def _verified(self, envelope: bytes) -> Assignment:
        """The assignment, by the key that is known, or by the one that a refresh tells."""
        try:
            return self._verify(envelope)
        except AssignmentError as error:
            if error.refusal is not Refusal.BAD_SIGNATURE or self._refresh(self.visit.trust_version):
                raise
            return self._verify(envelope)

    def _verify(self, envelope: bytes) -> Assignment:
        runtime, told = self._runtime, self._runtime.remembered.value
        return verify(
            envelope,
            [bytes.fromhex(told.assignment_key)],
            device=runtime.joined.device,
            population=runtime.joined.population,
            now=runtime.store.clock.look().guess_at,
            last_counter=told.counter,
            last_digest=told.digest,
        )

    def _refresh(self, trust_version: int) -> str:
        """Fetch the signed list; what went wrong."""
        try:
            self._trust.refresh(self._runtime.store.clock.look().guess_at)
        except TrustError as error:
            self._learn()
            return str(error)
        self._learn()
        self.visit = replace(self.visit, trust_version=trust_version)
        return ""

    def _learn(self) -> None:
        """Remember what outlives the list that is known: the key that signs assignments, the newest head of the privacy ledger."""
        remembered = self._runtime.remembered
        remembered.note(lambda told: replace(told, assignment_key=self._assignment_key(told.assignment_key)))
        with contextlib.suppress(TrustError):  # no list is known yet
            newest = self._trust.newest_charged(self._runtime.joined.population)
            if newest is not None:
                head = newest.ledger_counter, newest.ledger_hash
                remembered.note(lambda told: told.witnessing(*head))

    def _assignment_key(self, known: str) -> str:
        """By the newest root: safe mode must be heard also when the list has expired."""
        try:
            return self._trust.assignment_key().hex()
        except TrustError:
            return (
                known or online_keys(read_root(self._runtime.joined.root.encode()).signed)["assignment"].hex()
            )

    def _installable(self, digest: str) -> TargetInfo | None:
        runtime = self._runtime
        state = runtime.store.clock.look()
        if state.is_behind:
            raise TrustError(Block.CLOCK_BEHIND, "the clock is before the last signed time")
        population = runtime.joined.population
        found = self._trust.installable(digest, population=population, now=state.guess_at)
        if found is None and not self._refresh(self.visit.trust_version):
            found = self._trust.installable(digest, population=population, now=state.guess_at)
        return found

    def _download(self, digest: str, max_bytes: int) -> bytes:
        return self._connection().fetch_blob(digest, max_bytes)

    def _fetch_trust(self, name: str, max_bytes: int) -> Iterator[bytes]:
        return self._connection().fetch_trust(name, max_bytes)

    def _send(self) -> None:
        """Batches, until nothing waits."""
        store = self._runtime.store
        for _ in range(MAX_BATCHES):
            batch = store.outbox.pending(BATCH_BYTES)
            if not batch:
                break
            accepted = self._connection().send(
                batch, store.clock.instant(), store.database.identity.installation
            )
            store.outbox.acknowledge(accepted)
            if not accepted:
                break  # all of it was refused: the same again would be too
        store.outbox.flush(store.clock.instant())

    def _connection(self) -> ControlClient:
        if self._client is None:
            runtime = self._runtime
            self._client = ControlClient(runtime.joined.control, credentials(runtime.folder, runtime.joined))
        return self._client


def heartbeat_of(runtime: DeviceRuntime) -> pb.HeartbeatRequest:
    """What a device says of itself."""
    told, store = runtime.remembered.value, runtime.store
    state, outbox = store.clock.look(), store.outbox.status()
    serving = runtime.answering.serving
    return pb.HeartbeatRequest(
        protocol=PROTOCOL,
        agent_version=agent_version(),
        installation=store.database.identity.installation,
        boot=store.database.identity.boot,
        clock_at=state.guess_at,
        clock_trusted=state.at is not None,
        serves=serving.version,
        shadows=serving.candidate,
        counter=told.counter,
        healthy=runtime.is_healthy,
        refused=told.refused,
        refused_reason=told.refused_reason,
        holds=list(runtime.slots.state.held),
        pending_records=outbox.num_stored + outbox.num_buffered,
        conditions=conditions(
            runtime.folder, sum(serving.rules.told.values()), metered=runtime.config.metered
        ),
        ledger_counter=told.ledger_counter,
        ledger_hash=told.ledger_hash,
    )


def agent_version() -> str:
    """Of the installed package."""
    try:
        return version("fedretrain")
    except PackageNotFoundError:
        return "unknown"
