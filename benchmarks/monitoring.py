"""``python -m benchmarks.monitoring``: what watching costs, beside plain numpy, a memory copy and the peers that install.

Rules of this file:
    * One JSON line per measurement, ratios first, with versions and cores; one thread.
    * `psi` is a PSI for each of 100 features of 100,000 float32 rows: pinned bins, missing and outer cells. `plain` is
      a binary search and a count for each column (numpy's `searchsorted` and `bincount`), on float32 edges, in the same
      run, and must agree count by count.
    * `fleet` is 10,000 reports of 128 features x 13 cells: refused or accepted, merged into the store and judged (PSI of
      the fleet and of each group, p-values by their empirical nulls, false-discovery control). What drifts in
      it is known and must be what is found.
    * A peer that is not compared is a line that says why. The exit status is 1 if a limit was missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import cores, versions
from benchmarks.peers import drift
from benchmarks.peers.environment import child_environment, drift_python
from benchmarks.reduce import alternate, spread
from benchmarks.results import append
from fedretrain.monitoring.bins import Bins, fit_bins
from fedretrain.monitoring.discovery import benjamini_hochberg, benjamini_yekutieli
from fedretrain.monitoring.divergence import psi
from fedretrain.monitoring.histogram import count
from fedretrain.monitoring.null import EmpiricalNull, fit_null, pooled_p_value
from fedretrain.monitoring.refusal import refuse
from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS, NUM_LATENCY_BINS, Reports
from fedretrain.monitoring.store import FleetStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_ROWS_PER_S = 350_000
MOST_S = 1.0
SKIPPED = {
    "nannyml": "sends telemetry by default, needs a dependency that it does not declare, and pulls in GPU libraries",
    "alibi-detect": "its licence (BSL) is not an open one",
    "whylogs": "dormant",
    "deepchecks": "dormant",
}
_REPEATS = 7


def plain_counts(bins: Bins, x_NF: NDArray[np.float32]) -> NDArray[np.int64]:
    """Plain numpy: for each feature a binary search, then a count."""
    counts_FC = np.empty((bins.num_features, bins.num_cells), dtype=np.int64)
    edges_FE = bins.edges_FE.astype(np.float32)
    for feature, edges_E in enumerate(edges_FE):
        column_N = x_NF[:, feature]
        cells_N = np.searchsorted(edges_E[:-1], column_N, side="right") + (column_N > edges_E[-1])
        cells_N[np.isnan(column_N)] = bins.num_cells - 1
        counts_FC[feature] = np.bincount(cells_N, minlength=bins.num_cells)
    return counts_FC


def psi_case() -> dict[str, Any]:
    """Ours, plain numpy and a memory copy over the same rows."""
    baseline_NF, live_NF = drift.rows()
    live_NF[::97] = np.nan
    bins = fit_bins(baseline_NF, [f"f{i}" for i in range(drift.NUM_FEATURES)])
    bins = replace(
        bins, edges_FE=bins.edges_FE.astype(np.float32).astype(np.float64)
    )  # exact for `plain` too
    baseline_FC = count(bins, baseline_NF)
    if not np.array_equal(count(bins, live_NF), plain_counts(bins, live_NF)):
        raise RuntimeError("the counts differ from plain numpy's")
    copy = np.empty_like(live_NF)

    def ours() -> None:
        psi(baseline_FC, count(bins, live_NF))

    def plain() -> None:
        psi(baseline_FC, plain_counts(bins, live_NF))

    def memcpy() -> None:
        np.copyto(copy, live_NF)

    timed = alternate({"ours": ours, "plain": plain, "memcpy": memcpy})
    cpu_s = {engine: min(times) for engine, times in timed.items()}
    rows_per_s = len(live_NF) / cpu_s["ours"]
    return {
        "case": "psi",
        "ratio_plain": round(cpu_s["plain"] / cpu_s["ours"], 2),
        "share_of_memcpy": round(cpu_s["memcpy"] / cpu_s["ours"], 4),
        "rows_per_s": round(rows_per_s),
        "plain_rows_per_s": round(len(live_NF) / cpu_s["plain"]),
        "met": rows_per_s >= LEAST_ROWS_PER_S,
        "cpu_ms": {engine: round(1e3 * seconds, 3) for engine, seconds in cpu_s.items()},
        "spread": {engine: round(spread(times), 3) for engine, times in timed.items()},
        "num_rows": len(live_NF),
        "num_features": bins.num_features,
        "num_bins": bins.num_cells - 3,
    }


def peer_case(peer: str, ours_ms: float) -> dict[str, Any]:
    """A peer's time for the same number of figures."""
    case = f"psi_{peer.replace('-', '_')}"
    if peer in SKIPPED:
        return {"case": case, "skipped": SKIPPED[peer]}
    python = drift_python()
    if python is None:
        return {"case": case, "skipped": "could not be installed"}
    command = [str(python), "-W", "ignore", "-m", "benchmarks.peers.drift", peer]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=child_environment())
    if done.returncode:
        return {"case": case, "skipped": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "case": case,
        "ratio": round(1e3 * found["cpu_s"] / ours_ms, 1),
        "rows_per_s": round(drift.NUM_ROWS / found["cpu_s"]),
        "peer_versions": found["versions"],
    }


