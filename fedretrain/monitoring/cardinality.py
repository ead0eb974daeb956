"""How many distinct values a feature had: a HyperLogLog sketch whose merge is a maximum.

Rules of this file:
    * A sketch is an array of uint8 registers, the last axis R of them; empty is zeros. Merging is the element-wise maximum:
      in any order, and as often as one likes.
    * The hash is a fixed function of the value: the sketches of all devices and years fit together. float32 and float64 of one
      value hash alike, -0.0 is 0.0, and a missing value is not a value.
    * The standard error is about 1.04 / sqrt(R): 6.5 % with 256 registers.

Source: Flajolet, Fusy, Gandouet, Meunier 2007, "HyperLogLog: the analysis of a near-optimal cardinality estimation
algorithm", AofA, https://doi.org/10.46298/dmtcs.3545. With 64-bit hashes its correction for large ranges is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core import rng
from fedretrain.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_REGISTERS = 256
"""R unless one asks for something else."""
_MOST_REGISTERS = 2048  # 11 bits choose the register, 53 give the rank: exact in a float64


def empty_sketch(*shape: int, num_registers: int = NUM_REGISTERS) -> NDArray[np.uint8]:
    """Sketches that have seen nothing: ``[*shape, R]``.

    Raises:
        ConfigError: If the number of registers is not a power of 2 from 16 to 2048.
    """
    if not (16 <= num_registers <= _MOST_REGISTERS and num_registers & (num_registers - 1) == 0):
        raise ConfigError(
            f"{num_registers} registers",
            where="num_registers",
            fix=f"give a power of 2 from 16 to {_MOST_REGISTERS}",
        )
    return np.zeros((*shape, num_registers), dtype=np.uint8)


def add(sketch_FR: NDArray[np.uint8], x_NF: NDArray[Any]) -> NDArray[np.uint8]:
    """The sketches with more values.

    Args:
        sketch_FR: ``[F, R]``; left as it is.
        x_NF: ``[N, F]`` values; NaN is left out.

    Returns:
        ``[F, R]``.

    Raises:
        DataError: If the features do not fit.
    """
    values_NF = np.asarray(x_NF).astype(np.float64)
    num_features, num_registers = sketch_FR.shape
    if values_NF.ndim != 2 or values_NF.shape[1] != num_features:
        raise DataError(f"rows of shape {values_NF.shape} for {num_features} sketches", where="x_NF")
    hashes_NF = rng.words_at((values_NF + 0.0).view(np.uint64), 0)  # -0.0 + 0.0 is 0.0
    register_NF = (hashes_NF & np.uint64(num_registers - 1)).astype(np.int64)
    rest_NF = (hashes_NF >> np.uint64(11)).astype(np.float64)
    rank_NF = 54 - np.frexp(rest_NF)[1]  # of 53 bits: the place of the first 1, 54 if there is none
    place_NF = register_NF + np.arange(num_features) * num_registers
    present_NF = ~np.isnan(values_NF)
    added = sketch_FR.copy().reshape(-1)
    np.maximum.at(added, place_NF[present_NF], rank_NF[present_NF].astype(np.uint8))
    return added.reshape(sketch_FR.shape)


def merge(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The sketches of the values of both.

    Raises:
        DataError: If they have different numbers of registers.
    """
    if a.shape[-1] != b.shape[-1]:
        raise DataError(f"sketches of {a.shape[-1]} and {b.shape[-1]} registers do not merge", where="sketch")
    return np.maximum(a, b)


def estimate(sketch_R: NDArray[np.uint8]) -> NDArray[np.float64]:
    """About how many distinct values each sketch has seen.

    Args:
        sketch_R: ``[..., R]``.

    Returns:
        ``[...]``; exactly 0 for an empty sketch.
    """
    num_registers = sketch_R.shape[-1]
    constant = {16: 0.673, 32: 0.697, 64: 0.709}.get(num_registers, 0.7213 / (1.0 + 1.079 / num_registers))
    harmonic = np.ldexp(1.0, -sketch_R.astype(np.int32)).sum(axis=-1)
    raw = constant * num_registers**2 / harmonic
    empty = np.sum(sketch_R == 0, axis=-1)
    linear = num_registers * np.log(num_registers / np.maximum(empty, 1))
    return np.asarray(np.where((raw <= 2.5 * num_registers) & (empty > 0), linear, raw))
