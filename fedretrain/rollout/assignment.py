"""An order spread over devices, and what they say of it.

Rules of this file:
    * A device counts as confirmed by its own word only: the digest it runs, under the present order's counter, after its health checks.
    * A confirmation of another counter or digest is refused, counted by name, and changes nothing.
    * An order to go back targets every device that ever was to run the candidate, the silent ones included: they may have installed it offline.
    * A silent device is pending until the order expires, then expired; one that comes back afterwards still counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.evidence import Exposure
from fedretrain.rollout.exposure import exposed, held_back

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from fedretrain.rollout.events import Order

    Flags = NDArray[np.bool_]


class Slip(StrEnum):
    """Why a confirmation does not count."""

    WRONG_COUNTER = "wrong_counter"
    WRONG_DIGEST = "wrong_digest"
    NO_TARGET = "no_target"
    FUTURE_CLOCK = "future_clock"


@dataclass(frozen=True)
class Assignments:
    """Who shall run what under the present order, and who said that they do.

    Attributes:
        rank_D: ``[D]`` place in the queue for exposure.
        order: The present one; None before the first.
        issued_at: When it was given.
        version_D: ``[D]`` int64 version that each device shall run.
        ever_D: ``[D]`` whether it ever was to run the candidate.
        target_D: ``[D]`` whose word the present order waits for.
        confirmed_D: ``[D]`` targets that confirmed.
        failed_D: ``[D]`` targets whose health check refused.
    """

    rank_D: NDArray[np.float64]
    order: Order | None
    issued_at: float
    version_D: NDArray[np.int64]
    ever_D: NDArray[np.bool_]
    target_D: NDArray[np.bool_]
    confirmed_D: NDArray[np.bool_]
    failed_D: NDArray[np.bool_]


def unassigned(rank_D: NDArray[np.float64], champion: int) -> Assignments:
    """Everybody runs the champion and nobody is asked for anything."""
    nobody_D = np.zeros(len(rank_D), np.bool_)
    version_D = np.full(len(rank_D), champion, np.int64)
    return Assignments(rank_D, None, 0.0, version_D, nobody_D, nobody_D, nobody_D, nobody_D)


def assign(old: Assignments, order: Order, now: float) -> Assignments:
    """The assignments under a new order.

    Devices that already run the candidate, and shall go on, stay confirmed; an order that changes what a device shall run asks it anew.

    Raises:
        ValueError: If the order is not newer than the present one.
    """
    if old.order is not None and order.counter <= old.order.counter:
        raise ValueError(f"order {order.counter} after order {old.order.counter}")
    on_D = exposed(old.rank_D, order.fraction, order.holdback_fraction)
    version_D = np.full(len(on_D), order.fallback, np.int64)
    version_D[held_back(old.rank_D, order.holdback_fraction)] = order.holdback_version
    version_D[on_D] = order.candidate
    falls = order.fraction == 0.0 or (old.order is not None and order.fraction < old.order.fraction)
    ever_D = old.ever_D | on_D
    target_D = ever_D if falls else on_D
    same_D = target_D & old.target_D & (version_D == old.version_D)
    return Assignments(
        old.rank_D, order, now, version_D, ever_D, target_D, old.confirmed_D & same_D, old.failed_D & same_D
    )


def shadowing(assignments: Assignments) -> NDArray[np.bool_]:
    """Who scores the candidate without serving it: ``[D]`` bool."""
    order = assignments.order
    return exposed(assignments.rank_D, 0.0 if order is None else order.shadow_fraction)


def confirm(
    old: Assignments,
    device_K: ArrayLike,
    counter: int,
    digest: str,
    digests: Mapping[int, str],
    now: float,
    *,
    said_at: float | None = None,
    healthy: bool = True,
) -> tuple[Assignments, dict[Slip, int]]:
    """What K devices say of themselves, all of the same digest.

    Args:
        old: The assignments.
        device_K: ``[K]`` positions of the devices in ``rank_D``.
        counter: The order that they answer.
        digest: The digest that they run, or that they refuse.
        digests: The digest of each version.
        now: Instant.
        said_at: When they said it by their own clock; None is `now`.
        healthy: Whether the digest passed their health checks; False says that they stayed where they were.

    Returns:
        The new assignments, and how many confirmations did not count, by name.
    """
    device_K = np.unique(np.asarray(device_K, np.int64))
    if old.order is None or counter != old.order.counter:
        return old, {Slip.WRONG_COUNTER: len(device_K)}
    if said_at is not None and said_at > now:
        return old, {Slip.FUTURE_CLOCK: len(device_K)}
    wanted = [version for version, known in digests.items() if known == digest]
    right_K = np.isin(old.version_D[device_K], wanted)
    counts_K = right_K & old.target_D[device_K]
    slips = {
        Slip.WRONG_DIGEST: int((~right_K).sum()),
        Slip.NO_TARGET: int((right_K & ~old.target_D[device_K]).sum()),
    }
    heard_K = device_K[counts_K]
    confirmed_D, failed_D = old.confirmed_D.copy(), old.failed_D.copy()
    confirmed_D[heard_K], failed_D[heard_K] = healthy, not healthy
    new = replace(old, confirmed_D=confirmed_D, failed_D=failed_D)
    return new, {slip: count for slip, count in slips.items() if count}


def exposure(assignments: Assignments, now: float, heard_at_D: NDArray[np.float64] | None = None) -> Exposure:
    """What the targets of the present order say, as numbers.

    Args:
        assignments: The present ones.
        now: Instant.
        heard_at_D: ``[D]`` when each device was last heard of, -inf for never; None says that nobody is known to be offline.
    """
    if assignments.order is None:
        return Exposure()
    heard_D = None if heard_at_D is None else heard_at_D >= assignments.issued_at
    return answered(
        assignments.order, assignments.target_D, assignments.confirmed_D, assignments.failed_D, now, heard_D
    )


def answered(
    order: Order, target_D: Flags, confirmed_D: Flags, failed_D: Flags, now: float, heard_D: Flags | None
) -> Exposure:
    """How an order's targets have answered it.

    Args:
        order: The order.
        target_D: ``[D]`` whom it is about.
        confirmed_D: ``[D]`` who serves what it says.
        failed_D: ``[D]`` who tried and could not, or would not.
        now: From the order's expiry on, whoever has not confirmed is expired, silent or failed.
        heard_D: ``[D]`` who was heard of since it was given; None says that nobody is known to be offline.
    """
    open_D = target_D & ~confirmed_D
    over = now >= order.expires_at
    tried_D = open_D & failed_D & (not over)
    pending_D = open_D & ~tried_D & (not over)
    return Exposure(
        num_targets=int(target_D.sum()),
        num_confirmed=int((target_D & confirmed_D).sum()),
        num_expired=int((open_D & over).sum()),
        num_pending=int(pending_D.sum()),
        num_failed=int(tried_D.sum()),
        num_offline=0 if heard_D is None else int((pending_D & ~heard_D).sum()),
        counter=order.counter,
    )
