"""The way into the store: judged, counted, and patient with labels that outran their own telemetry.

Rules of this file:
    * Networks reorder. A label whose predictions were not reported yet is held, and offered again whenever telemetry came,
      until `wait_s` has passed; then it is refused like any other label for a prediction that never was.
    * Held rows have no effect on anything but `num_held`.
    * Every refused row is counted once, by reason.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.checks import not_negative
from fedretrain.monitoring.refusal import Refusal, reasons, tally
from fedretrain.monitoring.reports import LabelReports, Reports, join

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fedretrain.monitoring.store import FleetStore


class Intake:
    """Takes rows into a store. Mutable.

    Args:
        store: Where accepted rows are counted.
        wait_s: How long a label may wait for its telemetry; 0 refuses it at once.
        tolerance_s: How far a device's clock may be ahead.
    """

    def __init__(self, store: FleetStore, wait_s: float = 0.0, tolerance_s: float = 300.0) -> None:
        not_negative("intake.wait_s", wait_s)
        not_negative("intake.tolerance_s", tolerance_s)
        self.store, self.wait_s, self.tolerance_s = store, wait_s, tolerance_s
        self.refusals: Counter[Refusal] = Counter()
        self._held: LabelReports | None = None
        self._held_until: NDArray[np.float64] = np.zeros(0)

    @property
    def num_held(self) -> int:
        """Label rows that wait for their telemetry."""
        return len(self._held_until)

    def receive(
        self, rows: Reports | LabelReports, versions: Iterable[int], now: float
    ) -> dict[Refusal, int]:
        """Judge and count a batch, and whatever was waiting for it.

        Args:
            rows: Telemetry or labels.
            versions: The released versions.
            now: The instant, seconds.

        Returns:
            The rows that were refused in this call, by reason.
        """
        before = self.refusals.copy()
        if isinstance(rows, LabelReports):
            until = np.full(len(rows), now + self.wait_s)
            self._offer(rows, until, versions, now)
        else:
            reason_K = reasons(rows, self.store.known(versions, self.tolerance_s), now)
            self.refusals.update(tally(reason_K))
            self.store.add(rows.take(reason_K < 0) if (reason_K >= 0).any() else rows)
            self.retry(versions, now)
        return dict(self.refusals - before)

    def retry(self, versions: Iterable[int], now: float) -> None:
        """Offer the waiting labels again; those that waited too long are refused."""
        held, until = self._held, self._held_until
        if held is None:
            return
        self._held, self._held_until = None, np.zeros(0)
        self._offer(held, until, versions, now)

    def _offer(
        self, rows: LabelReports, until_K: NDArray[np.float64], versions: Iterable[int], now: float
    ) -> None:
        reason_K = reasons(rows, self.store.known(versions, self.tolerance_s), now)
        early = list(Refusal).index(Refusal.LABEL_WITHOUT_PREDICTION)
        wait_K = (reason_K == early) & (until_K > now)
        self.refusals.update(tally(reason_K[~wait_K]))
        self.store.add_labels(rows.take(reason_K < 0))
        if wait_K.any():
            waiting = rows.take(wait_K)
            self._held = waiting if self._held is None else join([self._held, waiting])
            self._held_until = np.concatenate([self._held_until, until_K[wait_K]])
