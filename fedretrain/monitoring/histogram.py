"""Counting values on pinned bins: the hot path of monitoring.

Rules of this file:
    * Counts of any split of the rows, added up, are the counts of all rows.
    * A cell is decided by the value alone, exactly, whatever its precision: an edge is compared in the precision of the
      data after it was rounded *up* to it, which changes no comparison (``e <= x`` if and only if ``up(e) <= x``).
    * No branch and no search for each value: one comparison with each edge over a whole block of rows, 16 at a time on
      current processors, beats a binary search for the few bins that monitoring needs.
    * A block stays in the second-level cache while all edges pass over it.

Shapes: N rows, F features, B bins, C = B + 3 cells, K owners; T = B + 1 thresholds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fedretrain.monitoring.bins import Bins

_BLOCK_BYTES = 2**19  # half of a second-level cache of 1 MiB: the block and its mask stay there
_STRIPES = 128  # rows summed in a byte before it is widened; at most 255
_CHUNK = 2**20  # values keyed at once by `count_by`


def count(bins: Bins, x_NF: NDArray[Any]) -> NDArray[np.int64]:
    """How many rows fall into each cell.

    Args:
        bins: The pinned bins.
        x_NF: ``[N, F]`` values, NaN where missing. float32 and float64 are counted as they are, anything else as float64.

    Returns:
        ``[F, C]``; each feature's cells add up to N.

    Raises:
        DataError: If there are not F columns.
    """
    x_NF = _checked(bins, x_NF)
    reached_TF = np.zeros((bins.num_cells - 2, bins.num_features), dtype=np.int64)
    present_F = np.zeros(bins.num_features, dtype=np.int64)
    thresholds_TF = _thresholds(bins, x_NF.dtype)
    for block_SM in _blocks(x_NF):
        copies = block_SM.shape[1] // bins.num_features
        mask_SM = np.empty(block_SM.shape, dtype=bool)
        for position, threshold_F in enumerate(thresholds_TF):
            np.greater_equal(block_SM, np.tile(threshold_F, copies), out=mask_SM)
            reached_TF[position] += _column_sums(mask_SM, copies)
        np.equal(block_SM, block_SM, out=mask_SM)
        present_F += _column_sums(mask_SM, copies)
    counts_FC = np.empty((bins.num_features, bins.num_cells), dtype=np.int64)
    counts_FC[:, 0] = present_F - reached_TF[0]
    counts_FC[:, 1:-2] = (reached_TF[:-1] - reached_TF[1:]).T
    counts_FC[:, -2] = reached_TF[-1]
    counts_FC[:, -1] = len(x_NF) - present_F
    for position, cells_N in _categorical(bins, x_NF):
        counts_FC[position] = np.bincount(cells_N, minlength=bins.num_cells)
    return counts_FC


def count_by(
    bins: Bins, x_NF: NDArray[Any], owner_N: NDArray[np.integer], num_owners: int
) -> NDArray[np.int64]:
    """How many rows of each owner (a device, a slot, a group) fall into each cell.

    Args:
        bins: The pinned bins.
        x_NF: ``[N, F]`` as in `count`.
        owner_N: ``[N]`` owners, 0 to ``num_owners - 1``, in any order.
        num_owners: K.

    Returns:
        ``[K, F, C]``.

    Raises:
        DataError: If the shapes do not fit or there is no such owner.
    """
    x_NF = _checked(bins, x_NF)
    owner_N = np.asarray(owner_N)
    if owner_N.shape != x_NF.shape[:1] or (
        owner_N.size and not 0 <= owner_N.min() <= owner_N.max() < num_owners
    ):
        raise DataError(f"the owners of {len(x_NF)} rows are not all 0 to {num_owners - 1}", where="owner_N")
    size = bins.num_features * bins.num_cells
    counts = np.zeros(num_owners * size, dtype=np.int64)
    first_F = np.arange(bins.num_features) * bins.num_cells
    # A chunk holds at least twice as many values as there are counts, so adding the counts up costs less than counting.
    rows = max(1, _CHUNK // bins.num_features, 2 * num_owners * bins.num_cells)
    for left in range(0, len(x_NF), rows):
        part = slice(left, left + rows)
        keys_NF = cells_of(bins, x_NF[part]) + first_F
        keys_NF += owner_N[part, None].astype(np.int64) * size
        counts += np.bincount(keys_NF.ravel(), minlength=counts.size)
    return counts.reshape(num_owners, bins.num_features, bins.num_cells)


def cells_of(bins: Bins, x_NF: NDArray[Any]) -> NDArray[np.int16]:
    """The cell of each value: ``[N, F]``, 0 to C - 1.

    Raises:
        DataError: If there are not F columns.
    """
    x_NF = _checked(bins, x_NF)
    thresholds_TF = _thresholds(bins, x_NF.dtype)
    cells_NF = np.zeros(x_NF.shape, dtype=np.uint8)
    left = 0
    for block_SM in _blocks(x_NF):
        copies = block_SM.shape[1] // bins.num_features
        rows = len(block_SM) * copies
        cells_SM = cells_NF[left : left + rows].reshape(block_SM.shape)
        mask_SM = np.empty(block_SM.shape, dtype=bool)
        for threshold_F in thresholds_TF:
            np.greater_equal(block_SM, np.tile(threshold_F, copies), out=mask_SM)
            cells_SM += mask_SM.view(np.uint8)
        np.not_equal(block_SM, block_SM, out=mask_SM)
        cells_SM += mask_SM.view(np.uint8) * np.uint8(bins.num_cells - 1)  # no NaN reached an edge
        left += rows
    answer_NF = cells_NF.astype(np.int16)
    for position, cells_N in _categorical(bins, x_NF):
        answer_NF[:, position] = cells_N
    return answer_NF


def out_of_range(bins: Bins, x_NF: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values the schema does not allow: ``[N, F]``; a missing value is not one of them.

    Raises:
        DataError: If there are not F columns.
    """
    x_NF = _checked(bins, x_NF)
    outside_NF: NDArray[np.bool_] = (x_NF < _up(bins.low_F, x_NF.dtype)) | (
        x_NF > -_up(-bins.high_F, x_NF.dtype)
    )
    return outside_NF