@dataclass(frozen=True)
class Fleet:
    """A fleet whose drift is known: two features everywhere, a third one in group 0.

    Attributes:
        num_devices: D, one report of each.
        num_groups: G.
        num_features: F.
        num_days: Days of baseline, one slot each, as many rows in each as the reports have.
        rows: Sensor rows in a report.
    """

    num_devices: int = 10_000
    num_groups: int = 20
    num_features: int = 128
    num_days: int = 180
    rows: int = 60

    @property
    def bins(self) -> Bins:
        """Ten bins of equal chance for each feature."""
        open_F = np.full(self.num_features, np.inf)
        edges_FE = np.tile(np.linspace(0.0, 1.0, 11), (self.num_features, 1))
        return Bins(tuple(f"f{i}" for i in range(self.num_features)), edges_FE, -open_F, open_F)

    @property
    def group_D(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """``[D]`` groups in turn."""
        return np.arange(self.num_devices) % self.num_groups

    @property
    def drifted_GF(self) -> NDArray[np.bool_]:  # noqa: N802 - a shape suffix
        """``[G, F]`` the truth."""
        truth = np.zeros((self.num_groups, self.num_features), dtype=bool)
        truth[:, :2] = truth[0, 2] = True
        return truth

    def baseline(self) -> NDArray[np.int64]:
        """``[S, G, F, C]`` counts by day."""
        rows = self.rows * self.num_devices // self.num_groups
        shape = (self.num_days, self.num_groups, self.num_features)
        return np.random.default_rng(1).multinomial(rows, _shares(shift=0.0), shape)

    def reports(self) -> Reports:
        """One report of each device, somewhere in the same 24 slots."""
        rng, count_K = np.random.default_rng(2), self.num_devices
        features_KFC = rng.multinomial(self.rows, _shares(0.0), (count_K, self.num_features)).astype(np.int32)
        for group, feature in np.argwhere(self.drifted_GF):
            devices = np.flatnonzero(self.group_D == group)
            features_KFC[devices, feature] = rng.multinomial(self.rows, _shares(0.12), len(devices))
        device_K = np.arange(count_K)
        outputs_KM = np.full((count_K, 2), self.rows // 2, dtype=np.int32)
        confidence_KB = np.zeros((count_K, NUM_CONFIDENCE_BINS), dtype=np.int32)
        confidence_KB[:, -1] = self.rows // 2 * 2
        latency_KL = np.zeros((count_K, NUM_LATENCY_BINS), dtype=np.int32)
        latency_KL[:, 8] = self.rows // 2 * 2
        return Reports(
            device_K,
            device_K % 24,
            np.ones_like(device_K),
            np.zeros_like(device_K),
            np.full(count_K, 86_400.0),
            self.bins.digest,
            features_KFC,
            np.zeros((count_K, self.num_features), np.int32),
            outputs_KM,
            confidence_KB,
            np.zeros_like(confidence_KB),
            latency_KL,
        )


def _shares(shift: float) -> NDArray[np.float64]:
    """The chances of 13 cells: nothing under, over or missing, and some moved from the first half to the second."""
    shares_C = np.zeros(13)
    shares_C[1:6], shares_C[6:11] = 0.1 - shift / 5.0, 0.1 + shift / 5.0
    return shares_C


def fleet_case(fleet: Fleet, repeats: int = _REPEATS) -> dict[str, Any]:
    """Seconds to refuse, merge and judge one report of each device."""
    slots_SGFC = fleet.baseline()
    nulls = [fit_null(slots_SGFC[:, group], 1, 1) for group in range(fleet.num_groups)]
    fleet_null = fit_null(slots_SGFC.sum(axis=1), 1, 1)
    baseline_GFC, reports = slots_SGFC.sum(axis=0), fleet.reports()
    walls = []
    for _ in range(repeats):
        store = FleetStore(fleet.num_devices, fleet.group_D, fleet.bins, 3600.0, 24, num_outputs=2)
        marks = [time.perf_counter()]
        accepted, refusals = refuse(reports, store.known({1}), now=86_400.0)
        marks.append(time.perf_counter())
        added = store.add(accepted)
        marks.append(time.perf_counter())
        fleet_F, groups_GF = judge(store, baseline_GFC, fleet_null, nulls)
        marks.append(time.perf_counter())
        walls.append(np.diff(marks))
        if refusals or added != fleet.num_devices:
            raise RuntimeError("reports were lost")
        if not fleet_F[:2].all() or not groups_GF[fleet.drifted_GF].all():
            raise RuntimeError("a drift was not found")
    parts = np.median(walls, axis=0)
    false = int(groups_GF[~fleet.drifted_GF].sum())
    seconds = float(np.median(np.sum(walls, axis=1)))
    return {
        "case": "fleet",
        "wall_s": round(seconds, 4),
        "met": seconds < MOST_S,
        "reports_per_s": round(fleet.num_devices / seconds),
        "wall_s_of": dict(zip(("refuse", "merge", "judge"), np.round(parts, 4).tolist(), strict=True)),
        "false_discoveries": f"{false} of {int((~fleet.drifted_GF).sum())} features by group",
        "num_devices": fleet.num_devices,
        "num_features": fleet.num_features,
        "num_cells": 13,
        "num_groups": fleet.num_groups,
    }


def judge(
    store: FleetStore, baseline_GFC: NDArray[np.int64], fleet_null: EmpiricalNull, nulls: list[EmpiricalNull]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What has drifted in the last 24 slots: ``[F]`` in the fleet, ``[G, F]`` by group."""
    window = store.window(24, 24)
    fleet_F = psi(baseline_GFC.sum(axis=0), window.features_FC)
    group_GF = psi(baseline_GFC, window.features_GFC)
    p_F = pooled_p_value(fleet_null, fleet_F)
    p_GF = np.stack([pooled_p_value(null, psi_F) for null, psi_F in zip(nulls, group_GF, strict=True)])
    return benjamini_yekutieli(p_F, 0.05), benjamini_hochberg(p_GF, 0.05)


def main() -> int:
    """Print one JSON line per measurement."""
    place = {"versions": versions("numpy", "fedretrain"), "cores": cores()}
    ours = psi_case()
    lines = [ours, fleet_case(Fleet())]
    lines += [peer_case(peer, ours["cpu_ms"]["ours"]) for peer in (*drift.PEERS, *SKIPPED)]
    for line in lines:
        print(json.dumps({**line, **place}), flush=True)
        append("monitoring", {**line, **place})
    return int(not all(line.get("met", True) for line in lines))


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":  # read when numpy is loaded: start again
        raise SystemExit(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.monitoring"], check=False, env=child_environment()
            ).returncode
        )
    raise SystemExit(main())
