"""``python -m benchmarks.client_update [--cases A,B] [--engines A,B] [--repeats N]``: one JSON line for each case."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.client_update.cases import CASES, Case
from benchmarks.client_update.job import save
from benchmarks.measure import cores, versions
from benchmarks.peers.environment import child_environment, pfl_python
from benchmarks.results import append

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENGINES = ("flower", "pfl", "each", "batched", "central")
_TIMEOUT_S = 3600


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen cases."""
    chosen = _parse(arguments)
    for name in chosen.cases.split(","):
        line = measure(CASES[name], chosen.engines.split(","), chosen.repeats)
        print(json.dumps(line), flush=True)
        append("client_update", line)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_update")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each engine, taken in turn")
    chosen = parser.parse_args(arguments)
    for given, known in ((chosen.cases, tuple(CASES)), (chosen.engines, ENGINES)):
        for name in given.split(","):
            if name not in known:
                parser.error(f"{name!r} is not one of {', '.join(known)}")
    return chosen


def measure(case: Case, engines: list[str], repeats: int) -> dict[str, Any]:
    """Run every engine `repeats` times, in turn, and compare them."""
    whole = case.job.advance
    results: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory(prefix="fedretrain-bench-") as name:
        folder = Path(name)
        problem = case.problem()
        save(folder, case.job, problem)
        for _ in range(repeats):
            for engine in engines:
                if (found := _run(engine, case, folder)) is not None:
                    results[engine].append(found)
        differences = {engine: _difference(folder, engine) for engine in engines if results[engine]}
    line = _line(case, problem.num_clients, {e: r for e, r in results.items() if r}, whole=whole)
    line["max_abs_difference"] = differences
    line["skipped"] = {engine: _why_not(engine, case) for engine in engines if not results[engine]}
    return line


def _why_not(engine: str, case: Case) -> str | None:
    if engine == "pfl" and case.job.personal:
        return "pfl-research has no personal layers"
    if engine == "central" and case.job.advance:
        return "a centralised pass is no federated training"
    if engine == "pfl" and pfl_python() is None:
        return "pfl-research could not be installed"
    return None


def _run(engine: str, case: Case, folder: Path) -> dict[str, Any] | None:
    if _why_not(engine, case) is not None:
        return None
    python = pfl_python() if engine == "pfl" else sys.executable
    done = subprocess.run(
        [str(python), "-m", "benchmarks.client_update.worker", engine, str(folder)],
        env=child_environment(),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the engine {engine} failed on {case.job.case}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads((folder / f"{engine}.json").read_text())
    return found


def _line(
    case: Case, num_clients: int, results: dict[str, list[dict[str, Any]]], *, whole: bool
) -> dict[str, Any]:
    """Medians over rounds and repeats, and their ratios."""
    cpu = {engine: _per_client(runs, num_clients, "cpu", whole=whole) for engine, runs in results.items()}
    wall = {engine: _per_client(runs, num_clients, "wall", whole=whole) for engine, runs in results.items()}
    ours = cpu.get("batched")

    def ratio(peer: str) -> float | None:
        return None if ours is None or peer not in cpu else round(cpu[peer] / ours, 2)

    return {
        "case": case.job.case,
        "unit": "the whole training" if whole else "per client update",
        "cpu_ms": {engine: round(value * 1e3, 4) for engine, value in cpu.items()},
        "wall_s": {engine: round(value, 7) for engine, value in wall.items()},
        "peak_mib": {e: round(max(r["peak_mib"] for r in runs), 1) for e, runs in results.items()},
        "ratio_flower": ratio("flower"),
        "ratio_pfl": ratio("pfl"),
        "ratio_each": ratio("each"),
        "fraction_of_central": ratio("central"),
        "spread": {e: _spread(runs, whole=whole) for e, runs in results.items()},
        "accuracy": {
            e: runs[-1]["accuracy"] for e, runs in results.items() if runs[-1]["accuracy"] is not None
        },
        "num_clients": num_clients,
        "note": case.note,
        "versions": versions("torch", "flwr", "ray", "numpy") | _pfl_version(results),
        "cores": cores(),
    }


def _samples(runs: list[dict[str, Any]], clock: str, *, whole: bool) -> list[float]:
    if whole:
        return [run[f"whole_{clock}_s"] for run in runs]
    return [value for run in runs for value in run[f"{clock}_s"]]


def _per_client(runs: list[dict[str, Any]], num_clients: int, clock: str, *, whole: bool) -> float:
    middle = statistics.median(_samples(runs, clock, whole=whole))
    return middle if whole else middle / num_clients


def _spread(runs: list[dict[str, Any]], *, whole: bool) -> float:
    """The interquartile range of the CPU time, as a share of its median."""
    values = _samples(runs, "cpu", whole=whole)
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return round((high - low) / middle, 3)


def _pfl_version(results: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    found = results.get("pfl", [{}])[-1].get("versions", {})
    return {"pfl": found["pfl"]} if "pfl" in found else {}


def _difference(folder: Path, engine: str) -> float | None:
    """The largest difference of an engine's aggregate from the reference's (`each`), or None."""
    reference, other = _weights(folder, "each"), _weights(folder, engine)
    if not reference or not other or engine == "each":
        return None
    # Flower weighs by examples, pfl and ours by clients; a peer's noise is its own, so DP is not compared.
    prefix = "weighted/" if engine == "flower" and any(n.startswith("weighted/") for n in reference) else ""
    if json.loads((folder / "job.json").read_text())["noise_multiplier"] and engine != "batched":
        return None
    names = [name for name in other if prefix + name in reference and not name.startswith("weighted/")]
    return max(float(np.abs(reference[prefix + name] - other[name]).max()) for name in names)


def _weights(folder: Path, engine: str) -> dict[str, NDArray[Any]]:
    path = folder / f"{engine}.npz"
    if not path.exists():
        return {}
    with np.load(path) as stored:
        return dict(stored)


if __name__ == "__main__":
    main()
