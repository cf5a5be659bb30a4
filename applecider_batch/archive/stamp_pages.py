"""Stamps straight from the pages of a part's file, without copies by Arrow on the way.

Blocks of stamps (``stamp_blocks.py``) lie plain and uncompressed in the file. A column of a row group is one
or more pages::

    header (Thrift, compact)  ·  bytes of levels, uint32  ·  levels: which rows have a block (RLE, bit-packed)
    bytes of a block, uint32  ·  block  ·  bytes of the next, uint32  ·  …

so that where each block begins is found by one pass over the lengths. What is not exactly so (another
version or encoding, a damaged header) is left to pyarrow, which then says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.stamp_blocks import COLUMNS, lists_of, read_heads, unpack_blocks
from applecider_batch.archive.stamp_keys import StampRows
from applecider_batch.compiled import compiled

_MOST_PIXELS = 2**31 - 1


def read_pixels(parts: Sequence[PartReader], rows: StampRows) -> pa.Table | None:
    """The three columns of pixels of rows whose keys are read.

    Parameters
    ----------
    parts : sequence of PartReader
    rows : StampRows

    Returns
    -------
    Table or None
        The columns `COLUMNS` of schema ``stamps``, rows as in ``rows``;
        None if the files do not lie on this machine or are not plain; pyarrow then reads them.

    Raises
    ------
    ValueError
        If a block is damaged.
    """
    sizes = dict(zip(COLUMNS, rows.pixels, strict=True))
    ends = {name: np.concatenate([[0], np.cumsum(np.maximum(p, 0))]) for name, p in sizes.items()}
    if (rows.pixels == 0).any() or max(int(end[-1]) for end in ends.values()) > _MOST_PIXELS:
        return None
    # Arrow's allocator keeps memory for the next call: fresh memory would cost more than joining bytes.
    memory = {name: pa.allocate_buffer(4 * int(ends[name][-1])) for name in COLUMNS}
    values = {name: np.frombuffer(buffer, np.uint32) for name, buffer in memory.items()}
    for number, groups in rows.by_group():
        with parts[number].open_plain("stamps") as chunks:
            if chunks is None:
                return None
            for group, mine in groups:
                for name in COLUMNS:
                    read = chunks.read(group, name)
                    if read is None:
                        return None
                    data, n_rows = read
                    out = values[name], ends[name][mine], sizes[name][mine]
                    if not _unpack_rows(data, n_rows, rows.row[mine], *out):
                        return None
    return pa.table({name: lists_of(values[name], ends[name], sizes[name] > 0) for name in COLUMNS})


def _unpack_rows(
    data: np.ndarray, n_rows: int, rows: np.ndarray, values: np.ndarray, at: np.ndarray, pixels: np.ndarray
) -> bool:
    """Blocks of some rows (m,) of a column's pages into ``values`` at ``at`` (m,); False if odd."""
    starts, stops = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
    if not _find_blocks(data, starts, stops):
        return False
    here = pixels > 0
    if here.all():
        starts, stops = starts[rows], stops[rows]
    else:
        if (starts[rows[~here]] >= 0).any():
            return False
        starts, stops, at, pixels = starts[rows[here]], stops[rows[here]], at[here], pixels[here]
    if (starts < 0).any():
        return False
    sizes, checks = read_heads(data, starts, stops)
    if (sizes != 4 * pixels).any():
        return False
    unpack_blocks(data, starts, stops, sizes, checks, values, at)
    return True


@compiled
def _find_blocks(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> bool:
    """Where the block of each row lies in a column's pages, -1 for none; False if these are not plain pages.

    The layout is Parquet's: https://parquet.apache.org/docs/file-format/data-pages/ and ``parquet.thrift``.
    """

    def varint(at: Any, end: Any) -> Any:
        """A number of seven bits a byte, the lowest first, and where it ends; -1 if it has no end."""
        number, shift = np.int64(0), 0
        while at < end and shift <= 28:
            byte = np.int64(data[at])
            at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number, at
            shift += 7
        return np.int64(-1), at

    def word(at: Any) -> Any:
        """A number of four bytes, the lowest first."""
        lower = np.int64(data[at]) | np.int64(data[at + 1]) << 8
        return lower | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24

    size, n_rows = len(data), len(starts)
    at, row = np.int64(0), np.int64(0)
    # Of a page's header: its type, bytes (unpacked, packed), values, encodings of values and levels.
    said = np.empty(7, np.int64)
    while at < size:
        # --- header: fields of the struct, and of the struct in its field 5 (DataPageHeader)
        said[:] = -1
        depth, last, outer = 0, 0, 0
        while True:
            if at >= size:
                return False
            kind, step = data[at] & 15, data[at] >> 4
            at += 1
            if kind == 0:  # the end of a struct
                if depth == 0:
                    break
                depth, last = 0, outer
                continue
            if step == 0:  # a field's number by itself: not written by anyone for these few fields
                return False
            last += step
            if kind == 12 and depth == 0 and last == 5:
                depth, outer, last = 1, last, 0
                continue
            if kind == 12 and depth == 1 and at < size and data[at] == 0:  # empty statistics
                at += 1
                continue
            if kind != 5:  # int32, enumerations too
                return False
            number, at = varint(at, size)
            if number < 0:
                return False
            number = (number >> 1) ^ -(number & 1)
            if depth == 0 and last <= 3:
                said[last - 1] = number
            elif depth == 1 and last <= 4:
                said[2 + last] = number
        # A data page (0), not packed, values plain (0), levels run-length encoded (3).
        stop, count = at + said[2], said[3]
        if said[0] != 0 or said[1] != said[2] or said[2] < 4 or stop > size:
            return False
        if said[4] != 0 or said[5] != 3 or count < 0 or row + count > n_rows:
            return False
        # --- levels, one bit each: 1 for a row that has a block
        length = word(at)
        at += 4
        levels_stop = at + length
        if levels_stop > stop:
            return False
        done = 0
        while done < count:
            header, at = varint(at, levels_stop)
            run, packed = header >> 1, header & 1
            if run <= 0 or at + (run if packed else 1) > levels_stop:
                return False
            for i in range(min(8 * run if packed else run, count - done)):
                level = (data[at + (i >> 3)] >> (i & 7)) & 1 if packed else data[at]
                starts[row + done + i] = 0 if level else -1
            done += min(8 * run if packed else run, count - done)
            at += run if packed else 1
        # --- the blocks
        at = levels_stop
        for i in range(row, row + count):
            stops[i] = -1
            if starts[i] == 0:
                if at + 4 > stop:
                    return False
                length = word(at)
                starts[i], stops[i] = at + 4, at + 4 + length
                at += 4 + length
                if at > stop:
                    return False
        if at != stop:
            return False
        row += count
    return row == n_rows
