"""Randomness of the operating system: for noise and coins that nobody may replay.

Every bit is `os.urandom`'s. What may be repeated comes from `core.rng` instead.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def uniforms(*shape: int) -> NDArray[np.float64]:
    """Uniform draws in (0, 1), never 0 or 1, of 53 bits each."""
    words = np.frombuffer(os.urandom(8 * math.prod(shape)), dtype="<u8").reshape(shape)
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(size: int) -> NDArray[np.float64]:
    """Standard normal draws ``[size]`` by Box and Muller's transform."""
    u = uniforms(2, (size + 1) // 2)
    radius, angle = np.sqrt(-2.0 * np.log(u[0])), 2.0 * np.pi * u[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
