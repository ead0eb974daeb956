"""All randomness comes from `seed_for(run, round, client, purpose)`.

Rules of this file:
    * A stream depends on its four coordinates and on nothing else: cohort, block and shard layout, the
      number of workers and the order of events never change what a client draws.
    * Everything is counter based: the i-th draw is a pure function of (seed, i), so a draw for ten thousand
      clients is one vectorised expression equal, element by element, to ten thousand single ones.
    * For simulation and training only. Production noise comes from the operating system's entropy
      (`privacy.mechanism`), never from here.

Source: the mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators", OOPSLA, https://doi.org/10.1145/2660193.2660195).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, SplitMix64's increment


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit words that flips about half the bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=4096)
def _purpose_word(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def seeds_for(run: int, round_: int, clients: ArrayLike, purpose: str) -> NDArray[np.uint64]:
    """Seeds of many clients at once.

    Args:
        run: The run's seed.
        round_: The round, or -1 for what does not depend on one.
        clients: Client ids, any shape.
        purpose: What the stream is for, for example ``"batches"``.

    Returns:
        uint64 seeds of the shape of `clients`, each equal to `seed_for` of that client.
    """
    ids = np.asarray(clients, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        word = np.full(1, _purpose_word(purpose), dtype=np.uint64)
        for coordinate in (run, round_):
            word = _mix(word + _GOLDEN + _mix(np.full(1, coordinate % 2**64, dtype=np.uint64)))
        return _mix(word[0] + _GOLDEN + _mix(ids + _GOLDEN))


def seed_for(run: int, round_: int, client: int, purpose: str) -> int:
    """The seed of one stream: 0 to 2**64 - 1."""
    return int(seeds_for(run, round_, np.array([client]), purpose)[0])


def generator(seed: int) -> np.random.Generator:
    """A numpy generator for a stream that needs many draws of several kinds."""
    return np.random.Generator(np.random.PCG64DXSM(seed))


def words(seeds: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The first `count` 64-bit words of each seed's stream: shape ``[*seeds.shape, count]``."""
    with np.errstate(over="ignore"):
        counters = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        return _mix(seeds[..., None] + counters)


def words_at(seeds: NDArray[np.uint64], index: ArrayLike) -> NDArray[np.uint64]:
    """The `index`-th word of each seed's stream, asked in any order.

    ``words(seeds, n)[..., i] == words_at(seeds, i)``. `seeds` and `index` broadcast; a negative index (an instant before the start) has a stream of its own.
    """
    with np.errstate(over="ignore"):
        counters = (np.asarray(index, dtype=np.int64).astype(np.uint64) + np.uint64(1)) * _GOLDEN
        return _mix(np.asarray(seeds + counters))


def uniforms_at(seeds: NDArray[np.uint64], index: ArrayLike) -> NDArray[np.float64]:
    """The `index`-th uniform draw in (0, 1) of each seed's stream (see `words_at`)."""
    return ((words_at(seeds, index) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def uniforms(seeds: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Uniform draws in (0, 1), never 0 or 1: shape ``[*seeds.shape, count]``."""
    return ((words(seeds, count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(seeds: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Standard normal draws by Box and Muller's transform: shape ``[*seeds.shape, count]``."""
    u = uniforms(seeds, 2 * count)
    radius = np.sqrt(-2.0 * np.log(u[..., :count]))
    drawn: NDArray[np.float64] = radius * np.cos(2.0 * np.pi * u[..., count:])
    return drawn


def permutations(seeds: NDArray[np.uint64], sizes: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """A random order of each client's own samples.

    Args:
        seeds: ``[K]`` one stream per client.
        sizes: ``[K]`` number of samples of each client, at most `width`.
        width: Columns of the answer.

    Returns:
        ``[K, width]``: row k begins with a permutation of ``0 .. sizes[k] - 1`` and ends with -1. It does not
        depend on `width`.
    """
    keys = words(seeds, width)
    padding = np.arange(width) >= sizes[:, None]
    keys[padding] = np.iinfo(np.uint64).max
    order = np.argsort(keys, axis=1, kind="stable")
    order[padding] = -1
    return order
