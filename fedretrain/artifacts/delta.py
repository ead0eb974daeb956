"""Canonical int8 deltas: released weights are *defined* as base plus dequantised delta.

Rules of this file:
    * Quantise first, evaluate and sign afterwards: every device reaches the same digest, whether it took the
      delta or the full file.
    * `apply_delta` is bit-deterministic: residual (8 bits) times scale (24 bits) is exact in float64; one
      addition and one rounding to float32 follow, each fixed by IEEE 754, and no order of summation enters.
    * A delta names its base and its result, and both are checked.
    * Decoding allocates what the base's layout asks for, never what the bytes claim. Every malformed input is
      a `DataError`.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from fedretrain.artifacts.weights import canonical, encode_params, params_digest
from fedretrain.core.errors import DataError
from fedretrain.core.params import Layout, Params

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"FRDELTA\0"
VERSION = 1
HEADER = struct.Struct("<8sH32s32s")  # magic, version, SHA-256 of the base, SHA-256 of the result
LEVEL = 19  # zstd's slowest ordinary level: one release is packed once and fetched by the whole fleet
RESIDUAL_MAX = 127


@dataclass(frozen=True, eq=False)
class Delta:
    """The difference between two versions of a model.

    Attributes:
        base_digest: Digest of the weights it starts from.
        result_digest: Digest of the weights it leads to.
        layout: Where each parameter stands in the packed residuals.
        scales: float32 ``[C]``: what one step of a residual is worth, for each output channel (entry of the
            first axis; a 0-d parameter is one channel) of each parameter in the layout's order.
        residuals: int8 ``[P]``, in [-127, 127].
    """

    base_digest: str
    result_digest: str
    layout: Layout
    scales: NDArray[np.float32]
    residuals: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Release:
    """What is evaluated, signed and shipped.

    Attributes:
        weights: The released weights.
        delta_bytes: The encoded delta; None where the full file is not larger, or there is no base.
        full_bytes: The canonical safetensors bytes; their SHA-256 is `digest`.
        digest: Digest of the weights.
    """

    weights: dict[str, NDArray[np.float32]]
    delta_bytes: bytes | None
    full_bytes: bytes
    digest: str

    @cached_property
    def shipped(self) -> bytes:
        """The smaller of delta and full file."""
        return self.full_bytes if self.delta_bytes is None else self.delta_bytes


def quantise(base: Params, new: Params) -> Delta:
    """The delta from base to (nearly) new.

    Before the result is rounded to float32, each entry of it is at most half its channel's scale away from new;
    a channel whose largest change is m has the scale m / 127, rounded up where float32 would round it down.

    Raises:
        DataError: If names or shapes differ, or a tree is not finite floating-point weights.
    """
    old, target = canonical(base), canonical(new)
    layout = Layout.of(old)
    if layout != Layout.of(target):
        raise DataError(
            "the new weights have other names or shapes than their base",
            where="weights",
            fix="release them without a base",
        )
    scales, residuals = [np.zeros(0, np.float32)], [np.zeros(0, np.int8)]
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        change = (target[name].astype(np.float64) - old[name]).reshape(_channels(shape))
        scale, residual = _quantise_rows(change)
        scales.append(scale)
        residuals.append(residual.reshape(-1))
    scale_C, residual_P = np.concatenate(scales), np.concatenate(residuals)
    result = layout.unpack(_sum(layout.pack(old), layout, scale_C, residual_P))
    return Delta(params_digest(old), params_digest(result), layout, scale_C, residual_P)


def apply_delta(base: Params, delta: Delta) -> dict[str, NDArray[np.float32]]:
    """Base plus dequantised delta, float32, the same bits on every machine.

    Raises:
        DataError: If the delta is for another base, or does not lead to the digest that it names.
    """
    old = canonical(base)
    _check_base(params_digest(old), delta.base_digest)
    result = delta.layout.unpack(_sum(delta.layout.pack(old), delta.layout, delta.scales, delta.residuals))
    found = params_digest(result)
    if found != delta.result_digest:
        raise DataError(
            f"the delta leads to {found}, not to {delta.result_digest}",
            where="delta",
            fix="fetch the delta again, or the full file",
        )
    return result


def encode_delta(delta: Delta) -> bytes:
    """Header, then one zstd frame of the scales (little-endian float32) and the residuals (int8)."""
    header = HEADER.pack(MAGIC, VERSION, bytes.fromhex(delta.base_digest), bytes.fromhex(delta.result_digest))
    body = delta.scales.astype("<f4", copy=False).tobytes() + delta.residuals.tobytes()
    return header + _compress(body)


def decode_delta(content: bytes, base: Params) -> Delta:
    """The delta of encoded bytes; `apply_delta` checks where it leads.

    Args:
        content: What `encode_delta` returned.
        base: The weights that the delta starts from; their layout bounds what is allocated.

    Raises:
        DataError: If the bytes are malformed, of another version, or for another base.
    """
    base_digest, result_digest = delta_digests(content)
    old = canonical(base)
    _check_base(params_digest(old), base_digest)
    layout = Layout.of(old)
    count = sum(_channels(shape)[0] for shape in layout.shapes)
    body = _decompress(content[HEADER.size :], 4 * count + layout.size)
    scales = np.frombuffer(body, "<f4", count).astype(np.float32)
    residuals = np.frombuffer(body, np.int8, offset=4 * count)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise _malformed("a scale is negative or not finite")
    if (residuals < -RESIDUAL_MAX).any():
        raise _malformed("a residual is out of range")
    return Delta(base_digest, result_digest, layout, scales, residuals)


def delta_digests(content: bytes) -> tuple[str, str]:
    """The digests of base and result that encoded bytes name, as yet unchecked.

    Raises:
        DataError: If the bytes do not begin like a delta of this version.
    """
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise _malformed("it does not begin like one")
    _, version, base_digest, result_digest = HEADER.unpack_from(content)
    if version != VERSION:
        raise DataError(
            f"the delta has format {version}, this software reads format {VERSION}",
            where="delta",
            fix="fetch the full file, or update the software",
        )
    return base_digest.hex(), result_digest.hex()


def release(base: Params | None, new: Params) -> Release:
    """Define the released weights, and encode them in full and, where that is smaller, as a delta.

    Args:
        base: The champion's released weights; None for a first release or a new architecture: then the
            released weights are the new ones.
        new: The weights that training came to.

    Raises:
        DataError: As `quantise`.
    """
    weights, delta_bytes = canonical(new), None
    if base is not None:
        delta = quantise(base, new)
        weights = apply_delta(base, delta)
        delta_bytes = encode_delta(delta)
    full_bytes = encode_params(weights)
    if delta_bytes is not None and len(delta_bytes) >= len(full_bytes):
        delta_bytes = None
    return Release(weights, delta_bytes, full_bytes, hashlib.sha256(full_bytes).hexdigest())


def _channels(shape: tuple[int, ...]) -> tuple[int, int]:
    """A parameter as (output channels, entries of each)."""
    return (shape[0], int(np.prod(shape[1:], dtype=np.int64))) if shape else (1, 1)


def _quantise_rows(change: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scales ``[rows]`` and residuals ``[rows, columns]`` of a change ``[rows, columns]``."""
    largest = np.abs(change).max(axis=1, initial=0.0)
    with np.errstate(under="ignore"):  # a scale below the smallest float32 is raised to it in the next line
        scale = (largest / RESIDUAL_MAX).astype(np.float32)
    is_low = scale.astype(np.float64) * RESIDUAL_MAX < largest
    scale = np.where(is_low, np.nextafter(scale, np.float32(np.inf)), scale)
    step = np.where(scale > 0, scale, np.float32(1)).astype(np.float64)
    return scale, np.rint(change / step[:, None]).astype(np.int8)


