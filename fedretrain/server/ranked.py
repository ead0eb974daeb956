"""In which order a rollout's devices are exposed: drawn once for each rollout, and as it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.exposure import JOINED, ranks
from fedretrain.server.fleet import Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.server.fleet import Device


@dataclass(frozen=True)
class Ranked:
    """Frozen with `core.frozen`.

    Attributes:
        rank_D: ``[D]`` float64 place in the queue for exposure.
    """

    rank_D: NDArray[np.float64]


def queue(devices: Sequence[Device], salt: int) -> NDArray[np.float64]:
    """``[D]`` in which order a fleet is exposed: a share of those that may speak; the others stand behind all of them.

    Args:
        devices: Everybody who ever enrolled, by number.
        salt: Of the rollout.
    """
    active = [one for one in devices if one.standing is Standing.ACTIVE]
    strata = {key: i for i, key in enumerate(sorted({_stratum(one) for one in active}))}
    rank_D = np.full(len(devices), JOINED)
    if active:
        number_K = np.array([one.number for one in active])
        rank_D[number_K] = ranks(number_K, [strata[_stratum(one)] for one in active], salt)
    return rank_D


def _stratum(device: Device) -> tuple[str, str]:
    return device.traits.site, device.traits.device_type
