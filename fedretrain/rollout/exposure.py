"""Who is exposed: a rank for each device, so that a larger share always contains a smaller one.

Rules of this file:
    * Nested: a device in the canary at 2 % is still in at 10 %, so it is switched once and its own record stays one.
    * Even: a share exposes that share of the fleet within half a device, whatever the strata are. How many devices a step exposes is known
      before it starts.
    * Stratified: each stratum (a device type, a site) is exposed in proportion, within one device of the exact share.
    * A rank is drawn once per rollout, for the fleet as it is then; who joins later (`JOINED`) waits for the promotion, and is in no holdback.
    * The holdback is the far end of the same ranks: never exposed while it lasts.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.rng import seeds_for, uniforms

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Ints = NDArray[np.int64]

JOINED = 1.0
"""The rank of a device that joined after the ranks were drawn, which are all smaller."""


def ranks(device_D: ArrayLike, stratum_D: ArrayLike, salt: int) -> NDArray[np.float64]:
    """Each device's place in the queue for exposure.

    The ranks of D devices are (slot + 1/2) / D, each slot once: a share f exposes D f devices, rounded. The device at position p of a stratum
    of n, in random order, has a rank in [p / n, (p + 1) / n), so that f also exposes n f devices of the stratum rounded up or down. Both can be
    had at once for any strata (Steiner and Yeomans 1993, "Level schedules for mixed-model, just-in-time processes", Management Science 39).
    Among such ranks, each device gets one near its wish (p + u) / n; the offset u is the stratum's own, or all small strata would be exposed at
    the same share.

    Args:
        device_D: ``[D]`` device ids, each once.
        stratum_D: ``[D]`` integer stratum of each.
        salt: Seed of the rollout: another one is another order.

    Returns:
        ``[D]`` float64 in (0, 1), which depends on the ids, not on their order in the arguments.
    """
    device_D, stratum_D = np.asarray(device_D, np.int64), np.asarray(stratum_D, np.int64)
    if device_D.shape != stratum_D.shape or device_D.ndim != 1:
        raise ValueError(f"devices {device_D.shape} and strata {stratum_D.shape} are not one row each")
    if len(np.unique(device_D)) != len(device_D):
        raise ValueError("a device that is listed twice")
    key_D = uniforms(seeds_for(salt, -1, device_D, "exposure"), 1)[:, 0]
    order_D = np.lexsort((device_D, key_D, stratum_D))
    strata_S, first_S, size_S = np.unique(stratum_D[order_D], return_index=True, return_counts=True)
    offset_S = uniforms(seeds_for(salt, -1, strata_S, "exposure offset"), 1)[:, 0]
    num = len(device_D)
    size_D = np.repeat(size_S, size_S)
    position_D = np.arange(num) - np.repeat(first_S, size_S)
    # The slots k with p / n <= (k + 1/2) / num < (p + 1) / n, in whole numbers.
    from_D = -((size_D - 2 * num * position_D) // (2 * size_D))
    until_D = -((size_D - 2 * num * (position_D + 1)) // (2 * size_D)) - 1
    slot_D = _slots(from_D, until_D, (position_D + np.repeat(offset_S, size_S)) / size_D)
    rank_D = np.empty(num)
    rank_D[order_D] = (slot_D + 0.5) / max(num, 1)
    return rank_D


def _slots(from_D: Ints, until_D: Ints, wish_D: NDArray[np.float64]) -> Ints:
    """``[D]`` a slot for each device, inside its window and near its wish.

    Slot after slot goes to the waiting device with the smallest wish that leaves room for the deadlines of all others. Linear in D for few
    strata: 0.8 s for 100,000 devices in 100 of them.

    Args:
        from_D: ``[D]`` the first slot of each device's window.
        until_D: ``[D]`` its last.
        wish_D: ``[D]`` who comes first where there is a choice.
    """
    num = len(wish_D)
    # Slots up to k that no device with a deadline up to k needs; 0: none may be given to a device with a later one.
    spare_K = np.arange(1, num + 1) - np.cumsum(np.bincount(until_D, minlength=num))
    coming = np.argsort(-from_D, kind="stable").tolist()
    start, end, wish = from_D.tolist(), until_D.tolist(), wish_D.tolist()
    waiting: list[tuple[float, int]] = []
    slot_D = np.empty(num, dtype=np.int64)
    for slot in range(num):
        while coming and start[coming[-1]] <= slot:
            at = coming.pop()
            heapq.heappush(waiting, (wish[at], at))
        passed_over = []
        while not _leaves_room(spare_K[slot : end[waiting[0][1]]]):
            passed_over.append(heapq.heappop(waiting))
        _, chosen = heapq.heappop(waiting)
        for one in passed_over:
            heapq.heappush(waiting, one)
        spare_K[slot : end[chosen]] -= 1
        slot_D[chosen] = slot
    return slot_D


def _leaves_room(spare_K: Ints) -> bool:
    """Whether each deadline before a device's own can spare the slot that it would take."""
    return not len(spare_K) or bool(spare_K.min() > 0)


def held_back(rank_D: NDArray[np.float64], holdback_fraction: float) -> NDArray[np.bool_]:
    """Who keeps the older version: ``[D]`` bool, nested in `holdback_fraction` too."""
    return (rank_D >= 1.0 - holdback_fraction) & (rank_D < JOINED)


def exposed(
    rank_D: NDArray[np.float64], fraction: float, holdback_fraction: float = 0.0
) -> NDArray[np.bool_]:
    """Who serves the candidate at a share of `fraction`: ``[D]`` bool, without the holdback."""
    reached_D = rank_D < fraction if fraction < 1.0 else np.ones(len(rank_D), np.bool_)
    return reached_D & ~held_back(rank_D, holdback_fraction)


def num_exposed(num_devices: int, fraction: float) -> int:
    """How many of a fleet's devices a share of `fraction` exposes, whatever their ranks turn out to be."""
    slot_D = np.arange(num_devices)
    return int(((slot_D + 0.5) / max(num_devices, 1) < fraction).sum())


def control(rank_D: NDArray[np.float64], fraction: float) -> NDArray[np.bool_]:
    """The concurrent control of an exposure of `fraction`: who serves the champion, the holdback included."""
    return rank_D >= fraction
