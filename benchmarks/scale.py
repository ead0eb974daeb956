"""``python -m benchmarks.scale``: whether a round's time and memory depend on the cohort alone, not on the fleet.

Rules of this file:
    * The real loop: `sim`'s campaign, runner, batched executor, sampling, reduction and evaluation, nothing left out.
      A round asks 10,000 clients out of 10,000 devices, and out of 1,000,000.
    * A client is that of `benchmarks.client_update`'s first case: MLP 64-64-6, 50 samples in batches of 10, one epoch.
    * Each fleet has a process of its own (peak memory is the process's), and the fleets take turns round by round, so
      that a noisy machine meets both alike. The first round of each warms up and is not counted.
    * Advantages of the small fleet stay in: its devices are asked again in every round and come from the cache, while
      those of the large one are made anew each time.
    * One JSON line for each fleet, and a last one with the ratio: the median over turns of large over small.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Tree, cores, versions
from benchmarks.results import append

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from sim.results import RoundRecord

COHORT = 10_000
FLEETS = (10_000, 1_000_000)
MOST_RATIO, MOST_MIB = 1.3, 4096.0
_CLIENT = (
    "model=mlp",  # one hidden layer of 64
    "fleet.generator.num_features=64",
    "fleet.generator.num_classes=6",
    "fleet.generator.num_samples=62",  # 50 to train on, 12 to score
    "fleet.generator.scored_fraction=0.2",
    "training.batch_size=10",
    "training.epochs=1",
)


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        devices: Sizes of the fleets.
        cohort: Clients asked in a round.
        rounds: Rounds counted for each fleet.
        runner: `local` or `ray`.
        overrides: More of the experiment's words, for example ``availability=diurnal``.
    """

    devices: tuple[int, ...]
    cohort: int
    rounds: int
    runner: str
    overrides: tuple[str, ...]


class Fleet:
    """A process that runs one round of its fleet whenever it is told to.

    Args:
        options: What is measured.
        devices: Of this fleet.
    """

    def __init__(self, options: Options, devices: int) -> None:
        self.devices, self.rounds = devices, list[dict[str, Any]]()
        words = ["--serve", "--devices", str(devices), "--cohort", str(options.cohort)]
        words += ["--rounds", str(options.rounds), "--runner", options.runner, *options.overrides]
        command = [sys.executable, "-m", "benchmarks.scale", *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self) -> None:
        """One more round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fleet of {self.devices} devices ended with {self._process.wait()}")
        self.rounds.append(json.loads(line))

    def end(self) -> None:
        """Let the process go."""
        self._process.communicate()


def serve(options: Options) -> None:
    """Run rounds of one fleet, each when a line comes in; print what each took."""
    from sim.arm import Arms
    from sim.campaign import Campaign
    from sim.experiment import _start_pool
    from sim.plan import plan_run

    begun = time.perf_counter()
    plan = plan_run(words_of(options))
    pool = _start_pool(plan, None)
    arm = Arms().get(plan.arms[0].config, plan.seeds[0])
    campaign = Campaign(plan.arms[0].name, arm)
    runner = pool.runner(arm, campaign.progress.store)
    teller = _Teller(sys.stdin, time.perf_counter() - begun)
    try:
        campaign.run(runner, teller)
    finally:
        runner.close()
        pool.stop()


def words_of(options: Options) -> list[str]:
    """The experiment's words of the first fleet."""
    return [
        "experiment=scale",
        f"runner={options.runner}",
        f"fleet.num_devices={options.devices[0]}",
        f"campaign.cohort_size={options.cohort}",
        f"campaign.num_rounds={options.rounds + 1}",
        "tracking_uri=off",
        *_CLIENT,
        *options.overrides,
    ]


class _Teller:
    """Hears of each round when it is over, prints what it took, and waits for leave to go on."""

    def __init__(self, leave: TextIO, setup_s: float) -> None:
        self._tree, self._leave, self._setup_s = Tree(), leave, setup_s
        leave.readline()
        self._last = self._tree.read()

    def __call__(self, record: RoundRecord) -> None:
        now = self._tree.read()
        line = {
            "wall_s": now.wall_s - self._last.wall_s,
            "cpu_s": now.cpu_s - self._last.cpu_s,
            "peak_mib": self._tree.peak_mib(),
            "replied": record.replied,
            "setup_s": self._setup_s,
        }
        print(json.dumps(line), flush=True)
        self._leave.readline()
        self._last = self._tree.read()


def measure(options: Options) -> list[dict[str, Any]]:
    """One line for each fleet, and the ratio of the last to the first."""
    fleets = [Fleet(options, devices) for devices in options.devices]
    try:
        for _ in range(options.rounds + 1):
            for fleet in fleets:
                fleet.turn()
    finally:
        for fleet in fleets:
            fleet.end()
    lines = [line_of(options, fleet) for fleet in fleets]
    return [*lines, ratio_of(options, fleets)] if len(fleets) > 1 else lines


def line_of(options: Options, fleet: Fleet) -> dict[str, Any]:
    """Medians over a fleet's counted rounds."""
    counted = fleet.rounds[1:]
    wall_s = statistics.median(one["wall_s"] for one in counted)
    cpu_s = [one["cpu_s"] for one in counted]
    return {
        "case": f"{options.cohort}_of_{fleet.devices}_{options.runner}",
        "wall_s_per_round": round(wall_s, 4),
        "clients_per_s": round(options.cohort / wall_s),
        "cpu_ms": {"batched": round(1e3 * statistics.median(cpu_s), 1)},
        "spread": {"batched": round(spread(cpu_s), 3)},
        "peak_mib": round(max(one["peak_mib"] for one in fleet.rounds), 1),
        "setup_s": round(fleet.rounds[0]["setup_s"], 2),
        "replied": min(one["replied"] for one in counted),
        "rounds": len(counted),
    }


def ratio_of(options: Options, fleets: Sequence[Fleet]) -> dict[str, Any]:
    """The large fleet against the small one."""
    small, large = fleets[0], fleets[-1]

    def ratio(key: str) -> float:
        turns = zip(large.rounds[1:], small.rounds[1:], strict=True)
        return statistics.median(one[key] / other[key] for one, other in turns)

    peak_mib = max(one["peak_mib"] for fleet in fleets for one in fleet.rounds)
    wall, cpu = ratio("wall_s"), ratio("cpu_s")
    return {
        "case": f"{large.devices}_over_{small.devices}_{options.runner}",
        "ratio_wall": round(wall, 3),
        "ratio_cpu": round(cpu, 3),
        "most_ratio": MOST_RATIO,
        "peak_mib": round(peak_mib, 1),
        "most_mib": MOST_MIB,
        "met": wall <= MOST_RATIO and peak_mib <= MOST_MIB,
    }


def spread(values: Sequence[float]) -> float:
    """The interquartile range over the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def main(arguments: Sequence[str]) -> int:
    """Print the lines; 1 if the last says that a limit is not met."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale")
    parser.add_argument("--devices", type=int, nargs="+", default=FLEETS)
    parser.add_argument("--cohort", type=int, default=COHORT)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--runner", choices=("local", "ray"), default="local")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    found, overrides = parser.parse_known_args(arguments)
    options = Options(tuple(found.devices), found.cohort, found.rounds, found.runner, tuple(overrides))
    if found.serve:
        serve(options)
        return 0
    place = {"versions": versions("fedretrain", "torch", "numpy", "ray"), "cores": cores()}
    lines = [{**line, **place} for line in measure(options)]
    for line in lines:
        print(json.dumps(line), flush=True)
        append("scale", line)
    return 0 if lines[-1].get("met", True) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
