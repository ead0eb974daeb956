"""``python -m benchmarks.monitoring_year``: what a year of watching 1,000 devices costs.

Rules of this file:
    * Every hour each device reports telemetry of 8 features and the labels of the hour before last; everything is judged,
      counted, and viewed as the default policy says: a day's window every hour, a week's every day, recipes on each.
    * CPU seconds of one thread, by part. Making up the reports is not counted. The exit status is 1 above the limit.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import cores, versions
from benchmarks.results import append
from fedretrain.core.clock import HOUR_S
from fedretrain.monitoring.baseline import Baseline, make_baseline, slots_of
from fedretrain.monitoring.bins import Bins, fit_bins
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.monitoring.intake import Intake
from fedretrain.monitoring.kpi import Better, Kpi
from fedretrain.monitoring.recipes import decide, fold
from fedretrain.monitoring.reports import (
    NUM_DELAY_BINS,
    NUM_LATENCY_BINS,
    LabelReports,
    Reports,
)
from fedretrain.monitoring.state import MonitorState
from fedretrain.monitoring.store import FleetStore
from fedretrain.monitoring.view import view

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICES, GROUPS, FEATURES, CLASSES = 1_000, 20, 8, 6
HOURS, BASELINE, ROWS, LAG = 8_760, 24 * 28, 60, 2
MOST_S = 60.0
POLICY = MonitoringPolicy(kpis=(Kpi("alarms", Better.LOWER, limit=10.0),))
_POOL = 24  # prepared hours, used again and again


def prepared(bins: Bins) -> list[tuple[Reports, LabelReports]]:
    """Some hours of telemetry and their labels, in slot 0."""
    rng, zero = np.random.default_rng(0), np.zeros(DEVICES, dtype=np.int64)
    shares = np.r_[0.0, np.full(bins.num_cells - 3, 1.0 / (bins.num_cells - 3)), 0.0, 0.0]
    hours = []
    for _ in range(_POOL):
        outputs = rng.multinomial(ROWS, np.full(CLASSES, 1 / CLASSES), DEVICES).astype(np.int32)
        confidence = rng.multinomial(ROWS, [0.02] * 5 + [0.18] * 5, DEVICES).astype(np.int32)
        latency = np.zeros((DEVICES, NUM_LATENCY_BINS), np.int32)
        latency[:, 9] = ROWS
        cells = rng.multinomial(ROWS, shares, (DEVICES, FEATURES)).astype(np.int32)
        kpi = {"alarms": np.stack([rng.poisson(2.0, DEVICES), np.ones(DEVICES)], axis=1).astype(np.float64)}
        nothing = np.zeros((DEVICES, FEATURES), np.int32)
        head = (np.arange(DEVICES), zero, zero + 1, zero, zero.astype(np.float64))
        reports = Reports(*head, bins.digest, cells, nothing, outputs, confidence, confidence, latency, kpi)
        confusion = np.zeros((DEVICES, CLASSES, CLASSES), np.int32)
        confusion[:, range(CLASSES), range(CLASSES)] = outputs // 2
        calibration = np.stack([confidence // 3, confidence // 4], axis=2)
        delay = np.zeros((DEVICES, NUM_DELAY_BINS), np.int32)
        delay[:, 4] = confusion.sum(axis=(1, 2))
        calibration[calibration[:, :, 0].sum(axis=1) > delay[:, 4]] = 0
        hours.append((reports, LabelReports(*head, confusion, None, calibration, delay)))
    return hours


def at_hour(rows: Reports | LabelReports, slot: int) -> Any:
    """The same rows in another slot, sent when it ended."""
    slots, sent = np.full(DEVICES, slot), np.full(DEVICES, (slot + 1) * HOUR_S)
    return replace(rows, slot_K=slots, sequence_K=slots, sent_at_K=sent)


class Year:
    """A fleet's year, with the CPU seconds of its parts."""

    def __init__(self) -> None:
        bins = fit_bins(
            np.random.default_rng(0).normal(size=(5_000, FEATURES)), [f"f{i}" for i in range(FEATURES)]
        )
        groups = np.arange(DEVICES) % GROUPS
        store = FleetStore(
            DEVICES, groups, bins, HOUR_S, BASELINE, num_outputs=CLASSES, kpis=("alarms",), chunk_slots=24
        )
        self.intake, self.hours = Intake(store, wait_s=HOUR_S), prepared(bins)
        self.cpu_s = dict.fromkeys(("telemetry", "labels", "views", "recipes", "baseline"), 0.0)
        self.state, self.num_views = MonitorState(version=1), 0
        self.baseline: Baseline | None = None

    def run(self) -> None:
        """Every hour of it."""
        for slot in range(HOURS):
            telemetry, _ = self.hours[slot % _POOL]
            self.receive("telemetry", at_hour(telemetry, slot), slot)
            if slot >= LAG:
                _, labels = self.hours[(slot - LAG) % _POOL]
                self.receive("labels", at_hour(labels, slot - LAG), slot)
            if slot + 1 == BASELINE:
                start, now = time.process_time(), BASELINE * HOUR_S
                self.baseline = make_baseline(self.intake.store, 0, BASELINE, POLICY, version=1, now=now)
                self.cpu_s["baseline"] += time.process_time() - start
            for window_s in due(slot + 1):
                self.look(slot + 1, window_s)

    def receive(self, part: str, rows: Reports | LabelReports, slot: int) -> None:
        """Judge and count rows."""
        start = time.process_time()
        refused = self.intake.receive(rows, (1,), (slot + 1) * HOUR_S)
        self.cpu_s[part] += time.process_time() - start
        if refused:
            raise RuntimeError(f"good rows were refused: {refused}")

    def look(self, end_slot: int, window_s: float) -> None:
        """View a window and fold it."""
        if self.baseline is None:
            return
        start = time.process_time()
        shown = view(self.intake.store, self.baseline, end_slot, POLICY, window_s=window_s)
        middle = time.process_time()
        self.state = fold(POLICY, self.state, decide(POLICY, self.state, shown, self.baseline))
        self.cpu_s["views"] += middle - start
        self.cpu_s["recipes"] += time.process_time() - middle
        self.num_views += 1


def due(end_slot: int) -> Iterator[float]:
    """Windows that are looked at when `end_slot` begins."""
    for window in POLICY.windows:
        if end_slot % slots_of(window.stride_s, HOUR_S) == 0:
            yield window.length_s


def main() -> int:
    """Print one JSON line; 1 if the year costs more than the limit."""
    year = Year()
    year.run()
    total_s = sum(year.cpu_s.values())
    line = {
        "case": "year",
        "cpu_s_total": round(total_s, 2),
        "limit_s": MOST_S,
        "cpu_s": {part: round(seconds, 2) for part, seconds in year.cpu_s.items()},
        "rows": 2 * HOURS * DEVICES,
        "views": year.num_views,
        "false_alarms": year.state.num_alarms,
        "devices": DEVICES,
        "features": FEATURES,
        "versions": versions("numpy", "fedretrain"),
        "cores": cores(),
    }
    print(json.dumps(line), flush=True)
    append("monitoring_year", line)
    return int(total_s > MOST_S)


if __name__ == "__main__":
    sys.exit(main())
