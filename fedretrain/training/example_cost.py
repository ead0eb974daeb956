"""What a device must be charged for under example-level DP; apart from `example_dp`, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import PrivacyError
from fedretrain.training.data import num_steps, sample_rates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.training.config import LocalTraining
    from fedretrain.training.phase import Phase


@dataclass(frozen=True)
class ExampleAccounting:
    """What one device's local training must be charged for: so many Poisson-sampled Gaussian releases.

    Attributes:
        sample_rate: The probability with which an example joins a batch.
        noise_multiplier: Noise standard deviation on the sum, in clip norms.
        steps: Releases in one round.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int


def accounting(
    local: LocalTraining, phases: Sequence[Phase], sizes: NDArray[np.int64]
) -> list[ExampleAccounting]:
    """What each device's training in one round costs under example-level DP (add/remove one example).

    A phase that is not `released` (a private copy that feeds nothing) costs nothing; a device without samples takes
    no step and is charged nothing.

    Args:
        local: How clients train.
        phases: `task.phases()`, or `task.refit_phases()` for a re-fit.
        sizes: ``[K]`` samples of each device.

    Raises:
        PrivacyError: If example-level DP is off, or its noise is.
    """
    dp = local.example_dp
    if dp is None or dp.noise_multiplier == 0:
        raise PrivacyError(
            "there is no example-level privacy to account: its noise is off",
            where="training.example_dp.noise_multiplier",
            fix="set a noise multiplier above 0",
        )
    steps = sum(
        (
            num_steps(sizes, local.batch_size, phase.epochs, phase.max_steps)
            for phase in phases
            if phase.released
        ),
        start=np.zeros_like(sizes),
    )
    rates = sample_rates(sizes, local.batch_size)
    return [
        ExampleAccounting(float(q), dp.noise_multiplier, int(s)) for q, s in zip(rates, steps, strict=True)
    ]
