"""``python -m benchmarks.upload``: updates sent as 8-bit codes with error feedback, against whole ones: bytes and accuracy.

Rules of this file:
    * The shipped experiment ``watch_streams`` (20 real streams, a global and a personalized arm), the same seed and fleet, once with
      ``training.upload=full`` and once with ``int8``; what devices send is what the simulator counts and the server sums.
    * More words override the experiment: ``campaign.num_rounds=10 model=cnn1d ...``; the limits hold for it as it ships.
    * One JSON line for each arm, ratios first. The exit status is 1 if int8 sends more than 0.3 of the bytes, or an arm's accuracy is more
      than `MOST_LOST` below that of whole updates.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.measure import cores, versions
from benchmarks.results import append
from sim.experiment import run_overrides
from sim.outputs import load_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.results import ArmSummary

MOST_BYTES, MOST_LOST = 0.3, 0.01
_SHIPPED = ("experiment=watch_streams", "runner=local", "tracking_uri=off")


def arms(upload: str, words: Sequence[str] = ()) -> tuple[ArmSummary, ...]:
    """The experiment's arms with updates sent in one way.

    Args:
        upload: ``full`` or ``int8``.
        words: Overrides of the experiment.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_overrides([*_SHIPPED, *words, f"training.upload={upload}", f"output_dir={folder}"], quiet=True)
        return load_run((Path(folder) / "latest").resolve()).summary.arms


def measure(words: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Both ways; one line for each arm."""
    torch.set_num_threads(1)
    lines = []
    for whole, packed in zip(arms("full", words), arms("int8", words), strict=True):
        scores = [_score(one) for one in (whole, packed)]
        each = [one.bytes_up / one.replied for one in (whole, packed)]
        lines.append(
            {
                "case": whole.arm,
                "bytes_ratio": round(each[1] / each[0], 4),
                "accuracy_lost": round(scores[0] - scores[1], 4),
                "accuracy_full": round(scores[0], 4),
                "accuracy_int8": round(scores[1], 4),
                "bytes_full": round(each[0]),
                "bytes_int8": round(each[1]),
                "limits": {"bytes_ratio": MOST_BYTES, "accuracy_lost": MOST_LOST},
                "overrides": list(words),
                "versions": versions("numpy", "torch", "fedretrain"),
                "cores": cores(),
            }
        )
    return lines


def _score(arm: ArmSummary) -> float:
    """Of what the arm's devices predict with."""
    population = arm.headline
    assert population is not None
    found = population.personalized or population.global_model
    return float(found.score.mean.value)


def main(words: Sequence[str]) -> int:
    """Print one JSON line for each arm; 1 if a limit is missed."""
    lines = measure(words)
    for line in lines:
        print(json.dumps(line), flush=True)
        append("upload", line)
    missed = [one for one in lines if one["bytes_ratio"] > MOST_BYTES or one["accuracy_lost"] > MOST_LOST]
    return int(not words and bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
