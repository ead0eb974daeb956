"""Predictions and labels of one logical device: answered at once, kept in batches.

Rules of this file:
    * Any thread may ask. What answers is taken once under the lock; the model runs outside of it.
    * A prediction is in memory until `flush`: SD cards wear out by writes, and a prediction must not wait for one. A power
      cut or a kill loses what was predicted since, `outbox.flush_s` at most.
    * The candidate is scored on the same samples when they are flushed, so nobody waits for it, and its answers go nowhere
      but into its own counts.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.edge.examples import Label, Origin, Prediction
from fedretrain.edge.serving import RAW, Rules, Scored, Served, score
from fedretrain.edge.telling import CLOSED

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

    from fedretrain.edge.config import DeviceConfig
    from fedretrain.edge.health import LocalRollback
    from fedretrain.edge.past import Past
    from fedretrain.edge.store import Store
    from fedretrain.edge.watch import HealthWatch

FLUSH_ROWS = 256
"""So many predictions are written without waiting for the next tick."""
MENDED_S = 1.0
"""A clock that was further off is mended in what was predicted before it was set."""
MAX_WAITING = 4096
"""While the disk takes nothing, the oldest predictions beyond these are forgotten."""


class Answer(NamedTuple):
    """What the device says of a sample.

    Attributes:
        id: Of the prediction: name it to label it.
        label: The class, or -1 where the device abstains.
        confidence: 0 to 1.
        package: Digest of the version that answered; empty: the rules baseline.
    """

    id: str
    label: int
    confidence: float
    package: str


@dataclass(frozen=True)
class Serving:
    """What the device answers with.

    Attributes:
        model: The version in the slot; None before the first install.
        shadow: The candidate that is scored beside it; None: none.
        by_rules: Safe mode, or nothing may serve: the model only prepares inputs.
        rules: What answers where no model does.
    """

    model: Served | None = None
    shadow: Served | None = None
    by_rules: bool = False
    rules: Rules = field(default_factory=Rules)

    @property
    def version(self) -> str:
        """Digest of the version that answers; empty: the rules baseline."""
        return "" if self.model is None or self.by_rules else self.model.digest

    @property
    def candidate(self) -> str:
        """Digest of the version that is scored in shadow; empty: none."""
        return "" if self.shadow is None else self.shadow.digest


class Answering:
    """Predicts and keeps for one device.

    Args:
        store: Where predictions go.
        config: The device's.
        past: Its raw samples, for pipelines with local numbers.
        on_first: Called once after the first prediction of each version.
    """

    def __init__(self, store: Store, config: DeviceConfig, past: Past, on_first: Callable[[], None]) -> None:
        self.past = past
        self.store, self._config, self._on_first = store, config, on_first
        self._flushing, self._lock = threading.RLock(), threading.RLock()
        self.serving = Serving(rules=Rules(store.reads()[0].told()))
        self.watch: HealthWatch | None = None
        self._waiting: list[tuple[Prediction, NDArray[Any] | None]] = []
        self._number = 0
        self._closed_at = store.database.recall(CLOSED)
        self._begins_after = tuple(reads.last() for reads in store.reads())
        self.num_lost = 0

    def serve(self, serving: Serving, watch: HealthWatch | None) -> None:
        """Answer with something else from now on; the rules stay what they were."""
        with self._lock:
            self.serving, self.watch = replace(serving, rules=self.serving.rules), watch

    def predict(self, rows: NDArray[Any], samples: list[str] | None = None) -> list[Answer]:
        """Answer raw samples.

        Args:
            rows: ``[N, ...]``.
            samples: A name for each, by which it can be labelled too.

        Raises:
            DataError: If the samples are not what the model's schema says.
        """
        rows = np.asarray(rows)
        if samples is not None and len(samples) != len(rows):
            raise DataError(f"{len(samples)} names for {len(rows)} samples", where="samples")
        serving = self.serving
        scored = score(rows, serving.model, serving.rules, by_rules=serving.by_rules)
        answers = self._keep(serving, scored, rows, samples)
        if len(self._waiting) >= FLUSH_ROWS:
            with contextlib.suppress(sqlite3.DatabaseError):  # met again, and mended, at the next tick
                self.flush()
        return answers

    def _keep(
        self, serving: Serving, scored: Scored, rows: NDArray[Any], samples: list[str] | None
    ) -> list[Answer]:
        origin = self._origin(scored.preprocessing)
        # Raw samples lie on no model's bins: they are kept under a version that is never counted.
        version = RAW if scored.preprocessing == RAW else scored.version
        found, is_first = scored.answers, False
        with self._lock:
            at = max(self.store.clock.look().guess_at, self._closed_at)
            made: list[Answer] = []
            for index in range(len(scored.inputs)):
                self._number += 1
                answer = Answer(
                    f"{self.store.database.identity.boot:x}-{self._number}",
                    int(found.label[index]),
                    float(found.confidence[index]),
                    scored.version,
                )
                made.append(answer)
                prediction = Prediction(
                    answer.id,
                    at,
                    scored.inputs[index],
                    version,
                    answer.label,
                    answer.confidence,
                    float(found.entropy[index]),
                    scored.latency_s,
                    origin,
                    None if samples is None else samples[index],
                )
                self._waiting.append((prediction, None if serving.shadow is None else rows[index].copy()))
            if serving.model is not None and serving.model.predictor.pipeline.has_local:
                self.past.add(rows)
            if self.watch is not None and serving is self.serving and not serving.by_rules:
                is_first = not self.watch.num_served and not scored.failed
                self.watch.prediction(scored.latency_s, len(made), failed=scored.failed)
        if is_first and made:
            self._on_first()
        return made

    def _origin(self, preprocessing: str) -> Origin:
        config = self._config
        return Origin(config.sensor, config.calibration_epoch, config.firmware, preprocessing)

    def flush(self) -> None:
        """Write what was predicted; what the disk does not take stays, as far as there is room.

        Raises:
            sqlite3.DatabaseError: If the database is damaged.
        """
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            shadow = self.serving.shadow
        if not waiting:
            return
        mirrored = [] if shadow is None else self._shadowed(shadow, waiting)
        try:
            with self.store.database.mutex:
                now = self.store.clock.look().guess_at
                self.store.served.add((one for one, _ in waiting), now)
                if mirrored:
                    self.store.shadow.add(mirrored, now)
        except BaseException:
            with self._lock:
                kept = [*waiting, *self._waiting]
                self.num_lost += max(0, len(kept) - MAX_WAITING)
                self._waiting = kept[-MAX_WAITING:]
            raise

    def _shadowed(
        self, shadow: Served, waiting: list[tuple[Prediction, NDArray[Any] | None]]
    ) -> list[Prediction]:
        """What the candidate says of the same samples."""
        both = [(one, row) for one, row in waiting if row is not None]
        if not both:
            return []
        with contextlib.suppress(DataError):  # another schema: the candidate cannot be scored on these
            scored = score(np.stack([row for _, row in both]), shadow, Rules())
            found, origin = scored.answers, self._origin(scored.preprocessing)
            return [
                replace(
                    one,
                    inputs=scored.inputs[index],
                    version=shadow.digest,
                    predicted=int(found.label[index]),
                    confidence=float(found.confidence[index]),
                    entropy=float(found.entropy[index]),
                    latency_s=scored.latency_s,
                    origin=origin,
                )
                for index, (one, _) in enumerate(both)
            ]
        return []

    def label(self, of: str, label: int | None, source: str, confidence: float = 1.0) -> tuple[str, ...]:
        """Take a label for a prediction or a sample; None withdraws.

        Returns:
            Ids of the predictions that it is about.

        Raises:
            DataError: If there is no such prediction, source or class.
        """
        model = self.serving.model
        if label is not None and not 0 <= label < (len(model.package.manifest.outputs) if model else 2**31):
            raise DataError(f"there is no class {label}", where="label", fix="give the index of an output")
        if not 0.0 <= confidence <= 1.0:
            raise DataError(f"{confidence} is no confidence", where="confidence", fix="give 0 to 1")
        self.flush()
        store = self.store
        with store.database.mutex:
            said = Label(of, label, source, store.clock.look().guess_at, confidence)
            found = store.served.label(said)
            with contextlib.suppress(DataError):  # not scored in shadow
                store.shadow.label(said)
            told = store.reads()[0].told()
            predicted = [store.reads()[0].predicted(one) for one in found]
        with self._lock:
            self.serving = replace(self.serving, rules=Rules(told))
            self._judge(predicted, label)
        return found

    def _judge(self, predicted: list[tuple[str, int, int]], label: int | None) -> None:
        """Count the first label of each prediction of the served version."""
        if self.watch is None or label is None:
            return
        for version, was, num_labels in predicted:
            if version == self.serving.version and version and num_labels == 1:
                self.watch.label(correct=was == label)

    def judge(self, now_s: float) -> LocalRollback | None:
        """What the health checks say of the served version; see `HealthWatch.look`."""
        with self._lock:
            return None if self.watch is None else self.watch.look(now_s)

    @property
    def num_waiting(self) -> int:
        """Predictions that are in memory alone."""
        return len(self._waiting)

    def forget(self) -> None:
        """Drop what is in memory, and what the rules were told."""
        with self._lock:
            self._waiting = []
            self.past.forget()
            self.serving = replace(self.serving, rules=Rules())

    def reopened(self, store: Store) -> None:
        """Go on with a new database: what was kept is gone, what waits is not."""
        with self._lock:
            self.store, self._begins_after = store, (0, 0)
            store.database.remember(CLOSED, self._closed_at)
            self.serving = replace(self.serving, rules=Rules(store.reads()[0].told()))

    def trust(self, signed_at: float) -> bool:
        """Set the clock by a fresh signed time, and correct what was predicted in this start by a wrong one.

        Returns:
            Whether the time was taken; see `DeviceClock.trust`.
        """
        with self._flushing, self._lock:
            clock = self.store.clock
            before = clock.look()
            if not clock.trust(signed_at):
                return False
            by_s = signed_at - before.guess_at
            if before.at is None and abs(by_s) > MENDED_S:
                self._waiting = [(replace(one, at=one.at + by_s), row) for one, row in self._waiting]
                with self.store.database.mutex:
                    for reads, after in zip(self.store.reads(), self._begins_after, strict=True):
                        reads.shift(after, by_s)
            return True

    def closed(self) -> None:
        """Slots were counted: nothing is predicted into them any more."""
        with self._lock:
            self._closed_at = self.store.database.recall(CLOSED)

    @property
    def preprocessing(self) -> str:
        """Of the version in the slot."""
        model = self.serving.model
        return RAW if model is None else model.preprocessing
