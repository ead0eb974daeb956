"""Saved benchmark results: one JSON line each under ``outputs/benchmarks``.

Rules of this file:
    * Appended, never rewritten; a line carries its versions, cores and time.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

FOLDER = Path("outputs") / "benchmarks"


def append(name: str, line: dict[str, Any]) -> None:
    """Append a measurement to ``outputs/benchmarks/NAME.jsonl``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**line, "measured_at": round(time.time())}) + "\n")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each case in a file of results."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {str(line["case"]): line for line in lines if "case" in line}
