"""Which rows of an archive hold the stamps of given alerts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.parts import part_schema
from applecider_batch.archive.stamp_blocks import COLUMNS
from applecider_batch.archive.stamps import CUTOUTS

PLACES = ("_part", "_group", "_row")
"""Where a row lies, as columns of int32 beside its keys while these are put in order."""
_GROUPS_AT_ONCE = 16
"""Row groups of stamps read at once: of their 40 MB few rows are kept, the memory serves the next."""
_ROWS_PER_COPY = 8


@dataclass(frozen=True)
class StampRows:
    """Some rows of the stamps of an archive.

    Attributes
    ----------
    keys : Table
        Schema ``stamps`` without pixels.
    part, group, row : ndarray, int64, shape (n,)
        Where each lies: number of the part, row group, row in it.
    pixels : ndarray, int64, shape (3, n)
        Pixels of each stamp in the order of `CUTOUTS`; -1 where there is none.
    """

    keys: pa.Table
    part: np.ndarray
    group: np.ndarray
    row: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of_table(cls, table: pa.Table) -> StampRows:
        """Rows of a table of keys and `PLACES`."""
        sides = [[f"{side}{cutout}" for cutout in CUTOUTS] for side in ("height", "width")]
        height, width = (
            np.stack([table.column(name).fill_null(-1).to_numpy().astype(np.int64) for name in names])
            for names in sides
        )
        pixels = np.where((height < 0) | (width < 0), -1, height * width)
        part, group, row = (table.column(name).to_numpy().astype(np.int64) for name in PLACES)
        return cls(table.drop_columns(list(PLACES)).combine_chunks(), part, group, row, pixels)

    def take(self, rows: np.ndarray) -> StampRows:
        """The rows of some positions."""
        keys = self.keys.take(pa.array(rows))
        return StampRows(keys, self.part[rows], self.group[rows], self.row[rows], self.pixels[:, rows])

    def by_group(self) -> Iterator[tuple[int, list[tuple[int, np.ndarray]]]]:
        """Per part its number, and its row groups with the positions here of their rows, in its order."""
        order = np.lexsort((self.row, self.group, self.part))
        part, group = self.part[order], self.group[order]
        new = np.flatnonzero((np.diff(part, prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0))
        runs = zip(part[new].tolist(), group[new].tolist(), np.split(order, new[1:]), strict=False)
        for number, mine in itertools.groupby(runs, key=lambda run: run[0]):
            yield number, [(group, positions) for _, group, positions in mine]


class StampKeys:
    """The stamps of a hash range without their pixels, found by candid.

    Parameters
    ----------
    table : Table
        Schema ``stamps`` without pixels, and `PLACES`; one row a packet, in the archive's order.
    """

    def __init__(self, table: pa.Table) -> None:
        self._rows = StampRows.of_table(table)
        candids = table.column("candid").to_numpy()
        self._order = np.argsort(candids, kind="stable")
        self._candids = candids[self._order]

    def __len__(self) -> int:
        return len(self._candids)

    def of(self, candids: np.ndarray) -> StampRows:
        """The rows of these alerts (int64, ascending, each once), in the archive's order."""
        first = np.searchsorted(self._candids, candids, side="left")
        many = np.searchsorted(self._candids, candids, side="right") - first
        found = np.repeat(first - np.cumsum(many) + many, many) + np.arange(many.sum())
        return self._rows.take(np.sort(self._order[found]))


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


def blocks_of(parts: Sequence[PartReader], rows: StampRows) -> pa.Table:
    """Blocks of rows whose keys are read, by pyarrow, in the order of the keys."""
    pieces, taken = [part_schema("stamps").empty_table().select(COLUMNS)], [np.empty(0, np.int64)]
    for number, groups in rows.by_group():
        index = parts[number].index("stamps")
        assert index is not None
        for start in range(0, len(groups), _GROUPS_AT_ONCE):
            some = groups[start : start + _GROUPS_AT_ONCE]
            names = [group for group, _ in some]
            sizes = index.rows[names]
            mask = np.zeros(int(sizes.sum()), bool)
            for first, (_, positions) in zip(np.cumsum(sizes) - sizes, some, strict=True):
                mask[first + rows.row[positions]] = True
                taken.append(positions)
            pieces.append(chosen(parts[number].read_groups("stamps", names, COLUMNS), mask))
    table, order = pa.concat_tables(pieces), np.concatenate(taken)
    return table if (np.diff(order) == 1).all() else table.take(pa.array(np.argsort(order)))


def chosen(rows: pa.Table, mask: np.ndarray) -> pa.Table:
    """The rows of a mask; where they lie together they are not copied, a stamp is 16 kB."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    if not len(edges) or len(edges) > len(mask) // _ROWS_PER_COPY:
        return rows.filter(pa.array(mask))
    return pa.concat_tables(rows.slice(start, stop - start) for start, stop in edges.reshape(-1, 2).tolist())
