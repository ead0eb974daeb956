"""``python -m benchmarks.fleet [--cases A,B] [--size full|quick]``: one JSON line for each measurement, ratios and targets first.

Rules of this file:
    * Everything listens on the loopback interface, and is bounded in count and time.
    * The coordinator and whoever plays the devices share this machine's cores: each line says how.
    * The exit status is 1 where something was lost or counted twice, or a target was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.fleet import connections, floor, storm, superlink
from benchmarks.fleet.sizes import FULL, QUICK
from benchmarks.measure import cores, versions
from benchmarks.results import append

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.fleet.sizes import Size

CASES: dict[str, Callable[[Size], list[dict[str, Any]]]] = {
    "connections": connections.measure,
    "storm": storm.measure,
    "superlink": superlink.measure,
    "round": floor.measure,
}
SIZES = {"full": FULL, "quick": QUICK}


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--size", default="full", choices=SIZES)
    chosen = parser.parse_args(arguments)
    names = chosen.cases.split(",")
    for name in names:
        if name not in CASES:
            parser.error(f"{name!r} is not one of {', '.join(CASES)}")
    about = {"size": chosen.size, "cores": cores(), "versions": versions("grpcio", "flwr", "SQLAlchemy")}
    met = True
    for name in names:
        for line in CASES[name](SIZES[chosen.size]):
            met = met and bool(line.get("met", True))
            print(json.dumps(line | about), flush=True)
            append("fleet", line | about)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
