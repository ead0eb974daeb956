"""What example-level DP costs each device: accounted device by device, reported apart from the fleet's epsilon.

Rules of this file:
    * The adversary may be the server, so a device is charged for whatever it *sent*: in rounds that were abandoned, and
      in replies that came too late or were refused. One that was offline, had nothing labelled or went away sent nothing.
    * An answer that was lost on the way (its worker died) is charged if the device had data to train on.
    * `sent` is a table ``[E, 3]`` int64: device, samples that it held, rounds in which it sent with so many; sorted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.types import FailureKind
from fedretrain.privacy.example import ExampleDp
from fedretrain.training.example_cost import accounting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.coordinator.state import RoundResult
    from sim.arm import Arm

DELTA = 1e-5
"""What an example-level epsilon is stated at."""

_SENT_NOTHING = frozenset(
    {FailureKind.UNAVAILABLE, FailureKind.DROPPED, FailureKind.NO_DATA, FailureKind.REFUSED}
)


def nothing_sent() -> NDArray[np.int64]:
    """The table before the first round."""
    return np.zeros((0, 3), dtype=np.int64)


def _claimed(arm: Arm) -> bool:
    """Whether an example-level epsilon is claimed: its noise is on."""
    example = arm.config.training.example_dp
    return example is not None and example.noise_multiplier > 0


def with_round(arm: Arm, sent: NDArray[np.int64], result: RoundResult, at: float) -> NDArray[np.int64]:
    """The table after a round, whatever became of it; the same where nothing is claimed.

    Args:
        arm: Its fleet says what each device held.
        sent: The table before.
        result: The round's.
        at: The instant at which the round began.
    """
    if not _claimed(arm):
        return sent
    silent = [int(failure.client) for failure in result.failures if failure.kind not in _SENT_NOTHING]
    devices = np.union1d(result.oracle.clients, np.array(silent, dtype=np.int64))
    sizes = np.array([len(held) for held in arm.world.fleet.trainable(devices, at)], dtype=np.int64)
    new = np.stack([devices, sizes, np.ones_like(devices)], axis=1)[sizes > 0]
    both = np.concatenate([sent, new])
    pairs, inverse = np.unique(both[:, :2], axis=0, return_inverse=True)
    rounds = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(rounds, inverse.reshape(-1), both[:, 2])
    return np.concatenate([pairs, rounds[:, None]], axis=1)


def example_epsilons(
    arm: Arm, devices: NDArray[np.int64], sent: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Example-level epsilon of each device after a campaign.

    Args:
        arm: Its training section says whether and how.
        devices: ``[K]`` whose, sorted.
        sent: What all devices sent.

    Returns:
        ``[K]`` at a delta of a tenth of one over the largest device's samples, hence also at any larger one, and of
        `DELTA` at most; or None with example-level DP off (or its noise, which claims nothing).
    """
    local = arm.config.training
    if local.example_dp is None or not _claimed(arm):
        return None
    own = sent[np.isin(sent[:, 0], devices)]
    sizes = own[:, 1]
    costs = accounting(local, arm.task.phases(), sizes)
    steps = np.array([cost.steps for cost in costs], dtype=np.int64) * own[:, 2]
    dp = ExampleDp(
        local.example_dp.noise_multiplier,
        local.example_dp.clip_norm,
        local.batch_size,
        min(DELTA, 0.1 / int(sent[:, 1].max(initial=1))),
    )
    charged, whose = np.unique(own[:, 0], return_inverse=True)
    found = np.zeros(len(devices))
    found[np.isin(devices, charged)] = dp.epsilons(sizes, steps, devices=whose.reshape(-1))
    return found


def worst_epsilon(arm: Arm, sent: NDArray[np.int64]) -> float | None:
    """The largest example-level epsilon of all devices that sent anything, scored or not; None where none is claimed."""
    found = example_epsilons(arm, np.unique(sent[:, 0]), sent)
    return None if found is None else float(found.max(initial=0.0))
