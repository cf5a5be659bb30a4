"""Stamps as they lie in a part: each a block of its own, so that one is read without its neighbours.

A block is what is left of a stamp's float32 pixels (little-endian, row by row) when the bytes are sorted by
their place, the upper ones of all pixels first, and packed by LZ4::

    bytes of the pixels, uint32  ·  CRC-32 of the LZ4 block, uint32  ·  LZ4 block (numbers little-endian)

Neighbouring pixels share sign and exponent, which is all that can be packed of noise; the lower bytes are
copied.  Parts of format version 1 hold lists of float32 instead (split by Parquet, 64 stamps at a time);
both are read.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.stamps import CUTOUTS, MAX_SIDE
from applecider_batch.compiled import CFunction, compiled
from applecider_batch.schema import load_table

COLUMNS = tuple(f"cutout{name}" for name in CUTOUTS)
_HEAD = struct.Struct("<II")
_PIXEL = 4
_MOST_BYTES = _PIXEL * MAX_SIDE**2
_HEAD_PROBLEMS = {
    1: "a block of stamps is shorter than its head",
    2: "a block of stamps claims to be larger than stamps are",
    3: "a block of stamps claims to end within a pixel",
}
_NO_CHECKSUM = -(2**31)

CRC32: Any = CFunction("deflate._deflate", "libdeflate_crc32", "uint32(uint32, uintp, uintp)")
_LZ4: Any = CFunction("lz4.block._block", "LZ4_decompress_safe", "int32(uintp, uintp, int32, int32)")


@functools.cache
def packed_schema() -> pa.Schema:
    """The stamps table as parts hold it: schema ``stamps`` with blocks instead of pixels."""
    schema = load_table("stamps").arrow
    for name in COLUMNS:
        place = schema.get_field_index(name)
        schema = schema.set(place, schema.field(place).with_type(pa.binary()))
    return schema


def pack(table: pa.Table) -> pa.Table:
    """A stamps table, or some columns of one, with blocks instead of pixels; blocks stay as they are."""
    return _convert(table, pa.types.is_list, _packed, packed_schema())


def unpack(table: pa.Table) -> pa.Table:
    """A stamps table, or some columns of one, with pixels instead of blocks; pixels stay as they are.

    Raises
    ------
    ValueError
        If a block is damaged.
    """
    return _convert(table, pa.types.is_binary, _unpacked, load_table("stamps").arrow)


def _convert(
    table: pa.Table,
    wanted: Callable[[pa.DataType], bool],
    convert: Callable[[Any], pa.Array],
    schema: pa.Schema,
) -> pa.Table:
    columns = []
    for name in table.column_names:
        column = table.column(name)
        if name in COLUMNS and wanted(column.type):
            chunks = [convert(chunk) for chunk in column.chunks]
            column = pa.chunked_array(chunks, schema.field(name).type)
        columns.append(column)
    return pa.table(columns, schema=pa.schema([schema.field(name) for name in table.column_names]))


def _packed(pixels: pa.ListArray) -> pa.Array:
    places = pairwise(pixels.offsets.to_numpy().tolist())
    values = pixels.values.to_numpy()
    here = pixels.is_valid().to_pylist()
    blocks = [block_of(values[slice(*own)]) if ok else None for own, ok in zip(places, here, strict=True)]
    return pa.array(blocks, pa.binary())


def block_of(image: np.ndarray) -> bytes:
    """The block of a stamp, float32 pixels of any shape, row by row."""
    import cramjam
    from isal import isal_zlib

    pixels = image.reshape(-1).view(np.uint8)
    planes = np.empty(len(pixels), np.uint8)
    _split(pixels, planes)
    block = bytes(cramjam.lz4.compress_block(planes.data, store_size=False))
    return _HEAD.pack(len(pixels), isal_zlib.crc32(block)) + block


def damaged_rows(table: pa.Table) -> np.ndarray:
    """Rows of a table whose blocks do not have their checksums, ascending int64; nothing is unpacked."""
    found: set[int] = set()
    for name in COLUMNS:
        first = 0
        for blocks in table.column(name).chunks:
            packed, starts, stops, here = _places(blocks)
            rows = first + np.flatnonzero(here)
            whole = stops - starts >= _HEAD.size
            found |= set(rows[~whole].tolist())
            rows, starts, stops = rows[whole], starts[whole], stops[whole]
            _, checks, _ = _heads(packed, starts, stops)
            found |= set(rows[~_sound(packed, starts, stops, checks)].tolist())
            first += len(blocks)
    return np.array(sorted(found), np.int64)


def _places(blocks: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The bytes (uint8), where the blocks that are not null begin and end in them, and which these are."""
    _, offsets, data = blocks.buffers()
    places = np.frombuffer(offsets, np.int32, len(blocks) + 1, 4 * blocks.offset).astype(np.int64)
    here = blocks.is_valid().to_numpy(zero_copy_only=False)
    packed = np.frombuffer(data if data is not None else b"", np.uint8)
    return packed, places[:-1][here], places[1:][here], here


def _unpacked(blocks: pa.BinaryArray) -> pa.Array:
    packed, starts, stops, here = _places(blocks)
    sizes, checks = read_heads(packed, starts, stops)
    pixels = np.zeros(len(blocks), np.int64)
    pixels[here] = sizes // _PIXEL
    ends = np.concatenate([[0], np.cumsum(pixels)])
    values = np.frombuffer(pa.allocate_buffer(_PIXEL * int(ends[-1])), np.uint32)
    unpack_blocks(packed, starts, stops, sizes, checks, values, ends[:-1][here])
    return lists_of(values, ends, here)


