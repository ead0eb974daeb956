"""One logical device: it predicts, keeps, reports, follows what it is told, and saves itself from a bad model.

Rules of this file:
    * It needs nobody to predict: after a start it serves its slot before it talks to anyone.
    * `tick` does what needs no network, `sync` what needs one; either may be called from its own thread. `predict` and `label`
      from any.
    * A damaged database is set aside, and the device goes on with a new one and says so.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedretrain.artifacts.at_rest import StorePlace
from fedretrain.core.checks import require
from fedretrain.core.errors import DataError, UserError
from fedretrain.core.since_boot import since_boot
from fedretrain.edge.answering import Answer, Answering, Serving
from fedretrain.edge.database import is_damage
from fedretrain.edge.erasing import erase_store
from fedretrain.edge.examples import Stream
from fedretrain.edge.following import Follower
from fedretrain.edge.joining import Joined, join
from fedretrain.edge.memory import MemoryFile
from fedretrain.edge.outbox import OutboxDamagedError
from fedretrain.edge.past import Past
from fedretrain.edge.preparing import Preparing
from fedretrain.edge.renewing import Renewing
from fedretrain.edge.serving import Served
from fedretrain.edge.slots import CONTENT, Slots
from fedretrain.edge.status import DeviceStatus
from fedretrain.edge.store import Store
from fedretrain.edge.sync import Syncing
from fedretrain.edge.telling import Baselines, Telling
from fedretrain.edge.watch import HealthWatch
from fedretrain.wire.control import encode_alert
from fedretrain.wire.sequence import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from fedretrain.artifacts.package import Package
    from fedretrain.edge.config import DeviceConfig, EdgeConfig
    from fedretrain.edge.following import Wanted
    from fedretrain.edge.lineage import Use
    from fedretrain.edge.sync import Visit

STORE_KEY = "store.key"
"""The key of the models of all devices of an agent, where its configuration names no other."""
_DAY_S = 86_400.0


class DeviceRuntime:
    """A logical device that runs. Close it, or use it as a context manager.

    Args:
        config: The agent's.
        device: The device's own.
        folder: Its own; None: under the agent's, by its name.
        monotonic: Seconds that never jump.
        wall: Seconds since the epoch, as the machine has them.
        memory: Bytes of memory of this process's own, where this is the only model in it; None: memory is not judged.
        wake: Called when there is something to say at once.
        ending: Once set, nobody is asked for an enrolment any longer.

    Raises:
        ConfigError: If it was never enrolled and has no token that counts, or the authority is another fleet's.
        ControlError: If it was never enrolled and nobody answers.
        DataError: If the folder cannot be used.
    """

    def __init__(
        self,
        config: EdgeConfig,
        device: DeviceConfig,
        folder: Path | None = None,
        *,
        monotonic: Callable[[], float] = since_boot,
        wall: Callable[[], float] = time.time,
        memory: Callable[[], int] | None = None,
        wake: Callable[[], None] = lambda: None,
        ending: threading.Event | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.folder = folder or Path(config.folder) / device.name
        self._monotonic, self._wall, self._memory, self._wake = monotonic, wall, memory, wake
        _make(self.folder)
        _make(self.personal_folder)
        self.joined: Joined = join(config, device, self.folder, ending)
        self.stream = Stream(device.name, self.joined.population)
        self._lock = threading.RLock()
        self.remembered = MemoryFile(self.folder)
        models = self.folder / "models"
        kept = StorePlace(str(models / CONTENT), config.at_rest, str(Path(config.folder) / STORE_KEY))
        self.slots = Slots(models, config.slots_kept, kept.open())
        self.follower = Follower(self.slots, self.remembered, self.joined.population)
        self.baselines = Baselines(self.folder / "baselines")
        self._telling = Telling(self.joined.number, self.baselines)
        past = Past(self.folder)
        self._preparing = Preparing(self.personal_folder, past, self.remembered, config.refit)
        self._renewing = Renewing(self, self._preparing, self._lock)
        self.answering = Answering(self._open_store(), device, past, self._first_prediction)
        self._checked_s = self._flushed_s = monotonic()
        self._served_by: tuple[object, ...] = ()
        self._syncing = Syncing(self)
        if self.remembered.was_lost:
            self.alert("memory_lost", detail="what the device was told last could not be read")
        self.follower.recall()
        self.serve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def store(self) -> Store:
        """The open database."""
        return self.answering.store

    @property
    def personal_folder(self) -> Path:
        """Where personal parameters are."""
        return self.folder / "personal"

    @property
    def now_s(self) -> float:
        """Monotonic seconds."""
        return self._monotonic()

    @property
    def visit(self) -> Visit:
        """How the last visit to the coordinator went."""
        return self._syncing.visit

    @property
    def serves(self) -> str:
        """Digest of the version that answers; empty: the rules baseline."""
        return self.answering.serving.version

    @property
    def is_healthy(self) -> bool:
        """Whether what it serves has passed its checks and predicted; the rules always have."""
        return not self.serves or self.remembered.value.confirmed == self.serves

    def predict(self, rows: NDArray[Any], samples: list[str] | None = None) -> list[Answer]:
        """Answer raw samples; see `Answering.predict`."""
        return self.answering.predict(rows, samples)

    def label(
        self, of: str, label: int | None, source: str = "api", confidence: float = 1.0
    ) -> tuple[str, ...]:
        """Say what a prediction or a sample was; again to correct it, None to withdraw; see `Answering.label`."""
        with self.mending():
            return self.answering.label(of, label, source, confidence)
        raise DataError("the database was damaged; what was to be labelled is gone", where=str(self.folder))

    def alert(self, kind: str, package: str = "", detail: str = "") -> None:
        """Something that a person should know; it is durable when this returns, if the disk takes it."""
        store = self.store
        with self.mending():
            store.outbox.add(Priority.ALERTS, encode_alert(kind, package, detail), store.clock.instant())
            store.outbox.flush(store.clock.instant())

    def tick(self) -> None:
        """What is due and needs no network: health, batches to the disk, slots that are over. Call it every second or so."""
        self._look()
        now_s = self._monotonic()
        if now_s - self._flushed_s >= self.config.outbox.flush_s:
            self._flushed_s = now_s
            self.flush()
            model = self.answering.serving.model
            if model is not None:
                self._renewing.renew(model, refit=False)
        self._renewing.refresh()

    def flush(self) -> None:
        """Write what waits, and put what is over into the outbox."""
        with self.mending():
            store, slot_s = self.store, self.remembered.value.slot_s
            # First the time, then what was predicted until then: a slot that is over by that time is whole on the disk.
            state = store.clock.look()
            self.answering.flush()
            trusted = state.at is not None
            self._telling.tell(store, state.instant, state.guess_at, slot_s, trusted=trusted)
            self.answering.closed()
            store.outbox.flush(state.instant)

    def sync(self, *, timeout_s: float | None = None) -> float:
        """Heartbeat, what it was told, what it has to send.

        Args:
            timeout_s: Of the heartbeat.

        Returns:
            Seconds until the next one, as the coordinator wishes.

        Raises:
            ControlError: If nobody answers; everything goes on.
        """
        return self._syncing.sync(timeout_s=timeout_s)

    def serve(self) -> None:
        """Answer with what the device holds and was told, from now on; after a new version the personal state is re-fitted."""
        with self._lock:
            if self._stands() != self._served_by:
                with contextlib.suppress(sqlite3.DatabaseError):
                    self.answering.flush()
                self._serve(self.follower.wanted())
                self._served_by = self._stands()
            self._tell_damage()

    def _tell_damage(self) -> None:
        for digest in self.follower.taken_damage():
            self.alert("slot_damaged", digest, "the disk has lost a file of it; it is fetched again")

    def _stands(self) -> tuple[object, ...]:
        """What decides who serves."""
        follower, told = self.follower, self.remembered.value
        # A notice changes what an assignment said, under the assignment's digest.
        wishes = told.digest, told.serve, told.shadow, told.safe_mode, told.withdrawn
        return self.slots.state, wishes, follower.candidate, follower.num_mended

    def _serve(self, wanted: Wanted) -> None:
        before = self.answering.serving
        model = None if wanted.serve is None else self._served(wanted.serve, before.model)
        shadow = None if wanted.shadow is None else self._shadowed(wanted.shadow, before.shadow)
        serving = Serving(model, shadow, wanted.by_rules or model is None)
        watch = self.answering.watch
        if serving.version != before.version:
            watch = self._watched(serving.version, before.version)
            if serving.version:
                record = watch.record
                self.remembered.note(lambda told: replace(told.serving(serving.version), record=record))
        self.answering.serve(serving, watch)

    def _watched(self, version: str, before: str) -> HealthWatch:
        told, watch = self.remembered.value, self.answering.watch
        was_here = bool(told.bases) and told.bases[-1] == version
        if watch is not None and before and not was_here:
            record = watch.next_record
        else:
            record = told.record if was_here else replace(told.record, latency_p99_s=None)
        return HealthWatch(self.config.health, version, record, self._monotonic(), self._memory)

    def _served(self, package: Package, before: Served | None = None) -> Served | None:
        """A version with this device's own state; None, and a rollback, if it cannot be loaded."""
        if before is not None and before.digest == package.digest:
            return before
        try:
            served, why = self._preparing.served(self.store, package)
        except UserError as error:
            self._leave(package.digest, error.what)
            found = self.follower.wanted().serve
            return None if found is None or found.digest == package.digest else self._served(found)
        if not self.baselines.keep(package):
            self.alert("no_baseline", package.digest, "the version has no bins to count on")
        self._preparing.note_lineage(self.store, package)
        self._renewing.tell(package.digest, why)
        return served

    def _shadowed(self, package: Package, before: Served | None) -> Served | None:
        if before is not None and before.digest == package.digest:
            return before
        try:
            shadow = self._preparing.shadow(self.store, package)
        except UserError as error:
            why = error.what
            self.remembered.note(lambda told: told.refusing(package.digest, why))
            return None
        self.baselines.keep(package, serves=False)
        return shadow

    def _look(self) -> None:
        """Judge the served version; leave it if it is not well."""
        watch, model, now_s = self.answering.watch, self.answering.serving.model, self._monotonic()
        if watch is None or model is None or not self.serves:
            return
        if now_s - self._checked_s >= _DAY_S:
            self._checked_s = now_s
            outcome = Served.of(model.package).predictor.check(model.package.sanity)
            bad = outcome.num_wrong + outcome.num_off + outcome.num_nonfinite
            watch.sanity(0 if outcome.ok else max(bad, 1))
            self._renewing.renew(model, refit=True)
            self.follower.look()
            self._tell_damage()  # it serves on from memory
        before = watch.record
        breach = self.answering.judge(now_s)
        if watch.record != before:
            record = watch.record
            self.remembered.note(lambda told: replace(told, record=record))
        if breach is not None:
            self._leave(breach.version, breach.reason)
            self.serve()

    def _leave(self, version: str, reason: str) -> None:
        self.follower.rolled_back(version, reason)
        self.alert("local_rollback", version, reason)
        self._wake()

    def _first_prediction(self) -> None:
        version = self.serves
        if version and self.remembered.value.confirmed != version:
            self.remembered.note(lambda told: replace(told, confirmed=version))
            self._wake()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the classes; empty before the first install."""
        model = self.answering.serving.model
        return () if model is None else model.package.manifest.outputs

    def recent(self, limit: int) -> list[Sequence[Any]]:
        """The newest predictions; see `Reads.recent`."""
        self.flush()
        with self.store.database.mutex:
            return self.store.reads()[0].recent(limit)

    def lineage(self, version: str) -> tuple[Use, ...]:
        """Which examples a version saw here."""
        with self.store.database.mutex:
            return self.store.lineage.of(version)

    def status(self) -> DeviceStatus:
        """How the device is, for people."""
        return DeviceStatus.of(self)

    def erase(self) -> None:
        """Forget what was made of the device's samples; see `erasing`.

        Raises:
            DataError: If somebody reads the database.
        """
        with self._lock:
            self.answering.forget()
            erase_store(self.store, self.folder, self.personal_folder)
            model = self.answering.serving.model
            if model is not None:
                serving = replace(self.answering.serving, model=Served.of(model.package))
                self.answering.serve(serving, self.answering.watch)

    def close(self) -> None:
        """Write what waits and let go of everything; may be called again."""
        self._syncing.close()
        with contextlib.suppress(sqlite3.DatabaseError, OutboxDamagedError):
            self.flush()
        self.store.close()

    @contextlib.contextmanager
    def mending(self) -> Iterator[None]:
        """Set a damaged database aside and go on with a new one; what was being done is not done."""
        store = self.store
        try:
            yield
        except OutboxDamagedError as error:
            self._reopen(store, str(error))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not is_damage(error):
                return  # a full disk: what waits stays in memory
            self._reopen(store, str(error))

    def _reopen(self, damaged: Store, suspect: str) -> None:
        with self._lock:
            if self.store is damaged:  # another thread may have met it first
                damaged.database.close()
                self.answering.reopened(self._open_store(suspect))

    def _open_store(self, suspect: str = "") -> Store:
        return Store.open(
            self.folder,
            self.stream,
            self.config.outbox,
            monotonic=self._monotonic,
            wall=self._wall,
            suspect=suspect,
        )


def _make(folder: Path) -> None:
    require(bool(str(folder)), "no folder", key="folder")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the device's folder cannot be made: {error.strerror}",
            where=str(folder),
            fix="check the path and its permissions",
        ) from error
