"""Parameter trees: `Mapping[str, ndarray]`, and their packed form, one float32 vector.

Rules of this file:
    * A tree's order is the sorted order of its names, so two trees with the same names pack alike.
    * Only floating-point parameters pack: an integer buffer (a counter) is a constant of the model, never
      averaged, clipped or noised.
    * 0-d parameters are parameters like any other (a peer's clip let them through).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Params = Mapping[str, NDArray[Any]]
"""A parameter tree."""


@dataclass(frozen=True)
class Layout:
    """Where each parameter of a tree stands in its packed vector.

    Attributes:
        names: Parameter names, sorted.
        shapes: The shape of each.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Layout:
        """The layout of a tree of arrays (anything with `shape`).

        Raises:
            TypeError: If a leaf is not of a floating-point type.
        """
        names = tuple(sorted(tree))
        for name in names:
            dtype = getattr(tree[name], "dtype", None)
            if isinstance(dtype, np.dtype) and not np.issubdtype(dtype, np.floating):
                raise TypeError(
                    f"parameter {name!r} has type {dtype}; only floating-point parameters are sent"
                )
        return cls(names, tuple(tuple(tree[name].shape) for name in names))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each parameter."""
        return tuple(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter begins."""
        return tuple(int(o) for o in np.concatenate([[0], np.cumsum(self.sizes)[:-1]])) if self.names else ()

    @cached_property
    def size(self) -> int:
        """The length of the packed vector, P."""
        return sum(self.sizes)

    def pack(self, tree: Params) -> NDArray[np.float32]:
        """The tree as one float32 vector ``[P]``."""
        vector = np.empty(self.size, dtype=np.float32)
        for name, shape, offset, size in zip(self.names, self.shapes, self.offsets, self.sizes, strict=True):
            leaf = np.asarray(tree[name])
            if leaf.shape != shape:
                raise ValueError(f"parameter {name!r} has shape {leaf.shape}, expected {shape}")
            vector[offset : offset + size] = leaf.reshape(-1)
        return vector

    def unpack(self, vector: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float32]]:
        """The tree of a packed vector ``[P]`` (copies, so that the vector may be reused)."""
        if vector.shape != (self.size,):
            raise ValueError(f"a packed vector of {self.size} elements was expected, not {vector.shape}")
        return {
            name: vector[offset : offset + size].astype(np.float32).reshape(shape)
            for name, shape, offset, size in zip(
                self.names, self.shapes, self.offsets, self.sizes, strict=True
            )
        }


def digest(tree: Params) -> str:
    """SHA-256 over names, types, shapes and little-endian bytes: equal exactly for equal trees."""
    state = hashlib.sha256()
    for name in sorted(tree):
        leaf = np.ascontiguousarray(tree[name])
        leaf = leaf.astype(leaf.dtype.newbyteorder("<"), copy=False)
        state.update(f"{name}|{leaf.dtype.str}|{leaf.shape}|".encode())
        state.update(leaf.tobytes())
    return state.hexdigest()
