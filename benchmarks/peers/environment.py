"""Where the peers run: in virtual environments of their own, everything on one thread.

Rules of this file:
    * Peers' pins do not fit ours (pfl-research's torch; Evidently needs pandas below 3), so they get `.venv-pfl` and
      `.venv-monitoring` beside the repository's own; made at the first use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PFL = "pfl[pytorch]==0.6.0"
_DRIFT = ("evidently==0.7.23", "pandas<3", "frouros==0.9.0")


@lru_cache(maxsize=1)
def pfl_python() -> Path | None:
    """The interpreter that has pfl-research, or None if it cannot be installed."""
    torch = metadata.version("torch").split("+")[0]
    return _python(".venv-pfl", f"torch=={torch}", _PFL, "psutil")


@lru_cache(maxsize=1)
def drift_python() -> Path | None:
    """The interpreter that has the drift monitors, or None if they cannot be installed."""
    return _python(".venv-monitoring", *_DRIFT, "psutil")


def _python(folder: str, *requirements: str) -> Path | None:
    """The interpreter of a virtual environment, made once."""
    venv = _ROOT / folder
    python, stamp = venv / "bin" / "python", venv / ".installed"
    if stamp.exists():
        return python
    wanted = ", ".join(requirements)
    print(f"installing {wanted} into {folder} (once) ...", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"left out, {wanted} cannot be installed: {error}", file=sys.stderr)
        return None
    stamp.touch()
    return python


def child_environment() -> dict[str, str]:
    """The environment of every engine's process: one thread, no telemetry."""
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "DO_NOT_TRACK": "1",
    }
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **quiet,
    }
