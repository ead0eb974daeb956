"""``python -m benchmarks.compare OLD NEW``: what has changed beyond noise between two saved runs.

Rules of this file:
    * OLD and NEW are files of JSON lines as `benchmarks.results` writes them.
    * A change counts when it exceeds both runs' interquartile spread and five per cent. Runs on other machines or
      versions are compared all the same, and said so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import read

_LEAST_CHANGE = 0.05


def main(arguments: list[str]) -> int:
    """Print one JSON line for each case and engine; 1 if ours became slower beyond noise."""
    if len(arguments) != 2:
        print("usage: python -m benchmarks.compare OLD NEW", file=sys.stderr)
        return 2
    old, new = (read(Path(name)) for name in arguments)
    slower = False
    for case in sorted(old.keys() & new.keys()):
        for line in changes(old[case], new[case]):
            print(json.dumps(line))
            slower |= line["engine"] == "batched" and line["verdict"] == "slower"
    return int(slower)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """How each engine's CPU time of one case has changed."""
    same_place = old.get("versions") == new.get("versions") and old.get("cores") == new.get("cores")
    found = []
    for engine in sorted(old.get("cpu_ms", {}).keys() & new.get("cpu_ms", {}).keys()):
        ratio = new["cpu_ms"][engine] / old["cpu_ms"][engine]
        noise = max(_LEAST_CHANGE, old["spread"].get(engine, 0.0), new["spread"].get(engine, 0.0))
        verdict = "slower" if ratio > 1 + noise else "faster" if ratio < 1 / (1 + noise) else "no change"
        found.append(
            {
                "case": new["case"],
                "engine": engine,
                "ratio": round(ratio, 3),
                "noise": round(noise, 3),
                "verdict": verdict,
                "same_versions_and_cores": same_place,
            }
        )
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
