"""Parts of a life with the device as the unit: how far another draw of devices would move a figure.

Rules of this file:
    * A device is one value: the mean over seeds of its accuracy in a part. So devices that were predicted often weigh no
      more than others, and a figure may differ a little from the accuracy of all rows.
    * Intervals are 95 %, a bootstrap over devices (`sim.statistics.over_devices`), and say nothing about another run's
      luck; a fleet of fewer than five devices has none.
    * A change is paired by device: what a device scored in a part less what the same device scored in the first.
    * A device without rows in a part of some seed is left out of that part.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.statistics import over_devices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sim.lifetime.records import Life, LifetimeRun
    from sim.results import Estimate


@dataclass(frozen=True)
class PartScore:
    """One part of the life under one policy, over devices.

    Attributes:
        policy: Name of the policy.
        segment: Name of the part.
        accuracy: Mean over devices.
        change: Accuracy less that of the first part, paired by device; None for the first.
    """

    policy: str
    segment: str
    accuracy: Estimate
    change: Estimate | None


def part_scores(run: LifetimeRun) -> list[PartScore]:
    """Every part under every policy, in the order in which they are shown; nothing where no life kept its devices."""
    return [
        score
        for policy in run.policies
        for score in _of_policy(policy, [life for life in run.lives if life.summary.policy == policy])
    ]


def _of_policy(policy: str, lives: Sequence[Life]) -> list[PartScore]:
    found = {name: means for name, means in device_means(lives).items() if means}
    if not found:
        return []
    first = next(iter(found))
    scores = []
    for name, means in found.items():
        both = [device for device in means if device in found[first]]
        moved = [means[device] - found[first][device] for device in both]
        change = over_devices(moved) if name != first and moved else None
        scores.append(PartScore(policy, name, over_devices(list(means.values())), change))
    return scores


def device_means(lives: Sequence[Life]) -> dict[str, dict[int, float]]:
    """Part -> device -> mean over seeds of its accuracy; devices that some seed did not score are left out.

    Args:
        lives: One policy's.
    """
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for life in lives:
        for score in life.devices:
            values[score.segment][score.device].append(score.accuracy)
    return {
        name: {device: _mean(one) for device, one in sorted(own.items()) if _whole(one, len(lives))}
        for name, own in values.items()
    }


def _whole(values: Sequence[float], num_seeds: int) -> bool:
    return len(values) == num_seeds and bool(np.isfinite(values).all())


def _mean(values: Sequence[float]) -> float:
    known: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    return float(known.mean())
