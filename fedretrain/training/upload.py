"""What a device sends of its update: all of it, or 8-bit codes by channel with the error fed back into the next one. numpy only.

Rules of this file:
    * The device clips first and quantises afterwards; an update that was clipped, or that rounding has made too long, is scaled to
      the bound again. The server clips what it decodes like any other update, so a claim of privacy rests on nothing here.
    * What rounding changed is kept on the device and added to its next update. What clipping cut is not kept: it would pile up.
    * Device and server multiply the same codes by the same scales in float32: what the device believes to have sent is what is summed.
    * One path: devices and the simulator's workers call `pack`, servers `unpack`.

Sources: 8-bit quantisation with error feedback, Seide et al. 2014 (1-bit SGD, https://doi.org/10.21437/Interspeech.2014-274) and
Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.params import Layout

CODE_MAX = 127
CLIP_MARGIN = 1.0 + 2.0**-10
"""A device clips to the clip norm times this, and the server to the norm itself: so the server still sees who was clipped."""
_SHRINK = 1.0 - 2.0**-20  # float32 rounds each entry by at most 2**-24 of it


@dataclass(frozen=True, eq=False)
class Packed:
    """Updates of K clients as they are sent.

    Attributes:
        codes_KP: ``[K, P]`` int8, in [-127, 127].
        scales_KC: ``[K, C]`` float32: what one step is worth in each channel (`num_channels`); NaN where an update was not finite.
    """

    codes_KP: NDArray[np.int8]
    scales_KC: NDArray[np.float32]


def packed_bytes(layout: Layout) -> int:
    """What one client's update takes, packed."""
    return layout.size + 4 * num_channels(layout)


def num_channels(layout: Layout) -> int:
    """C: entries of the first axis of every parameter; a parameter with one axis or none is one channel."""
    return len(_widths(layout))


def pack(
    delta_KP: NDArray[np.float32],
    residual_KP: NDArray[np.float32],
    layout: Layout,
    bound: float | None,
) -> tuple[Packed, NDArray[np.float32]]:
    """Quantise updates.

    Args:
        delta_KP: ``[K, P]`` the updates.
        residual_KP: ``[K, P]`` what earlier ones of the same clients left over; zeros at first.
        layout: Of the shared parameters.
        bound: The longest that what is decoded may be; None: any length.

    Returns:
        What is sent, and ``[K, P]`` what is left over for the next time (nothing where an update is not finite).
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        wanted_KP = (delta_KP + residual_KP).astype(np.float32)
        if bound is not None:
            factor_K = np.minimum(1.0, bound / np.maximum(_norms(wanted_KP), np.finfo(np.float64).tiny))
            wanted_KP = (wanted_KP * factor_K[:, None]).astype(np.float32)
        packed = _quantised(wanted_KP, layout)
        sent_KP = unpack(packed, layout)
        if bound is not None:
            norm_K = _norms(sent_KP)
            shrink_K = np.where((norm_K > bound) | (factor_K < 1.0), bound / norm_K * _SHRINK, 1.0)
            packed = Packed(packed.codes_KP, (packed.scales_KC * shrink_K[:, None]).astype(np.float32))
            sent_KP = unpack(packed, layout)
        left_KP = wanted_KP - sent_KP
    return packed, np.where(np.isfinite(left_KP).all(axis=1)[:, None], left_KP, np.float32(0))


def unpack(packed: Packed, layout: Layout) -> NDArray[np.float32]:
    """``[K, P]`` the updates that were sent."""
    scale_KP = np.repeat(packed.scales_KC, _widths(layout), axis=1)
    with np.errstate(invalid="ignore"):
        sent: NDArray[np.float32] = packed.codes_KP.astype(np.float32) * scale_KP
    return sent


def _quantised(wanted_KP: NDArray[np.float32], layout: Layout) -> Packed:
    """Each channel's largest entry becomes 127."""
    widths = _widths(layout)
    scales_KC = np.zeros((len(wanted_KP), len(widths)), dtype=np.float32)
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)
    full = widths > 0
    if full.any() and len(wanted_KP):
        largest = np.maximum.reduceat(np.abs(wanted_KP), starts[full], axis=1)
        scales_KC[:, full] = largest / np.float32(CODE_MAX)
    scales_KC[~np.isfinite(wanted_KP).all(axis=1)] = np.nan
    scale_KP = np.repeat(scales_KC, widths, axis=1)
    steps = np.divide(wanted_KP, scale_KP, out=np.zeros_like(wanted_KP), where=scale_KP > 0)
    return Packed(np.clip(np.rint(steps), -CODE_MAX, CODE_MAX).astype(np.int8), scales_KC)


def _norms(rows_KP: NDArray[np.float32]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.sqrt(np.square(rows_KP.astype(np.float64)).sum(axis=1))
    return norms


def _widths(layout: Layout) -> NDArray[np.int64]:
    """``[C]`` entries of each channel, in the packed order."""
    counts = [shape[0] if len(shape) > 1 else 1 for shape in layout.shapes]
    widths = [size // count if count else 0 for size, count in zip(layout.sizes, counts, strict=True)]
    return np.repeat(np.array(widths, dtype=np.int64), np.array(counts, dtype=np.int64))
