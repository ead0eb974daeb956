"""PSI of every feature by the peers that install, each as its documentation writes it.

Rules of this file:
    * Runs under `.venv-monitoring`: imports nothing of ours that needs more than numpy and psutil.
    * The same rows for everybody, from one seed. Fitting a reference, where the peer has such a step, is not timed.
    * Their PSI is not our PSI (equal-width bins, no smoothing): what is compared is the time for one figure a feature.

Called by `benchmarks.monitoring` as ``.venv-monitoring/bin/python -m benchmarks.peers.drift PEER``.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

NUM_ROWS, NUM_BASELINE, NUM_FEATURES = 100_000, 10_000, 100


def rows() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The baseline and the live rows, float32 ``[N, F]``; every tenth feature has shifted."""
    rng = np.random.default_rng(0)
    baseline = rng.standard_normal((NUM_BASELINE, NUM_FEATURES), dtype=np.float32)
    live = rng.standard_normal((NUM_ROWS, NUM_FEATURES), dtype=np.float32)
    live[:, ::10] += np.float32(0.5)
    return baseline, live


def evidently() -> Callable[[], Any]:
    """A report with a drift test for each column."""
    import pandas as pd
    from evidently import Dataset, Report  # type: ignore[import-not-found]
    from evidently.presets import DataDriftPreset  # type: ignore[import-not-found]

    names = [f"f{i}" for i in range(NUM_FEATURES)]
    reference, current = (Dataset.from_pandas(pd.DataFrame(part, columns=names)) for part in rows())
    return lambda: Report([DataDriftPreset(method="psi")]).run(current, reference)


def frouros() -> Callable[[], Any]:
    """A detector for each column."""
    from frouros.detectors.data_drift import PSI  # type: ignore[import-not-found]

    baseline, live = rows()
    detectors = [PSI(num_bins=10) for _ in range(NUM_FEATURES)]
    for detector, column in zip(detectors, baseline.T, strict=True):
        detector.fit(X=column)
    return lambda: [
        detector.compare(X=column)[0].distance for detector, column in zip(detectors, live.T, strict=True)
    ]


PEERS: dict[str, tuple[Callable[[], Callable[[], Any]], int]] = {
    "evidently": (evidently, 2),
    "frouros": (frouros, 3),
}
"""How to set each up, and how often it is run (the best counts)."""


def main(arguments: list[str]) -> int:
    """Print one peer's CPU seconds."""
    (name,) = arguments
    make, repeats = PEERS[name]
    run = make()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    print(json.dumps({"cpu_s": min(times), "versions": versions(name, "numpy", "pandas")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
