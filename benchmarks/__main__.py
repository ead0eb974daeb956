"""``python -m benchmarks``: every benchmark in turn; their arguments are their own (``python -m benchmarks.NAME --help``)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

_ALL = ("reduce", "scale", "client_update")  # quick ones first


def main() -> int:
    """Run all; 1 if any failed."""
    failed = False
    for name in _ALL:
        if importlib.util.find_spec(f"benchmarks.{name}") is None:
            continue
        print(f"# python -m benchmarks.{name}", file=sys.stderr, flush=True)
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
