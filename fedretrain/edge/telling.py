"""Slots of predictions and late labels into the outbox, each counted once.

Rules of this file:
    * A slot is counted when it is over, one row for each version, on that version's own bins. The row and the mark that the
      slot is done with are one transaction.
    * A label goes once its prediction's slot is done with, so that no label outruns its telemetry.
    * Time that is not trusted yet does not close a slot: the predictions wait, and are mended once it is. Only a buffer that
      is half full is counted by the best guess.
    * A version without readable bins is served and not counted: there is nothing to count on.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.durable import write_whole
from fedretrain.core.errors import DataError
from fedretrain.core.frozen import thaw
from fedretrain.edge.counts import Counter
from fedretrain.monitoring.bins import Bins
from fedretrain.wire.control import encode_labels, encode_report
from fedretrain.wire.sequence import Priority

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.artifacts.package import Package
    from fedretrain.core.clock import Instant
    from fedretrain.edge.examples import Examples
    from fedretrain.edge.store import Store

CLOSED = "closed_until_at"
"""The name under which the database keeps until when slots are done with."""
_KEPT = 16
_MAX_SLOTS = 256  # in one go; the rest follows with the next tick


@dataclass(frozen=True)
class Shape:
    """How a version is counted.

    Attributes:
        bins: Pinned, of its model inputs.
        num_outputs: M.
    """

    bins: Bins
    num_outputs: int


class Baselines:
    """The bins of the versions that served here lately, also of those that have left their slot.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Shape] = {}
        self.last: Shape | None = None

    def keep(self, package: Package, *, serves: bool = True) -> bool:
        """Keep a version's bins; False if it has none that can be read.

        Args:
            package: The version.
            serves: Whether it serves: what the rules answer is then counted on its bins too.
        """
        digest, outputs = package.digest, len(package.manifest.outputs)
        try:
            shape = Shape(thaw(Bins, package.baseline), outputs)
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{digest}.{outputs}"
            if not path.exists():
                write_whole(path, package.baseline)
                self._tidy()
        except DataError:
            return False
        except OSError:  # a full disk: known until the next start
            pass
        self._known[digest] = shape
        if serves:
            self.last = shape
        return True

    def of(self, digest: str) -> Shape | None:
        """How a version is counted; the rules as the version that serves, or served last."""
        if not digest:
            return self.last
        if digest not in self._known:
            for path in self._folder.glob(f"{digest}.*"):
                try:
                    self._known[digest] = Shape(thaw(Bins, path.read_bytes()), int(path.suffix[1:]))
                except (OSError, ValueError, DataError):
                    return None
        return self._known.get(digest)

    def _tidy(self) -> None:
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in files[_KEPT:]:
            path.unlink(missing_ok=True)


class Telling:
    """Counts for one device.

    Args:
        device: Its number.
        baselines: How each version is counted.
    """

    def __init__(self, device: int, baselines: Baselines) -> None:
        self._device, self.baselines = device, baselines

    def tell(self, store: Store, now: Instant, now_at: float, slot_s: float, *, trusted: bool) -> None:
        """Put what is over into the outbox.

        Args:
            store: The device's.
            now: The instant, for the records.
            now_at: Seconds since the epoch, the best guess.
            slot_s: Length of a slot; 0 while nobody has said: nothing is counted then.
            trusted: Whether that guess is trusted.
        """
        with store.database.mutex:
            if slot_s > 0 and (trusted or store.is_half_full()):
                self._tell(store, now, now_at, slot_s)

    def _tell(self, store: Store, now: Instant, now_at: float, slot_s: float) -> None:
        since = store.database.recall(CLOSED)
        for slot in _slots(store, since, now_at, slot_s):
            until = (slot + 1) * slot_s
            payloads = self._reports(store, slot, slot_s, since, now_at)
            if not store.outbox.add_with(payloads, now, partial(store.database.remember, CLOSED, until)):
                return
            since = until
        for examples, shadow in store.streams():
            self._labels(store, examples, now, now_at, since, slot_s, shadow=shadow)

    def _reports(
        self, store: Store, slot: int, slot_s: float, since: float, now_at: float
    ) -> list[tuple[Priority, bytes]]:
        found: list[tuple[Priority, bytes]] = []
        for examples, shadow in store.streams():
            versions = sorted(
                {row[2] for row in examples.made(max(since, slot * slot_s), (slot + 1) * slot_s)}
            )
            number = 0
            for version in versions:
                counter = self._counter(version, slot_s)
                if counter is None:
                    continue
                try:
                    rows = counter.telemetry(examples, slot, now_at, since=since, package=version)
                except (DataError, ValueError):  # of another shape than the bins
                    continue
                if rows is not None:
                    numbered = replace(rows, sequence_K=np.array([number], dtype=np.int64))
                    found.append((Priority.HISTOGRAMS, encode_report(numbered, version, shadow=shadow)))
                    number += 1
        return found

    def _labels(
        self,
        store: Store,
        examples: Examples,
        now: Instant,
        now_at: float,
        before: float,
        slot_s: float,
        *,
        shadow: bool,
    ) -> None:
        arrived = examples.arrived(now_at, before)
        for version in sorted({row[2] for row in arrived}):
            counter = self._counter(version, slot_s)
            if counter is None:
                continue
            try:
                found = counter.labels(examples, now_at, before=before, package=version)
            except DataError:  # a class that this version does not have
                continue
            if found is None:
                continue
            rows, numbers = found
            payloads = []
            for index in range(len(rows)):
                # A row's number is its own within the slot; nothing else is kept of those that were given.
                row = replace(
                    rows.take(np.array([index])), sequence_K=np.array([secrets.randbits(32)], dtype=np.int64)
                )
                payloads.append((Priority.LABELS, encode_labels(row, version, shadow=shadow)))
            if not store.outbox.add_with(payloads, now, partial(examples.reported, numbers)):
                return

    def _counter(self, version: str, slot_s: float) -> Counter | None:
        shape = self.baselines.of(version)
        if shape is None:
            return None
        return Counter(self._device, shape.bins, shape.num_outputs, slot_s, {version: 1})


def _slots(store: Store, since: float, now_at: float, slot_s: float) -> range:
    """The slots that are over and not done with; empty stretches before the first prediction are passed over."""
    first_at = min(
        (at for at in (one.first_at(since) for one in store.reads()) if at is not None), default=None
    )
    last = math.floor(now_at / slot_s)
    if first_at is None:
        return range(last, last)
    first = math.floor(max(first_at, since) / slot_s)
    return range(first, min(last, first + _MAX_SLOTS))
