"""Whether a fleet is large enough for differential privacy to leave anything of the signal.

Rules of this file:
    * No epsilon is tuned here: the noise multiplier is what the budget demands; what changes is the fleet.
    * The measure is stated, and it is kind: it assumes that every update is as long as the clip norm and that all
      point the same way. Real updates are shorter and disagree, so a fleet that fails here fails for certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_MODEL_NOISE = 0.1
"""The default limit of `Advice.model_noise`: the noise in the final model, as a share of the farthest that training
could have moved it."""


@dataclass(frozen=True)
class Advice:
    """What noise does to a campaign.

    With P parameters, noise multiplier z, clip norm C, n updates expected a round and T rounds: the noise on the mean
    update has norm z C sqrt(P) / n (its expectation, to 1 / (4 P) relative), the mean update at most C.

    Attributes:
        round_noise: z sqrt(P) / n: noise over signal of one round's mean update, at best.
        model_noise: round_noise / sqrt(T): independent noise adds up as sqrt(T) C while updates add up as T C at most.
        enough: Whether `model_noise` is within the limit.
        fleet_needed: Devices with which it would be, at the same share of the fleet in each round and the same noise
            multiplier (so at the same epsilon).
        params_needed: Or the number of shared parameters with which this fleet would do.
        text: All of it in words.
    """

    round_noise: float
    model_noise: float
    enough: bool
    fleet_needed: int
    params_needed: int
    text: str


def advise(
    *,
    num_params: int,
    noise_multiplier: float,
    cohort: float,
    fleet: int,
    num_rounds: int,
    most_model_noise: float = MOST_MODEL_NOISE,
) -> Advice:
    """Say whether a fleet is large enough, and if not, which would be.

    Args:
        num_params: P, shared parameters.
        noise_multiplier: z on the sum.
        cohort: n, the expected number of updates by which the sum is divided.
        fleet: Devices in the population.
        num_rounds: T.
        most_model_noise: The limit on `Advice.model_noise`.
    """
    round_noise = noise_multiplier * math.sqrt(num_params) / cohort
    model_noise = round_noise / math.sqrt(num_rounds)
    share = cohort / fleet
    fleet_needed = math.ceil(fleet * model_noise / most_model_noise)
    params_needed = math.floor(num_rounds * (most_model_noise * cohort / noise_multiplier) ** 2)
    enough = model_noise <= most_model_noise
    measured = (
        f"noise {round_noise:.2g} times the largest possible mean update in each round, {model_noise:.2g} of the "
        f"farthest that {num_rounds} rounds could move the model (limit {most_model_noise:g})"
    )
    if enough:
        text = f"A fleet of {fleet:,} is large enough: {measured}."
    else:
        text = (
            f"A fleet of {fleet:,} is too small for useful differential privacy at this budget: {measured}. About "
            f"{fleet_needed:,} devices at the same {100 * share:.3g} % a round would do, or at most "
            f"{params_needed:,} shared parameters instead of {num_params:,}; personal layers cost no budget."
        )
    return Advice(
        round_noise=round_noise,
        model_noise=model_noise,
        enough=enough,
        fleet_needed=fleet if enough else fleet_needed,
        params_needed=num_params if enough else params_needed,
        text=text,
    )
