"""A central retrain: a campaign on the rows that the server holds, durable, in a child process with limits.

Rules of this file:
    * The stream ``central/NAME`` is the campaign: its definition, the attempts that failed, its end. `read_central` folds it.
    * A child trains from the beginning of the definition and leaves its weights; the leader writes the end. A child that is killed, or whose
      coordinator is, leaves nothing: it is repeated, and a result counts once, by the number of its record.
    * An attempt that fails by itself (a crash, the limits) is counted; after so many the campaign ends without weights.
    * The rows are those of the definition, by digest: lineage says what was trained on, not what a folder held some time.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.manifest import Strategy, TrainingRecord
from fedretrain.core.build import build, plain
from fedretrain.core.child import Backoff, Child, Command, last_line
from fedretrain.core.errors import DataError
from fedretrain.server.central_child import ENDED, CentralOrders
from fedretrain.server.training_file import PoolTraining  # noqa: TC001 - `core.build` reads the annotations
from fedretrain.training.plan import TrainingPlan  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.artifacts.at_rest import StorePlace
    from fedretrain.server.event_log import EventLog, Fence

_NICENESS = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CentralDefinition:
    """All that a central retrain is, as plain data.

    Attributes:
        campaign: Its name.
        plan: Model, method and local training.
        rules: Rounds and limits.
        pool: Digest of the rows.
        pipeline: Digest of the champion's fitted features, in the content store.
        base: Digest of every parameter that it begins with, in the content store; empty: from scratch.
        then_federated: Whether a federated campaign begins with what it makes.
    """

    campaign: str
    plan: TrainingPlan
    rules: PoolTraining
    pool: str
    pipeline: str
    base: str = ""
    then_federated: bool = False

    @property
    def recipe(self) -> str:
        """The strategy's own name."""
        return "incremental" if self.base else "full"


@dataclass(frozen=True)
class CentralRecord:
    """A central retrain as its stream tells it.

    Attributes:
        definition: What it is.
        num_failed: Attempts that failed by themselves.
        end: Why it ended; empty while it goes on.
        weights: Digest of every parameter that it made; empty: none.
        number: Of the last record.
    """

    definition: CentralDefinition
    num_failed: int = 0
    end: str = ""
    weights: str = ""
    number: int = 0

    @property
    def seeds(self) -> bool:
        """Whether a federated campaign is to begin with what it made."""
        return bool(self.weights) and self.definition.then_federated


def central_stream(campaign: str) -> str:
    """The name of a central retrain's stream."""
    return f"central/{campaign}"


def define_central(log: EventLog, definition: CentralDefinition, *, at: float, fence: Fence | None) -> None:
    """Begin its stream; the caller has seen that there is none."""
    record = {"type": "defined", "definition": plain(definition)}
    log.append(central_stream(definition.campaign), [record], at=at, fence=fence, after=0)


def read_central(log: EventLog, campaign: str) -> CentralRecord | None:
    """Fold its stream; None where there is none.

    Raises:
        DataError: If it cannot be understood.
    """
    found: CentralRecord | None = None
    for entry in log.read(central_stream(campaign)):
        record, kind = entry.record, entry.record.get("type")
        if found is None:
            found = CentralRecord(build(CentralDefinition, record["definition"]))
        elif kind == "failed":
            found = replace(found, num_failed=found.num_failed + 1)
        elif kind == "ended":
            found = replace(found, end=record["reason"], weights=record["weights"])
        else:
            raise DataError(
                f"a record of kind {kind!r}",
                where=central_stream(campaign),
                fix="use the release that wrote it",
            )
        found = replace(found, number=entry.number)
    return found


def central_lineage(record: CentralRecord, policy: str) -> TrainingRecord:
    """Where the weights of a central retrain come from: the rows are named by their digest.

    Args:
        record: Which ended.
        policy: Digest of the policy file.
    """
    definition = record.definition
    return TrainingRecord(
        strategy=Strategy.CENTRAL,
        recipe=definition.recipe,
        snapshot=definition.pool,
        rounds=definition.rules.num_rounds,
        code_version=version_of("fedretrain"),
        policy=policy,
    )


