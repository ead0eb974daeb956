"""Where the peers run: pfl-research in a virtual environment of its own, everything on one thread.

Rules of this file:
    * pfl-research's pins do not fit ours, so it gets `.venv-pfl` beside the repository's own; made at the first use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_VENV = _ROOT / ".venv-pfl"
_PFL = "pfl[pytorch]==0.6.0"


@lru_cache(maxsize=1)
def pfl_python() -> Path | None:
    """The interpreter that has pfl-research, or None if it cannot be installed."""
    python, stamp = _VENV / "bin" / "python", _VENV / ".installed"
    if stamp.exists():
        return python
    torch = metadata.version("torch").split("+")[0]
    print(f"installing {_PFL} into {_VENV.name} (once) ...", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"torch=={torch}", _PFL, "psutil"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"pfl-research is left out: {error}", file=sys.stderr)
        return None
    stamp.touch()
    return python


def child_environment() -> dict[str, str]:
    """The environment of every engine's process: one thread, no telemetry."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **quiet,
    }
