"""Which rows of an archive hold the stamps of given alerts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.parts import part_schema
from applecider_batch.archive.stamp_blocks import COLUMNS
from applecider_batch.archive.stamp_pages import PLACES

_GROUPS_AT_ONCE = 16
"""Row groups of stamps read at once: of their 40 MB few rows are kept, the memory serves the next."""
_ROWS_PER_COPY = 8


class StampKeys:
    """Columns but the stamps, and the places, of the stamps of a hash range, found by candid.

    Parameters
    ----------
    table : Table
        Schema ``stamps`` without its pixels, and `PLACES`; one row a packet, in the archive's order.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        candids = table.column("candid").to_numpy()
        self._order = np.argsort(candids, kind="stable")
        self._candids = candids[self._order]

    def __len__(self) -> int:
        return len(self._candids)

    def of(self, candids: np.ndarray) -> pa.Table:
        """The rows of these alerts (int64, ascending, each once), in the archive's order."""
        first = np.searchsorted(self._candids, candids, side="left")
        many = np.searchsorted(self._candids, candids, side="right") - first
        rows = np.repeat(first - np.cumsum(many) + many, many) + np.arange(many.sum())
        return self._table.take(pa.array(np.sort(self._order[rows])))


def no_keys() -> pa.Table:
    """A table of keys without rows."""
    names = [name for name in part_schema("stamps").names if name not in COLUMNS]
    return _with_places(part_schema("stamps").empty_table().select(names), 0, *np.empty((2, 0)))


def keys_of(number: int, part: PartReader, lo: int, hi: int) -> pa.Table | None:
    """Keys of the stamps of a hash range in part ``number``; None if it has none."""
    groups = np.array(part.groups("stamps", lo, hi) if part.overlaps("stamps", lo, hi) else [], np.int64)
    if not len(groups):
        return None
    index = part.index("stamps")
    assert index is not None
    names = [name for name in part_schema("stamps").names if name not in COLUMNS]
    keys = part.read_groups("stamps", groups.tolist(), names)
    hashes = keys.column("hash64").to_numpy()
    mask = (hashes >= np.uint64(lo)) & (hashes <= np.uint64(hi - 1))
    if not mask.any():
        return None
    sizes = index.rows[groups]
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)[mask]
    places = np.repeat(groups, sizes)[mask], np.flatnonzero(mask) - first
    return _with_places(keys.filter(pa.array(mask)), number, *places)


def _with_places(keys: pa.Table, number: int, group: np.ndarray, row: np.ndarray) -> pa.Table:
    for name, values in zip(PLACES, (np.full(len(group), number), group, row), strict=True):
        keys = keys.append_column(name, pa.array(values.astype(np.int32)))
    return keys


def blocks_of(parts: Sequence[PartReader], keys: pa.Table) -> pa.Table:
    """Blocks of the rows whose keys are read, by pyarrow, in the order of the keys."""
    number, group, row = (keys.column(name).to_numpy().astype(np.int64) for name in PLACES)
    order = np.lexsort((row, group, number))
    pieces = [part_schema("stamps").empty_table().select(COLUMNS)]
    for own in np.unique(number).tolist():
        index = parts[own].index("stamps")
        assert index is not None
        groups = np.unique(group[number == own])
        for start in range(0, len(groups), _GROUPS_AT_ONCE):
            some = groups[start : start + _GROUPS_AT_ONCE]
            sizes = index.rows[some]
            mine = (number == own) & np.isin(group, some)
            mask = np.zeros(int(sizes.sum()), bool)
            mask[(np.cumsum(sizes) - sizes)[np.searchsorted(some, group[mine])] + row[mine]] = True
            pieces.append(chosen(parts[own].read_groups("stamps", some.tolist(), COLUMNS), mask))
    table = pa.concat_tables(pieces)
    return table if (np.diff(order) == 1).all() else table.take(pa.array(np.argsort(order)))


def chosen(rows: pa.Table, mask: np.ndarray) -> pa.Table:
    """The rows of a mask; where they lie together they are not copied, a stamp is 16 kB."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    if not len(edges) or len(edges) > len(mask) // _ROWS_PER_COPY:
        return rows.filter(pa.array(mask))
    return pa.concat_tables(rows.slice(start, stop - start) for start, stop in edges.reshape(-1, 2).tolist())
