"""One engine on one job, in a process of its own: ``python -m benchmarks.client_update.worker ENGINE FOLDER``."""

from __future__ import annotations

import sys


def main(engine: str, folder: str) -> None:
    """Run an engine; the result lands in the job's folder."""
    if engine == "flower":
        from benchmarks.peers import flower

        flower.main(folder)
    elif engine == "pfl":
        from benchmarks.peers import pfl

        pfl.main(folder)
    else:
        from benchmarks.client_update import engines

        engines.main(engine, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
