"""Canonical weights: one tree of parameters, one sequence of safetensors bytes, one digest.

Rules of this file:
    * Canonical means little-endian float32, names sorted, no gaps, a header without spaces but those that
      align it. The bytes are written here, not by the library, so that no version of it changes a digest.
    * A digest is the SHA-256 of these bytes: the name of the full file in a content store.
    * Whatever cannot be such a tree is refused by name: other types, NaN and infinities, names that JSON and
      UTF-8 cannot hold.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.params import Params

ALIGNMENT = 8  # the header's length is a multiple of this, as in the files that the library writes


def canonical(tree: Params) -> dict[str, NDArray[np.float32]]:
    """The tree as contiguous float32 arrays, names sorted; shapes as they were.

    Raises:
        DataError: If a parameter is not of a floating-point type, is not finite as float32, or has a name that
            a file of weights cannot hold.
    """
    for name in tree:
        if not isinstance(name, str) or name == "__metadata__" or not _is_text(name):
            raise DataError(
                f"{name!r} cannot name a parameter", where="weights", fix="rename it to plain text"
            )
    return {name: _leaf(name, tree[name]) for name in sorted(tree)}


def encode_params(tree: Params) -> bytes:
    """The canonical safetensors bytes of the tree.

    Raises:
        DataError: As `canonical`.
    """
    leaves = canonical(tree)
    header: dict[str, Any] = {}
    offset = 0
    for name, leaf in leaves.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(leaf.shape),
            "data_offsets": [offset, offset + leaf.nbytes],
        }
        offset += leaf.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    body = [leaf.astype("<f4", copy=False).tobytes() for leaf in leaves.values()]
    return b"".join([len(text).to_bytes(8, "little"), text, *body])


def decode_params(content: bytes) -> dict[str, NDArray[np.float32]]:
    """The tree of canonical safetensors bytes.

    Raises:
        DataError: If the bytes are not exactly what `encode_params` writes.
    """
    try:
        tree = safetensors.numpy.load(content)
        is_canonical = encode_params(tree) == content
    except (safetensors.SafetensorError, DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"these are not weights: {error}", where="full file", fix="fetch the file again"
        ) from error
    if not is_canonical:
        raise DataError(
            "the file of weights is not in its canonical form",
            where="full file",
            fix="write it with encode_params: another form has another digest",
        )
    return canonical(tree)


def params_digest(tree: Params) -> str:
    """SHA-256, in hexadecimal digits, of the canonical safetensors bytes.

    Raises:
        DataError: As `canonical`.
    """
    return hashlib.sha256(encode_params(tree)).hexdigest()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leaf(name: str, value: Any) -> NDArray[np.float32]:
    leaf = np.asarray(value)
    if not np.issubdtype(leaf.dtype, np.floating):
        raise DataError(
            f"the parameter has type {leaf.dtype}; only floating-point parameters are released",
            where=name,
            fix="leave counters and tables out of the weights",
        )
    with np.errstate(over="ignore"):  # an overflow is infinite, and refused in the next line
        single = leaf.astype(np.float32, order="C")
    if not np.isfinite(single).all():
        raise DataError(
            "the parameter has NaN or infinite entries", where=name, fix="do not release this model"
        )
    return single
