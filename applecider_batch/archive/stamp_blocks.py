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
from applecider_batch.compiled import compiled
from applecider_batch.schema import load_table

COLUMNS = tuple(f"cutout{name}" for name in CUTOUTS)
_HEAD = struct.Struct("<II")
_PIXEL = 4
_AT_ONCE = 8
_MOST_BYTES = _PIXEL * MAX_SIDE**2


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
    import cramjam
    from isal import isal_zlib

    starts = (_PIXEL * pixels.offsets.to_numpy().astype(np.int64)).tolist()
    values = pixels.values.to_numpy().view(np.uint8)
    planes = np.empty(max(stop - start for start, stop in pairwise([0, *starts])), np.uint8)
    here = pixels.is_valid().to_numpy(zero_copy_only=False)
    blocks: list[bytes] = []
    lengths = [0]
    for (start, stop), valid in zip(pairwise(starts), here.tolist(), strict=True):
        if valid:
            own = planes[: stop - start]
            _split(values[start:stop], own)
            block = bytes(cramjam.lz4.compress_block(own.data, store_size=False))
            blocks += [_HEAD.pack(stop - start, isal_zlib.crc32(block)), block]
        lengths.append(_HEAD.size + len(block) if valid else 0)
    bitmap = None if here.all() else pa.array(here).buffers()[1]
    ends = pa.py_buffer(np.cumsum(lengths).astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), len(here), [bitmap, ends, pa.py_buffer(b"".join(blocks))])


def _unpacked(blocks: pa.BinaryArray) -> pa.Array:
    import cramjam
    from isal import isal_zlib

    _, offsets, data = blocks.buffers()
    places = np.frombuffer(offsets, np.int32, len(blocks) + 1, 4 * blocks.offset).tolist()
    here = blocks.is_valid().to_numpy(zero_copy_only=False)
    packed = memoryview(data if data is not None else b"")
    heads: list[tuple[int, int]] = []
    for (start, stop), valid in zip(pairwise(places), here.tolist(), strict=True):
        if valid and stop - start < _HEAD.size:
            raise ValueError("a block of stamps is shorter than its head")
        heads.append(_HEAD.unpack_from(packed, start) if valid else (0, 0))
    sizes = np.array([size for size, _ in heads], np.int64)
    if sizes.max(initial=0) > _MOST_BYTES:
        raise ValueError("a block of stamps claims to be larger than stamps are")
    if (sizes % _PIXEL).any():
        raise ValueError("a block of stamps claims to end within a pixel")
    ends = np.concatenate([[0], np.cumsum(sizes)])
    values = np.empty(int(ends[-1]) // _PIXEL, np.uint32)
    planes = np.empty(_AT_ONCE * int(sizes.max(initial=0)), np.uint8)
    for first in range(0, len(blocks), _AT_ONCE):  # few enough for the processor's caches
        last = min(first + _AT_ONCE, len(blocks))
        own = ends[first : last + 1] - ends[first]
        at = own.tolist()
        for row in np.flatnonzero(here[first:last]).tolist():
            size, check = heads[first + row]
            block = packed[places[first + row] + _HEAD.size : places[first + row + 1]]
            if isal_zlib.crc32(block) != check:
                raise ValueError("a block of stamps does not have its checksum")
            try:
                found = cramjam.lz4.decompress_block_into(block, planes.data[at[row] : at[row + 1]], size)
            except cramjam.DecompressionError as error:
                raise ValueError(f"a block of stamps cannot be decompressed ({error})") from error
            if found != size:
                raise ValueError(f"a block of stamps holds {found} bytes where it claims {size}")
        _join(planes, own, values[ends[first] // _PIXEL :])
    kind = load_table("stamps").arrow.field(COLUMNS[0]).type
    mask = None if here.all() else pa.array(~here)
    lengths = pa.array((ends // _PIXEL).astype(np.int32))
    return pa.ListArray.from_arrays(lengths, pa.array(values.view(np.float32)), type=kind, mask=mask)


@compiled
def _split(pixels: np.ndarray, planes: np.ndarray) -> None:
    """Bytes (4 n,) of n pixels into four planes, the upper bytes first."""
    n = len(pixels) // 4
    for place in range(4):
        plane = planes[(3 - place) * n : (4 - place) * n]
        for i in range(n):
            plane[i] = pixels[4 * i + place]


@compiled
def _join(planes: np.ndarray, ends: np.ndarray, values: np.ndarray) -> None:
    """Planes of stamps, ``ends`` (m + 1,) in bytes, into their pixels, uint32."""
    for row in range(len(ends) - 1):
        n = (ends[row + 1] - ends[row]) // 4
        own = planes[ends[row] : ends[row + 1]]
        out = values[ends[row] // 4 : ends[row + 1] // 4]
        upper, second, third, lowest = own[:n], own[n : 2 * n], own[2 * n : 3 * n], own[3 * n :]
        for i in range(n):
            out[i] = (
                np.uint32(upper[i]) << np.uint32(24)
                | np.uint32(second[i]) << np.uint32(16)
                | np.uint32(third[i]) << np.uint32(8)
                | np.uint32(lowest[i])
            )