def seed_lineage(record: CentralRecord) -> tuple[tuple[str, str], ...]:
    """What a campaign's record says of the central retrain that it began with."""
    definition = record.definition
    return (
        ("seed.pool", definition.pool),
        ("seed.recipe", definition.recipe),
        ("seed.weights", record.weights),
    )


class CentralProcess:
    """Sees to it that a central retrain ends. Mutable.

    Args:
        campaign: Which; it is defined.
        log: The event log.
        fence: The leader's lease.
        store: Where weights are, here and in the child.
        pool: Folder of the rows.
        folder: For the child's log and its result.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        campaign: str,
        log: EventLog,
        fence: Fence | None,
        store: StorePlace,
        pool: str,
        folder: Path,
        clock: Callable[[], float],
    ) -> None:
        self.campaign = campaign
        self._log, self._fence, self._clock = log, fence, clock
        self._store, self._pool, self._folder = store, pool, folder
        self._backoff = Backoff()
        self._child: Child | None = None
        self._begun_at = 0.0
        self._told: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pid(self) -> int | None:
        """Of the child; None if none runs."""
        return None if self._child is None else self._child.pid

    def ensure(self, now: float) -> bool:
        """Start, watch and end the child; whether the retrain goes on. Call it every second or so.

        Args:
            now: Monotonic instant, seconds.
        """
        record = read_central(self._log, self.campaign)
        assert record is not None, self.campaign
        if record.end:
            self.stop()
            return False
        if self._child is None:
            if self._backoff.is_due(now):
                self._start(record, now)
        elif not self._child.is_alive:
            self._finished(record, now)
        elif now - self._begun_at > record.definition.rules.max_s:
            self._failed(record, f"it took longer than {record.definition.rules.max_s:g} s", now)
        return True

    def stop(self) -> None:
        """End the child; the retrain is repeated where somebody takes it up. May be called twice."""
        if self._child is not None:
            self._child.stop()
            self._child = None
        if self._told is not None:
            self._told.cleanup()
            self._told = None

    def _start(self, record: CentralRecord, now: float) -> None:
        definition = record.definition
        self._folder.mkdir(parents=True, exist_ok=True)
        self._told = tempfile.TemporaryDirectory(prefix="central-")
        orders = CentralOrders(
            store=self._store,
            plan=definition.plan,
            num_rounds=definition.rules.num_rounds,
            pool=self._pool,
            pool_digest=definition.pool,
            pipeline=definition.pipeline,
            base=definition.base,
            out=str(Path(self._told.name) / ENDED),
        )
        command = Command(
            ("-m", "fedretrain.server.central_child"),
            self._log_file,
            {**orders.to_env(), "OMP_NUM_THREADS": "1"},
            memory_bytes=definition.rules.memory_bytes,
            niceness=_NICENESS,
        )
        self._child, self._begun_at = Child(command), now
        self._child.start()
        self._backoff.begun(now)
        _log.info("%s: a central retrain (%s) begins", self.campaign, definition.recipe)

    @property
    def _log_file(self) -> Path:
        return self._folder / f"{self.campaign}-central.log"

    def _finished(self, record: CentralRecord, now: float) -> None:
        """The child has ended: its weights count if it says that they are whole."""
        assert self._child is not None
        assert self._told is not None
        status, result = self._child.exit_status, Path(self._told.name) / ENDED
        digest = result.read_text() if status == 0 and result.exists() else ""
        if not digest:
            how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
            self._failed(record, f"it ended with {how}: {last_line(self._log_file)}", now)
            return
        self._append(record, {"type": "ended", "reason": "complete", "weights": digest})
        self.stop()

    def _failed(self, record: CentralRecord, reason: str, now: float) -> None:
        self.stop()
        self._backoff.failed(now)
        attempt = record.num_failed + 1
        records: list[dict[str, Any]] = [{"type": "failed", "reason": reason}]
        if attempt >= record.definition.rules.attempts:
            records.append({"type": "ended", "reason": f"{attempt} attempts failed: {reason}", "weights": ""})
        _log.warning("%s: attempt %d failed: %s", self.campaign, attempt, reason)
        self._append(record, *records)

    def _append(self, record: CentralRecord, *records: dict[str, Any]) -> None:
        stream = central_stream(self.campaign)
        self._log.append(stream, records, at=self._clock(), fence=self._fence, after=record.number)
