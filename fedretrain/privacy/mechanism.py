"""Noise: what turns a sum of clipped client updates (`rows`) into a Gaussian mechanism. numpy only.

Rules of this file:
    * The noise multiplier is relative to the clip norm, whatever the relation: the noise's standard deviation
      on the *sum* is ``noise_multiplier * clip_norm``, once, for the whole vector (never divided again for each
      tensor, never scaled by who answered). What a relation costs is `sensitivity`, which accounting uses.
    * Production noise is made of the operating system's entropy, bit by bit; seeded noise is for simulation.

Why floating point is not a hole here. A Gaussian drawn in floating point and added to a float leaks through
its support (Mironov 2012, https://doi.org/10.1145/2382196.2382264). So noise is not added to a float: the
reducer's sum S is a vector of integers on a lattice of step g (fixed point, truncated toward zero, so that a
row stays inside its clip norm), `lattice_gaussian` rounds Gaussian noise to whole steps, and integers are added
exactly. For integer S, ``S + round(X) = round(S + X)``: the release is a function of ``S + X`` alone, hence
post-processing of the continuous Gaussian mechanism with the same epsilon, and its support is the lattice
whatever S is. What is left is that X is drawn with 53-bit uniforms: its tail ends at 8.65 standard deviations
(2 Q(8.65) = 5e-18 per coordinate and round; a million parameters and a thousand rounds: 5e-9 in all),
and relative errors of the probabilities near 2**-52. `discrete.py` draws the discrete Gaussian exactly
(arXiv:2004.00010) where even that is too much; tests hold the two against each other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from fedretrain.core import entropy
from fedretrain.core.errors import PrivacyError
from fedretrain.core.rng import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_STEPS = 2.0**49  # 8.65 standard deviations stay below 2**53: every rounded draw is an exact integer


class Relation(StrEnum):
    """Which pairs of data sets count as neighbours."""

    ZERO_OUT = "zero_out"  # one unit's contribution replaced by zero; membership is public (arXiv:2103.00039)
    ADD_REMOVE = "add_remove"  # one unit more or less
    REPLACE_ONE = "replace_one"  # one unit's data replaced by any other


class Unit(StrEnum):
    """Whom or what an epsilon protects."""

    PERSON = "person"
    DEVICE = "device"
    RECORDING = "recording"  # one part of a device's data; finer than a person and than a device


def sensitivity_factor(relation: Relation, unit: Unit) -> float:
    """How far one contribution moves the sum, in clip norms: 1, or 2 where it can be replaced.

    Zero-out and add/remove take away a vector of norm at most C. Replace-one exchanges two such vectors, and so
    does the unit `recording` under any relation: with a part of its data changed a device sends another update,
    at most 2C away (triangle inequality).
    """
    return 2.0 if relation is Relation.REPLACE_ONE or unit is Unit.RECORDING else 1.0


def sensitivity(clip_norm: float, relation: Relation, unit: Unit = Unit.DEVICE) -> float:
    """The L2 sensitivity of the sum of clipped updates to one contribution."""
    return sensitivity_factor(relation, unit) * clip_norm


def noise_stddev(clip_norm: float, noise_multiplier: float) -> float:
    """Standard deviation of the noise on the *sum*: the product of both.

    Raises:
        PrivacyError: If either is not a positive, finite number.
    """
    for name, value in (("clip norm", clip_norm), ("noise multiplier", noise_multiplier)):
        if not (np.isfinite(value) and value > 0):
            raise PrivacyError(
                f"the {name} is {value}", where="privacy", fix="give a positive, finite number"
            )
    return float(clip_norm) * float(noise_multiplier)


class NoiseSource(Protocol):
    """Where Gaussian noise comes from; each call draws afresh."""

    def gaussian(self, size: int, stddev: float) -> NDArray[np.float64]:
        """Independent draws of N(0, stddev^2): float64 ``[size]``."""
        ...


@runtime_checkable
class LatticeSource(Protocol):
    """A noise source that knows better than to round a Gaussian (`discrete.ExactNoise`)."""

    def lattice(self, size: int, stddev_steps: float) -> NDArray[np.int64]:
        """Draws on the integers: int64 ``[size]``."""
        ...


class SeededNoise:
    """Reproducible noise, for simulation and tests only: whoever knows the seed knows the noise.

    Args:
        seed: From `core.rng.seed_for(run, round, client, purpose)`; one source per round and purpose.
    """

    def __init__(self, seed: int) -> None:
        self._generator = generator(seed)

    def gaussian(self, size: int, stddev: float) -> NDArray[np.float64]:
        """Independent draws of N(0, stddev^2), the next of this seed's stream."""
        return self._generator.standard_normal(size) * _checked_stddev(stddev)


class SystemNoise:
    """Noise whose every bit is the operating system's entropy (`os.urandom`): nobody can replay it."""

    def gaussian(self, size: int, stddev: float) -> NDArray[np.float64]:
        """Independent draws of N(0, stddev^2), by Box and Muller's transform."""
        return entropy.normals(size) * _checked_stddev(stddev)


def lattice_gaussian(source: NoiseSource, size: int, stddev: float, step: float) -> NDArray[np.int64]:
    """Gaussian noise rounded to whole steps of a lattice, to be added to an integer sum.

    The sum of integers and this is post-processing of the continuous Gaussian mechanism (module docstring), so
    it has exactly that mechanism's epsilon, and its support does not depend on the data.

    Args:
        source: Where the Gaussian comes from.
        size: P.
        stddev: Of the continuous noise, in the units of the sum.
        step: What one integer step is worth in those units.

    Returns:
        int64 ``[size]`` in steps.

    Raises:
        PrivacyError: If the lattice is coarser than the noise (it would round to nothing) or so fine that a
            draw is no exact integer.
    """
    steps = _checked_stddev(stddev) / step
    if not (1.0 <= steps <= _MAX_STEPS):
        raise PrivacyError(
            f"noise of {stddev:g} on a lattice of step {step:g} is {steps:g} steps wide",
            where="fixed-point sum",
            fix="choose a step between the noise's standard deviation and 2**-49 of it",
        )
    if isinstance(source, LatticeSource):
        return source.lattice(size, steps)
    return np.rint(source.gaussian(size, steps)).astype(np.int64)


def _checked_stddev(stddev: float) -> float:
    """Noise that is zero, negative or NaN is no noise: a defect of the caller's, not a configuration."""
    if not (np.isfinite(stddev) and stddev > 0):
        raise ValueError(f"a noise standard deviation of {stddev} is no noise")
    return float(stddev)