def _checked(bins: Bins, x_NF: NDArray[Any]) -> NDArray[np.floating]:
    """The rows as contiguous float32 or float64."""
    x_NF = np.asarray(x_NF)
    if x_NF.ndim != 2 or x_NF.shape[1] != bins.num_features:
        raise DataError(f"rows of shape {x_NF.shape} on bins of {bins.num_features} features", where="x_NF")
    return x_NF if x_NF.dtype in {np.dtype(np.float32), np.dtype(np.float64)} else x_NF.astype(np.float64)


def _thresholds(bins: Bins, dtype: np.dtype[Any]) -> NDArray[np.floating]:
    """``[T, F]``: a value's cell is the number of thresholds that it reaches. A categorical feature's are NaN."""
    edges_FE = bins.edges_FE.copy()
    with np.errstate(over="ignore"):
        edges_FE[:, -1] = np.nextafter(edges_FE[:, -1], np.inf)  # beyond the last edge, not at it
    return np.ascontiguousarray(_up(edges_FE, dtype).T)


def _up(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[np.floating]:
    """The least number of a precision that is not below each value."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(dtype)
        return np.where(rounded < values, np.nextafter(rounded, dtype.type(np.inf)), rounded)


def _blocks(x_NF: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """The rows in order, as blocks ``[S, M]``: S stripes of M / F whole rows each, contiguous."""
    num_rows, num_features = x_NF.shape
    most = max(1, _BLOCK_BYTES // (x_NF.itemsize * num_features * _STRIPES))
    left = 0
    while left < num_rows:
        stripes = min(_STRIPES, num_rows - left)
        copies = min(most, (num_rows - left) // stripes)
        part = x_NF[left : left + stripes * copies]
        yield np.ascontiguousarray(part).reshape(stripes, copies * num_features)
        left += stripes * copies


def _column_sums(mask_SM: NDArray[np.bool_], copies: int) -> NDArray[np.int64]:
    """``[F]`` how often each feature is set: bytes along the stripes, then wide along the copies."""
    bytes_M = np.add.reduce(mask_SM.view(np.uint8), axis=0, dtype=np.uint8)
    sums_F: NDArray[np.int64] = bytes_M.reshape(copies, -1).sum(axis=0, dtype=np.int64)
    return sums_F


def _categorical(bins: Bins, x_NF: NDArray[np.floating]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The position and the cells ``[N]`` of each categorical feature."""
    other, unseen, missing = range(bins.num_cells - 3, bins.num_cells)
    for position, name in enumerate(bins.names):
        if name not in bins.categories:
            continue
        codes = np.array(bins.categories[name])
        order = np.argsort(codes)
        column_N = x_NF[:, position].astype(np.float64)
        place_N = np.minimum(np.searchsorted(codes[order], column_N), len(codes) - 1)
        cells_N = np.where(codes[order][place_N] == column_N, np.minimum(order[place_N], other), unseen)
        cells_N[np.isnan(column_N)] = missing
        yield position, cells_N