def lists_of(values: np.ndarray, ends: np.ndarray, here: np.ndarray) -> pa.Array:
    """Pixels (uint32, bits of float32) as lists; row i ends at ``ends[i + 1]``, null where not ``here``."""
    kind = load_table("stamps").arrow.field(COLUMNS[0]).type
    bitmap = None if here.all() else pa.array(here).buffers()[1]
    items = pa.Array.from_buffers(pa.float32(), len(values), [None, pa.py_buffer(values)])
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(kind, len(here), [bitmap, offsets], children=[items])


def read_heads(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What blocks say of themselves.

    Parameters
    ----------
    data : ndarray, uint8
    starts, stops : ndarray, int64, shape (n,)
        Where each block lies.

    Returns
    -------
    sizes, checks : ndarray, int64, shape (n,)
        Bytes of the pixels, and the CRC-32 of the LZ4 block.

    Raises
    ------
    ValueError
        If no stamp can be so.
    """
    sizes, checks, problem = _heads(data, starts, stops)
    if problem:
        raise ValueError(_HEAD_PROBLEMS[problem])
    return sizes, checks


def unpack_blocks(
    data: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    sizes: np.ndarray,
    checks: np.ndarray,
    values: np.ndarray,
    at: np.ndarray,
) -> None:
    """Pixels of n blocks of ``data`` into ``values`` (uint32), those of each block from ``at`` (n,) on.

    Parameters
    ----------
    starts, stops, sizes, checks : ndarray, int64, shape (n,)
        As for, and from, :func:`read_heads`.

    Raises
    ------
    ValueError
        If a block is damaged.
    """
    row, found = _unpack_blocks(data, starts, stops, sizes, checks, values, at)
    if row < 0:
        return
    if found == _NO_CHECKSUM:
        raise ValueError("a block of stamps does not have its checksum")
    if found < 0:
        raise ValueError(f"a block of stamps cannot be decompressed (LZ4 ends at its byte {-found - 1})")
    raise ValueError(f"a block of stamps holds {found} bytes where it claims {sizes[row]}")


@compiled
def _split(pixels: np.ndarray, planes: np.ndarray) -> None:
    """Bytes (4 n,) of n pixels into four planes, the upper bytes first."""
    n = len(pixels) // 4
    for place in range(4):
        plane = planes[(3 - place) * n : (4 - place) * n]
        for i in range(n):
            plane[i] = pixels[4 * i + place]


@compiled
def _heads(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Sizes and checksums that blocks claim, and what is wrong with them (`_HEAD_PROBLEMS`) or 0."""
    sizes, checks = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
    problem = 0
    for row in range(len(starts)):
        if stops[row] - starts[row] < 8:
            return sizes, checks, 1
        for place in range(4):
            sizes[row] |= np.int64(data[starts[row] + place]) << (8 * place)
            checks[row] |= np.int64(data[starts[row] + 4 + place]) << (8 * place)
        if sizes[row] > _MOST_BYTES:
            problem = 2
        elif sizes[row] % 4 and not problem:
            problem = 3
    return sizes, checks, problem


@functools.partial(compiled, calls=(CRC32,))
def _sound(data: np.ndarray, starts: np.ndarray, stops: np.ndarray, checks: np.ndarray) -> np.ndarray:
    """Whether LZ4 blocks have their checksums, bool (n,)."""
    sound = np.empty(len(starts), np.bool_)
    for row in range(len(starts)):
        block = data[starts[row] + 8 : stops[row]]
        sound[row] = CRC32(np.uint32(0), block.ctypes.data, np.uint64(len(block))) == checks[row]
    return sound


@functools.partial(compiled, calls=(CRC32, _LZ4))
def _unpack_blocks(
    data: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    sizes: np.ndarray,
    checks: np.ndarray,
    values: np.ndarray,
    at: np.ndarray,
) -> tuple[int, int]:
    """-1 and 0, or the first damaged block and what LZ4 says of it, `_NO_CHECKSUM` without asking it."""
    planes = np.empty(max(sizes.max(), 1) if len(sizes) else 1, np.uint8)
    for row in range(len(starts)):
        # One after the other, so that a block and its pixels stay in the processor's caches.
        block = data[starts[row] + 8 : stops[row]]
        place, length = block.ctypes.data, np.uint64(len(block))
        if CRC32(np.uint32(0), place, length) != checks[row]:
            return row, _NO_CHECKSUM
        found = _LZ4(place, planes.ctypes.data, np.int32(length), np.int32(sizes[row]))
        if found != sizes[row]:
            return row, found
        n = sizes[row] // 4
        out = values[at[row] : at[row] + n]
        upper, second, third, lowest = (
            planes[:n],
            planes[n : 2 * n],
            planes[2 * n : 3 * n],
            planes[3 * n : 4 * n],
        )
        for i in range(n):
            out[i] = (
                np.uint32(upper[i]) << np.uint32(24)
                | np.uint32(second[i]) << np.uint32(16)
                | np.uint32(third[i]) << np.uint32(8)
                | np.uint32(lowest[i])
            )
    return -1, 0
