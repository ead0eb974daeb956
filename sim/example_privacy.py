"""What example-level DP costs each device: accounted device by device, reported apart from the fleet's epsilon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.privacy.example import ExampleDp
from fedretrain.training.example_dp import accounting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.arm import Arm


def example_epsilons(
    arm: Arm, trained: NDArray[np.int32], fewest: NDArray[np.int32], delta: float
) -> NDArray[np.float64] | None:
    """Example-level epsilon of each device after a campaign.

    Args:
        arm: Its training section says whether and how.
        trained: ``[K]`` rounds in which the device's training left it.
        fewest: ``[K]`` the fewest samples it held in any of them: the largest sampling rate, hence an upper bound
            for the rounds in which it held more.
        delta: Of each epsilon; 0: a tenth of one over the largest device's samples, at most 1e-5.

    Returns:
        ``[K]``, or None with example-level DP off (or its noise, which claims nothing).
    """
    local = arm.config.training
    if local.example_dp is None or local.example_dp.noise_multiplier == 0:
        return None
    sizes = np.where(trained > 0, fewest, 0).astype(np.int64)
    costs = accounting(local, arm.task.phases(), sizes)
    steps = np.array([cost.steps for cost in costs], dtype=np.int64) * trained
    dp = ExampleDp(
        local.example_dp.noise_multiplier,
        local.example_dp.clip_norm,
        local.batch_size,
        delta or min(1e-5, 0.1 / max(int(sizes.max(initial=1)), 1)),
    )
    return dp.epsilons(sizes, steps)
