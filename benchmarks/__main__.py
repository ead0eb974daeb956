"""``python -m benchmarks [NAME ...]``: every benchmark, or the named ones; what ``make bench`` runs.

Rules of this file:
    * Peers are set up first, so that no download falls into a measurement.
    * Each benchmark is a process of its own. Its lines are printed as they come, and kept in one file for each run,
      ``outputs/benchmarks/<time>.jsonl``, for ``python -m benchmarks.compare OLD NEW``.
    * A benchmark that fails, or misses its limit, does not keep the others from running; the exit status tells.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from benchmarks.peers.environment import child_environment, drift_python, pfl_python
from benchmarks.results import FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES = (
    "reduce",
    "monitoring",
    "monitoring_year",
    "monitoring_null",
    "inference",
    "agent",
    "health",
    "outbox",
    "upload",
    "lifetime",
    "scale",
    "fleet",
    "client_update",
)
"""The quick ones first."""


def main(arguments: Sequence[str]) -> int:
    """Run benchmarks one after the other; 0 if all went well, 2 for a name that is none."""
    unknown = set(arguments) - set(NAMES)
    if unknown:
        print(
            f"error: there is no benchmark {min(unknown)!r} - choose from {', '.join(NAMES)}", file=sys.stderr
        )
        return 2
    names = [name for name in NAMES if name in (arguments or NAMES)]
    if "client_update" in names and pfl_python() is None:
        print("client_update goes on without pfl-research", file=sys.stderr)
    if "monitoring" in names and drift_python() is None:
        print("monitoring goes on without its peers", file=sys.stderr)
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
    failed = [name for name in names if run(name, kept) != 0]
    print(f"kept in {kept}", file=sys.stderr)
    if failed:
        print(f"failed, or beyond a limit: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def run(name: str, kept: Path) -> int:
    """Run one benchmark, print its lines as they come and append them to `kept`; its exit status."""
    print(f"{name} ...", file=sys.stderr)
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment()) as process,
        kept.open("a") as file,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
    return process.returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
