"""Who is exposed: a rank for each device, so that a larger share always contains a smaller one.

Rules of this file:
    * Nested: a device in the canary at 2 % is still in at 10 %, so it is switched once and its own record stays one.
    * Stratified: each stratum (a device type, a site) is exposed in proportion, within one device of the exact share.
    * A rank is drawn once per rollout, for the fleet as it is then; who joins later waits for the promotion.
    * The holdback is the far end of the same ranks: never exposed while it lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.rng import seeds_for, uniforms

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_GOLDEN = 0.6180339887498949


def ranks(device_D: ArrayLike, stratum_D: ArrayLike, salt: int) -> NDArray[np.float64]:
    """Each device's place in the queue for exposure.

    Within a stratum of n devices the ranks are (position + u) / n, with positions in random order, so any share f exposes n f devices rounded up
    or down. The offset u differs from stratum to stratum along the golden ratio's sequence: with one and the same offset, a fleet of many
    strata of a single device would be exposed all at once or not at all.

    Args:
        device_D: ``[D]`` device ids, each once.
        stratum_D: ``[D]`` integer stratum of each.
        salt: Seed of the rollout: another one is another order.

    Returns:
        ``[D]`` float64 in [0, 1), which depends on the ids, not on their order in the arguments.
    """
    device_D, stratum_D = np.asarray(device_D, np.int64), np.asarray(stratum_D, np.int64)
    if device_D.shape != stratum_D.shape or device_D.ndim != 1:
        raise ValueError(f"devices {device_D.shape} and strata {stratum_D.shape} are not one row each")
    if len(np.unique(device_D)) != len(device_D):
        raise ValueError("a device that is listed twice")
    key_D = uniforms(seeds_for(salt, -1, device_D, "exposure"), 1)[:, 0]
    start = float(uniforms(seeds_for(salt, -1, np.zeros(1, np.int64), "exposure offset"), 1)[0, 0])
    order_D = np.lexsort((device_D, key_D, stratum_D))
    strata, first_S, size_S = np.unique(stratum_D[order_D], return_index=True, return_counts=True)
    offset_S = (start + _GOLDEN * strata) % 1.0
    position_D = np.arange(len(device_D)) - np.repeat(first_S, size_S)
    rank_D = np.empty(len(device_D))
    rank_D[order_D] = (position_D + np.repeat(offset_S, size_S)) / np.repeat(size_S, size_S)
    return np.minimum(rank_D, np.nextafter(1.0, 0.0))


def held_back(rank_D: NDArray[np.float64], holdback_fraction: float) -> NDArray[np.bool_]:
    """Who keeps the older version: ``[D]`` bool, nested in `holdback_fraction` too."""
    return rank_D >= 1.0 - holdback_fraction


def exposed(
    rank_D: NDArray[np.float64], fraction: float, holdback_fraction: float = 0.0
) -> NDArray[np.bool_]:
    """Who serves the candidate at a share of `fraction`: ``[D]`` bool, without the holdback."""
    return (rank_D < fraction) & ~held_back(rank_D, holdback_fraction)


def control(rank_D: NDArray[np.float64], fraction: float) -> NDArray[np.bool_]:
    """The concurrent control of an exposure of `fraction`: who serves the champion, the holdback included."""
    return rank_D >= fraction
