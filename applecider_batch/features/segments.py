"""Operations on runs of equal keys: what lets a whole shard be computed without a loop over objects.

Every function gives a segment the same bits whatever stands in its neighbours: sums go through ``reduceat``,
one segment at a time, and never through differences of a running float sum.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.compiled import compiled
from applecider_batch.features.order import order_within
from applecider_batch.schema import one_array


def float_column(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column as float64, null and absent as NaN, shape (n,)."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return pc.fill_null(table.column(name).cast(pa.float64()), float("nan")).to_numpy()


def int_column(table: pa.Table, name: str, missing: int) -> np.ndarray:
    """An integer column as int64, null and absent as ``missing``, shape (n,)."""
    if name not in table.column_names:
        return np.full(table.num_rows, missing, np.int64)
    return pc.fill_null(table.column(name).cast(pa.int64()), missing).to_numpy()


def bool_column(table: pa.Table, name: str) -> np.ndarray:
    """A boolean column, null as False, shape (n,)."""
    return pc.fill_null(table.column(name), False).to_numpy()


def text_column(table: pa.Table, name: str) -> pa.Array:
    """A string column as one plain Arrow array, absent as nulls."""
    if name not in table.column_names:
        return pa.nulls(table.num_rows, pa.string())
    return one_array(table.column(name).cast(pa.string()))


def starts_of(*keys: np.ndarray) -> np.ndarray:
    """First positions of the runs of equal keys, int64; the keys lie in sorted order, each (n,)."""
    n = len(keys[0])
    if n == 0:
        return np.empty(0, np.int64)
    new = np.ones(n, bool)
    new[1:] = False
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)


def run_numbers(starts: np.ndarray, n: int) -> np.ndarray:
    """Number of the run that each of n positions lies in, int64 (n,)."""
    number = np.zeros(n, np.int64)
    number[starts[1:]] = 1
    return np.cumsum(number)


def counts_of(segment: np.ndarray, n_segments: int, where: np.ndarray | None = None) -> np.ndarray:
    """How many items (or those with ``where``) lie in each segment, int64 (n_segments,)."""
    return np.bincount(segment if where is None else segment[where], minlength=n_segments)


def reduce_segments(
    operation: np.ufunc, values: np.ndarray, segment: np.ndarray, n_segments: int, empty: float
) -> np.ndarray:
    """``operation`` over the items of each segment; ``segment`` is ascending, empty segments give
    ``empty``."""
    out = np.full(n_segments, empty, values.dtype)
    if len(values):
        starts = starts_of(segment)
        out[segment[starts]] = operation.reduceat(values, starts)
    return out


def median_of(values: np.ndarray, segment: np.ndarray, n_segments: int) -> np.ndarray:
    """Median of each segment, NaN left out; NaN where there is nothing, float64 (n_segments,)."""
    given = np.isfinite(values)
    values, segment = values[given], segment[given]
    order = order_within(segment, values)
    values, segment = values[order], segment[order]
    out = np.full(n_segments, np.nan)
    starts = starts_of(segment)
    if len(starts):
        size = np.diff(np.append(starts, len(segment)))
        out[segment[starts]] = 0.5 * (values[starts + (size - 1) // 2] + values[starts + size // 2])
    return out


def expand_ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All positions of the ranges [first, last).

    Returns
    -------
    segment : ndarray, int64, shape (total,)
        Which range, ascending.
    position : ndarray, int64, shape (total,)
    """
    size = np.maximum(last - first, 0)
    segment = np.repeat(np.arange(len(first)), size)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(size) - size, size)
    return segment, first[segment] + within


def take_ranges(offsets: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rows of the ranges ``kept`` of a ragged array, and the offsets that they have then."""
    _, position = expand_ranges(offsets[kept], offsets[kept + 1])
    size = np.diff(offsets)[kept]
    return position, np.concatenate([[0], np.cumsum(size)]).astype(np.int64)


def search_in_segments(
    segment: np.ndarray, value: np.ndarray, query_segment: np.ndarray, query: np.ndarray, side: str = "left"
) -> np.ndarray:
    """``numpy.searchsorted`` inside the query's own segment.

    Parameters
    ----------
    segment, value : ndarray, shape (n,)
        Sorted by (segment, value); no NaN.
    query_segment, query : ndarray, shape (m,)
    side : {"left", "right"}
        "left": first position with value >= query; "right": first with value > query.

    Returns
    -------
    ndarray, int64, shape (m,)
        Position in the whole array, between the segment's start and end.
    """
    out = np.empty(len(query), np.int64)
    _search(segment, value, query_segment, query, side == "left", out)
    return out


@compiled
def _search(
    segment: np.ndarray,
    value: np.ndarray,
    query_segment: np.ndarray,
    query: np.ndarray,
    left: bool,
    out: np.ndarray,
) -> None:
    for i in range(len(query)):
        own, wanted = query_segment[i], query[i]
        first, last = 0, len(segment)
        while first < last:
            middle = (first + last) // 2
            here, found = segment[middle], value[middle]
            # A query that is NaN stands behind all values of its segment.
            reached = found >= wanted if left else found > wanted
            if here < own or (here == own and not reached):
                first = middle + 1
            else:
                last = middle
        out[i] = first


def last_true(flags: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Last position with a true flag in each range [first, last); -1 for none."""
    latest = np.maximum.accumulate(np.where(flags, np.arange(len(flags)), -1)) if len(flags) else flags
    out = np.full(len(first), -1, np.int64)
    filled = last > first
    out[filled] = latest[last[filled] - 1]
    out[out < first] = -1
    return out
