"""What devices sent, counted: the reconciler's memory of the telemetry table.

Rules of this file:
    * Everything here can be made again from the table: a restart reads what the windows still need.
    * A record that cannot be read is counted by the reason and has no other effect.
    * What is only scored in shadow is counted apart from what is served.
    * Devices join a fleet: the arrays have room for more, and are made anew when it is used up.
    * What no window can need any more is deleted from the table, a part at each tick: it was received before the oldest slot
      that is kept began.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import delete, func, select

from fedretrain.coordinator.policy import TelemetryMode
from fedretrain.monitoring.intake import Intake
from fedretrain.monitoring.reports import LabelReports, Reports, join
from fedretrain.monitoring.store import FleetStore
from fedretrain.server.database import reading
from fedretrain.server.refreshes import KEPT
from fedretrain.server.tables import telemetry
from fedretrain.server.watched import check_memory, counts_bytes, kpis_of, room_for
from fedretrain.wire.control import SHADOW, Alert, Evaluated, MalformedError, Refreshed, ReportShape, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Engine, Row

    from fedretrain.coordinator.watching import Clockwork
    from fedretrain.monitoring.bins import Bins
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.server.fleet import Device

_BATCH = 500  # an order that comes while records are counted waits for one part
_PRUNED = 5000
_MAX_ALERTS = 1000


class Telemetry:
    """Counts of a population. Mutable.

    Args:
        engine: The database.
        population: Whose.
        policy: What is watched.
        clockwork: How time is cut.
        bins: Of the champion.
        shape: Of reports.
        devices: Who is in the fleet; their numbers index every array.
        evaluation: The federated evaluation that is on; answers to another one are refused. May be set anew.
        mode: What devices may say; what they say beyond it is refused.
        most_bytes: Of memory that counts may take.

    Raises:
        DataError: If they would take more.
    """

    def __init__(
        self,
        engine: Engine,
        population: str,
        policy: MonitoringPolicy,
        clockwork: Clockwork,
        bins: Bins,
        shape: ReportShape,
        devices: Sequence[Device],
        *,
        evaluation: str = "",
        mode: TelemetryMode = TelemetryMode.OPERATIONAL,
        most_bytes: float = math.inf,
    ) -> None:
        self.evaluation, self._mode = evaluation, mode
        self.answers: dict[int, tuple[int, Evaluated]] = {}  # by device, with their records' numbers
        self._engine, self._population = engine, population
        self._shape = shape
        self.capacity = room_for(len(devices))
        kpis, keep_slots = kpis_of(policy), clockwork.keep_slots(policy)
        cells = shape.num_features * shape.num_cells
        need = counts_bytes(policy, clockwork, len(devices), cells, classification=shape.classification)
        check_memory(need, most_bytes, len(devices), keep_slots)
        self.groups = {site: i for i, site in enumerate(sorted({one.traits.site for one in devices}))}
        group_D = np.zeros(self.capacity, dtype=np.int64)
        for device in devices:
            group_D[device.number] = self.groups[device.traits.site]

        def store() -> FleetStore:
            return FleetStore(
                self.capacity,
                group_D,
                bins,
                clockwork.slot_s,
                keep_slots,
                num_outputs=shape.num_outputs,
                classification=shape.classification,
                kpis=kpis,
            )

        wait, tolerance = policy.label_wait_s, policy.clock_tolerance_s
        self.served, self.shadowed = Intake(store(), wait, tolerance), Intake(store(), wait, tolerance)
        self._numbers = {device.device: device.number for device in devices}
        self.malformed: Counter[str] = Counter()
        self.alerts: deque[tuple[int, Alert]] = deque(maxlen=_MAX_ALERTS)  # with their records' numbers
        self.refreshed: deque[Refreshed] = deque(maxlen=KEPT * self.capacity)
        self.num_labels = 0
        self.is_behind = False
        self._read = 0

    def fits(self, devices: Sequence[Device]) -> bool:
        """Whether the arrays have room for a fleet, and its sites a group."""
        known = all(device.traits.site in self.groups for device in devices)
        return len(devices) <= self.capacity and known

    def know(self, devices: Sequence[Device]) -> None:
        """Devices that joined; see `fits`."""
        self._numbers = {device.device: device.number for device in devices}

    def catch_up(
        self,
        versions: Mapping[int, str],
        now: float,
        *,
        since: float = 0.0,
        most: float = math.inf,
        go_on: Callable[[], bool] = lambda: True,
    ) -> int:
        """Count what has arrived.

        Args:
            versions: Package digests by version, of all that were ever released.
            now: Instant, seconds since the epoch.
            since: Records of before this instant are passed over.
            most: After so many the rest is left for the next time.
            go_on: Asked after each part; if not, the rest is left as well.

        Returns:
            How many records were read; `is_behind` tells whether some may be left.
        """
        numbers = {digest: version for version, digest in versions.items()}
        total = 0
        while True:
            with reading(self._engine) as connection:
                query = (
                    select(telemetry)
                    .where(
                        telemetry.c.population == self._population,
                        telemetry.c.number > self._read,
                        telemetry.c.at >= since,
                    )
                    .order_by(telemetry.c.number)
                    .limit(_BATCH)
                )
                rows = connection.execute(query).all()
            if rows:
                self._read = rows[-1].number
                parts = [part for row in rows if (part := self._decoded(row, numbers.get)) is not None]
                self._count(parts, tuple(versions), now)
                total += len(rows)
            is_last = len(rows) < _BATCH
            if is_last or total >= most or not go_on():
                self.is_behind = not is_last
                return total

    def prune(self, now: float, most: int = _PRUNED) -> int:
        """Delete records that no window can need, the oldest first; how many.

        Their slots were over when they were received, so the server's own clock tells, whatever a device says of its own.
        A part at a time, so that a clock that jumps ahead for a moment costs little. The newest record stays, whatever its
        age: SQLite would give its number away again, and who has read that far would miss another record.

        Args:
            now: Instant, seconds since the epoch.
            most: At most so many.
        """
        store = self.served.store
        before = now - (store.horizon.num_slots + 1) * store.slot_s - self.served.tolerance_s
        newest = select(func.max(telemetry.c.number)).scalar_subquery()
        oldest = (
            select(telemetry.c.number, telemetry.c.received_at)
            .where(telemetry.c.population == self._population, telemetry.c.number < newest)
            .order_by(telemetry.c.number)
        )
        with reading(self._engine) as connection:
            first = connection.execute(oldest.limit(1)).one_or_none()
            if first is None or first.received_at >= before:
                return 0
            over = [row.number for row in connection.execute(oldest.limit(most)) if row.received_at < before]
        if over:
            old = (telemetry.c.population == self._population) & (telemetry.c.number <= max(over))
            with self._engine.begin() as connection:
                connection.execute(delete(telemetry).where(old, telemetry.c.received_at < before))
        return len(over)

    def _decoded(
        self, row: Row[Any], version_of: Callable[[str], int | None]
    ) -> Reports | LabelReports | None:
        number = self._numbers.get(row.device)
        if number is None:
            self.malformed["device: not in the fleet"] += 1
            return None
        try:
            said = decode(row.payload, number, row.received_at, self._shape, version_of)
        except MalformedError as error:
            self.malformed[str(error).partition(":")[0]] += 1
            return None
        if isinstance(said, Alert):
            self.alerts.append((row.number, said))
            return None
        if self._mode is not TelemetryMode.OPERATIONAL:
            self.malformed[f"telemetry: {self._mode}"] += 1
            return None
        if isinstance(said, Refreshed):
            self.refreshed.append(said)
            return None
        if isinstance(said, Evaluated):
            self._keep(row.number, said)
            return None
        return said

    def _keep(self, record: int, said: Evaluated) -> None:
        """The first answer of each device to the evaluation that is on, until somebody takes it."""
        if said.evaluation != self.evaluation:
            self.malformed["evaluation: not on"] += 1
        elif said.device in self.answers:
            self.malformed["evaluation: repeated"] += 1
        else:
            self.answers[said.device] = (record, said)

    def taken_answers(self) -> dict[int, tuple[int, Evaluated]]:
        """The answers that came in since the last time; they are the caller's from now on."""
        found, self.answers = self.answers, {}
        return found

    def _count(self, parts: Sequence[Reports | LabelReports], versions: tuple[int, ...], now: float) -> None:
        """Telemetry first, so that labels find their predictions."""
        reports = [one for one in parts if isinstance(one, Reports)]
        labels = [one for one in parts if isinstance(one, LabelReports)]
        for batch in _alike(reports):
            self._give(join(batch), versions, now)
        if labels:
            rows = join(labels)
            self.num_labels += int(rows.num_labelled[rows.version_K < SHADOW].sum())
            self._give(rows, versions, now)
        self.served.retry(versions, now)
        self.shadowed.retry(versions, now)

    def _give(self, rows: Reports | LabelReports, versions: tuple[int, ...], now: float) -> None:
        scored = rows.version_K >= SHADOW
        if not scored.all():
            self.served.receive(rows.take(~scored), versions, now)
        if scored.any():
            mine = rows.take(scored)
            mine.version_K[:] -= SHADOW
            self.shadowed.receive(mine, versions, now)


def _alike(reports: Sequence[Reports]) -> list[list[Reports]]:
    """Reports in batches that can be joined: of the same bins and columns."""
    found: dict[tuple[str, frozenset[str]], list[Reports]] = {}
    for one in reports:
        found.setdefault((one.bins, one.columns), []).append(one)
    return list(found.values())
