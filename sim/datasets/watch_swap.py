"""The smartwatch changes arms: each person's watch is worn on one arm, and from one day on the other.

Four periods of equal length: the first half of every recording of the first arm is history; its second half is served;
then the watch is on the other arm, first halves first. Every shift of the signals is real.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError
from sim.datasets import watch
from sim.datasets.base import SensorDataset, rank_fraction

if TYPE_CHECKING:
    from pathlib import Path

    from sim.datasets.base import Timeline

STARTS = ("left", "right", "mixed")


def load(
    data_dir: Path | None = None,
    *,
    timeline: Timeline | None = None,
    split: str = "temporal",
    seed: int = 0,
    first_arm: str = "left",
    period_s: float = 7 * DAY_S,
    train_stride: int = watch.WINDOW,
) -> SensorDataset:
    """Ten people with one watch each.

    Args:
        data_dir: Not used: the file comes with an installed package.
        timeline: Not used: instant 0 is the end of the history.
        split: Temporal; nothing else makes sense here.
        seed: Not used.
        first_arm: ``left``, ``right``, or ``mixed`` (every second person begins with the right).
        period_s: Seconds of each of the four periods; the first one ends at 0.
        train_stride: Samples between the starts of the first halves' windows; see `watch.load`.
    """
    del timeline
    if first_arm not in STARTS or split != "temporal":
        raise ConfigError(f"first_arm={first_arm} split={split}", where="watch_swap", fix="first_arm=left")
    both = watch.load(data_dir, seed=seed, train_stride=train_stride)
    person, arm = both.stream // 2, both.stream % 2
    begins = {"left": np.zeros(10), "right": np.ones(10), "mixed": np.arange(10) % 2}[first_arm]
    period = 2 * (arm != begins[person]).astype(np.int64) + both.future
    order = np.lexsort((np.arange(len(period)), period, person))
    person, period = person[order], period[order]
    at = (period - 1 + rank_fraction(person * 4 + period)) * period_s
    return replace(
        both,
        name="watch_swap",
        x=both.x[order],
        y=both.y[order],
        stream=person.astype(np.int32),
        stream_names=tuple(f"person {p + 1}" for p in range(10)),
        site=np.zeros(10, dtype=np.int32),
        device_type=np.zeros(10, dtype=np.int32),
        event_at=at,
        future=period > 0,
        caveats=(*both.caveats, "10 people, each with one watch that changes arms once"),
    )
