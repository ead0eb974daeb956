"""``python -m benchmarks.reduce``: how fast the streaming reducer is, and that its memory does not grow.

Rules of this file:
    * One JSON line per measurement, ratios first, with versions and cores.
    * Speed is a share of memory copy speed: the time to copy the same updates once over the time to clip and sum them,
      CPU time, the best of several alternating repetitions.
    * Peak memory is that of a whole fresh process (Python and numpy included) for each cohort size.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import cores, versions
from benchmarks.results import append
from fedretrain.aggregation.aggregator import Aggregator, ExampleWeightedMean, FixedDenominatorMean
from fedretrain.coordinator.ports import RoundSpec
from fedretrain.coordinator.reduce import Reducer
from fedretrain.core.types import UpdateBlock

if TYPE_CHECKING:
    from collections.abc import Callable

COHORTS = (10, 100, 1_000, 10_000)
MEMORY_SIZE, BLOCK = 36_000, 64
# name, parameters, clients in a block, clip norm, aggregator
CASES: tuple[tuple[str, int, int, float | None, Aggregator[Any]], ...] = (
    ("mlp_5k_clipped", 5_000, 512, 1.0, FixedDenominatorMean(512)),
    ("cnn_36k_clipped", 36_000, 256, 1.0, FixedDenominatorMean(256)),
    ("cnn_36k_weighted_unclipped", 36_000, 256, None, ExampleWeightedMean()),
    ("one_device_1m_clipped", 1_000_000, 1, 1.0, FixedDenominatorMean(1)),
)
_REPEATS = 9
_POOL_BYTES = 2**27  # more than the caches hold: updates come from memory


def block_of(clients: int, size: int, first: int = 0) -> UpdateBlock:
    """A block of random updates of norm about 2."""
    delta = np.random.default_rng(0).standard_normal((clients, size), dtype=np.float32)
    delta *= np.float32(2.0 / np.sqrt(size))
    return UpdateBlock(
        clients=np.arange(first, first + clients),
        delta_KP=delta,
        num_examples=np.full(clients, 50),
        loss=np.zeros(clients, dtype=np.float32),
        personal_KQ=np.zeros((clients, 0), dtype=np.float32),
    )


def spec_of(size: int, clip_norm: float | None, aggregator: Aggregator[Any]) -> RoundSpec:
    """A round over a model of one tensor."""
    return RoundSpec(0, {"w": np.zeros(size, np.float32)}, 0, 0, 0.0, aggregator, clip_norm)


def speed(
    name: str, size: int, clients: int, clip_norm: float | None, aggregator: Aggregator[Any]
) -> dict[str, Any]:
    """The reducer's share of memory copy speed for one kind of block."""
    spec, calls = spec_of(size, clip_norm, aggregator), max(1, _POOL_BYTES // (4 * clients * size))
    pool = [block_of(clients, size, first=call * clients) for call in range(calls)]
    copy = np.empty_like(pool[0].delta_KP)

    def reduce() -> None:
        reducer = Reducer(spec, keep_oracle=False)
        for block in pool:
            reducer.add(block)

    def memcpy() -> None:
        for block in pool:
            np.copyto(copy, block.delta_KP)

    timed = alternate({"reduce": reduce, "memcpy": memcpy})
    cpu_ms = {engine: 1e3 * min(times) / calls for engine, times in timed.items()}
    return {
        "case": name,
        "share_of_memcpy": round(cpu_ms["memcpy"] / cpu_ms["reduce"], 4),
        "updates_per_s": round(clients / cpu_ms["reduce"] * 1e3),
        "gb_per_s": round(copy.nbytes / cpu_ms["reduce"] / 1e6, 2),
        "cpu_ms": {engine: round(ms, 4) for engine, ms in cpu_ms.items()},
        "spread": {engine: round(spread(times), 3) for engine, times in timed.items()},
        "num_parameters": size,
        "clients_in_block": clients,
    }


def alternate(engines: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """CPU seconds of each engine, taken in turns so that a noisy neighbour meets all alike."""
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    for repeat in range(_REPEATS + 1):
        for engine, run in engines.items():
            start = time.process_time()
            run()
            if repeat:  # the first is for warming up
                times[engine].append(time.process_time() - start)
    return times


def spread(times: list[float]) -> float:
    """The interquartile range over the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def peak_mib(num_updates: int) -> float:
    """Peak memory of this process once it has reduced so many updates."""
    spec, block = spec_of(MEMORY_SIZE, 1.0, FixedDenominatorMean(num_updates)), block_of(BLOCK, MEMORY_SIZE)
    reducer = Reducer(spec, keep_oracle=False)
    for first in range(0, num_updates, BLOCK):
        rows = min(BLOCK, num_updates - first)
        ids = np.arange(first, first + rows)
        part = UpdateBlock(
            ids, block.delta_KP[:rows], block.num_examples[:rows], block.loss[:rows], block.personal_KQ[:rows]
        )
        reducer.add(part)
    if reducer.result().partial.num_clients != num_updates:
        raise RuntimeError("updates were lost")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory() -> dict[str, Any]:
    """Peak memory over cohort sizes, each in a fresh process."""
    peaks = {}
    for cohort in COHORTS:
        command = [sys.executable, "-m", "benchmarks.reduce", "--peak", str(cohort)]
        peaks[cohort] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    least, most = min(peaks.values()), max(peaks.values())
    return {
        "case": "memory",
        "ratio_10000_over_10": round(peaks[COHORTS[-1]] / peaks[COHORTS[0]], 3),
        "growth_mib": round(most - least, 2),
        "peak_mib": {str(cohort): round(peak, 2) for cohort, peak in peaks.items()},
        "all_updates_would_take_mib": round(COHORTS[-1] * MEMORY_SIZE * 4 / 2**20),
        "num_parameters": MEMORY_SIZE,
        "clients_in_block": BLOCK,
    }


def main(arguments: list[str]) -> int:
    """Print one JSON line per measurement."""
    if arguments[:1] == ["--peak"]:
        print(peak_mib(int(arguments[1])))
        return 0
    place = {"versions": versions("numpy", "fedretrain"), "cores": cores()}
    lines = [memory(), *(speed(*case) for case in CASES)]
    for line in lines:
        print(json.dumps({**line, **place}), flush=True)
        if "cpu_ms" in line:
            append("reduce", {**line, **place})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
