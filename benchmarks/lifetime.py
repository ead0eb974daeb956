"""``python -m benchmarks.lifetime``: what a year of a thousand devices costs, hour by hour, with all that the loop does in it.

Rules of this file:
    * The shipped experiment ``lifetime_synthetic`` under one policy and one seed, in one process with one thread: making
      the fleet, the first champion, every tick, the books. Only the report and its files are left out.
    * More words override the experiment: ``fleet.num_devices=100 lifetime.duration_s=2592000 ...``; the limit holds for
      the experiment as it ships.
    * One JSON line. The exit status is 1 if the CPU seconds, which a busy machine changes least, are above the limit: one
      process with one thread takes no longer on a free core.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.measure import Tree, cores, versions
from benchmarks.results import append
from sim.configure import configure
from sim.lifetime.policies import policies_of
from sim.lifetime.underway import live

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_S = 300.0
_SHIPPED = ("experiment=lifetime_synthetic", "policies=[hybrid]", "runner=local")


def measure(words: Sequence[str] = ()) -> dict[str, Any]:
    """Live the life once; what it cost.

    Args:
        words: Overrides of the experiment.
    """
    torch.set_num_threads(1)
    config = configure([*_SHIPPED, *words])
    (policy,) = policies_of(config.lifetime)
    tree = Tree()
    before = tree.read()
    life = live(config, policy, config.seed)
    after = tree.read()
    wall_s, ticks = after.wall_s - before.wall_s, config.lifetime.num_ticks
    summary = life.summary
    return {
        "case": "life",
        "wall_s": round(wall_s, 2),
        "cpu_s": round(after.cpu_s - before.cpu_s, 2),
        "limit_s": MOST_S,
        "ticks": ticks,
        "ticks_per_s": round(ticks / wall_s, 1),
        "peak_mib": round(tree.peak_mib()),
        "devices": round(summary.device_hours * 3600.0 / config.lifetime.duration_s),
        "retrains": summary.retrains,
        "accuracy": round(summary.accuracy, 4),
        "digest": summary.digest,
        "overrides": list(words),
        "versions": versions("numpy", "torch", "fedretrain"),
        "cores": cores(),
    }


def main(words: Sequence[str]) -> int:
    """Print one JSON line; 1 if the year as it ships costs more than the limit."""
    line = measure(words)
    print(json.dumps(line), flush=True)
    append("lifetime", line)
    return int(not words and line["cpu_s"] > MOST_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