def _sum(
    base: NDArray[np.float32], layout: Layout, scales: NDArray[np.float32], residuals: NDArray[np.int8]
) -> NDArray[np.float32]:
    """Base ``[P]`` plus scale times residual, in float64, rounded once; beyond float32's range its end."""
    channels = np.array([_channels(shape) for shape in layout.shapes], dtype=np.int64).reshape(-1, 2)
    scale = np.repeat(scales.astype(np.float64), np.repeat(channels[:, 1], channels[:, 0]))
    exact = base + scale * residuals
    end = float(np.finfo(np.float32).max)
    with np.errstate(under="ignore"):  # rounding to a subnormal or to zero is rounding like any other
        return np.clip(exact, -end, end).astype(np.float32)


def _compress(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(body)


def _decompress(frame: bytes, size: int) -> bytes:
    """Exactly `size` bytes of one zstd frame; the frame's own claim is compared before anything is allocated."""
    try:
        claimed = zstandard.frame_content_size(frame)
        if claimed != size:
            raise _malformed(f"it claims {claimed} bytes, its base has {size}")
        if size == 0 and frame != _compress(b""):  # the library reads no further than a claim of 0 bytes
            raise _malformed("its base has no entries, and it is not empty")
        body = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _malformed(str(error)) from error
    if len(body) != size:
        raise _malformed(f"it has {len(body)} bytes, its base {size}")
    return body


def _check_base(found: str, expected: str) -> None:
    if found != expected:
        raise DataError(
            f"the delta is for the base {expected}, not for {found}",
            where="delta",
            fix="fetch the full file",
        )


def _malformed(why: str) -> DataError:
    return DataError(f"this is not a delta: {why}", where="delta", fix="fetch it again, or the full file")
