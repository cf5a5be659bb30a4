"""The stamps of many packets at once: from gzipped FITS to the blocks of a part (``stamp_blocks.py``).

Stamps of the common kind (see ``stamps.py``) go from one to the other in one call of compiled code, each
while it is in the processor's caches.  It stops at anything else, which `decode_stamp` then decides, and goes
on behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.stamp_blocks import CRC32, block_of
from applecider_batch.archive.stamps import (
    BLOCK,
    CUTOUTS,
    DAMAGED,
    DECODED,
    MAX_BYTES,
    MISSING,
    decode_stamp,
    plain_shape,
)
from applecider_batch.compiled import CFunction, compiled

_NEW_DECOMPRESSOR: Any = CFunction("deflate._deflate", "libdeflate_alloc_decompressor", "uintp()")
_FREE_DECOMPRESSOR: Any = CFunction("deflate._deflate", "libdeflate_free_decompressor", "void(uintp)")
_GUNZIP: Any = CFunction(
    "deflate._deflate", "libdeflate_gzip_decompress", "int32(uintp, uintp, uintp, uintp, uintp, uintp)"
)
_LZ4: Any = CFunction("lz4.block._block", "LZ4_compress_default", "int32(uintp, uintp, int32, int32)")

_HEADERS = 16
"""Header blocks known at a time; a night's differ by the shape alone."""

_DONE, _HEADER, _ODD, _FULL = 0, 1, 2, 3


@dataclass(frozen=True)
class StampBytes:
    """n stamps as they lie in packets, FITS files or nothing.

    Attributes
    ----------
    data : ndarray, uint8
    start, length : ndarray, int64, shape (n,)
        Where each lies in ``data``; those of no length are missing.
    """

    data: np.ndarray
    start: np.ndarray
    length: np.ndarray

    @classmethod
    def join(cls, stamps: Sequence[bytes | memoryview | None]) -> StampBytes:
        """Put stamps one after the other."""
        given = [stamp if stamp is not None else b"" for stamp in stamps]
        length = np.fromiter((len(stamp) for stamp in given), np.int64, len(given))
        return cls(np.frombuffer(b"".join(given), np.uint8), np.cumsum(length) - length, length)


@dataclass(frozen=True)
class DecodedStamps:
    """Stamps of n packets.

    Attributes
    ----------
    columns : dict of str to Array
        The image columns of the stamps table as parts hold it, n rows.
    status : ndarray, int16, shape (n,)
        Two bits per cutout, science lowest.
    """

    columns: dict[str, pa.Array]
    status: np.ndarray

    @property
    def n_decoded(self) -> np.ndarray:
        """Cutouts decoded without damage, 0 to 3, int32, shape (n,)."""
        return sum(((self.status >> shift) & 3 == DECODED).astype(np.int32) for shift in (0, 2, 4))

    @property
    def any_image(self) -> np.ndarray:
        """Whether a packet has an image at all, bool, shape (n,)."""
        blocks = (self.columns[f"cutout{cutout}"] for cutout in CUTOUTS)
        return np.logical_or.reduce([block.is_valid().to_numpy(zero_copy_only=False) for block in blocks])


def decode_stamps(cutouts: Mapping[str, StampBytes], size: int) -> DecodedStamps:
    """Decode the stamps of n packets; a cutout absent from ``cutouts`` is missing in all of them."""
    status = np.zeros(size, np.int16)
    columns: dict[str, pa.Array] = {}
    for place, cutout in enumerate(CUTOUTS):
        blocks, shapes, codes = _decode(cutouts.get(cutout) or StampBytes.join([None] * size))
        none = shapes[:, 0] == 0
        columns[f"cutout{cutout}"] = blocks
        columns[f"height{cutout}"] = pa.array(shapes[:, 0], pa.int16(), mask=none)
        columns[f"width{cutout}"] = pa.array(shapes[:, 1], pa.int16(), mask=none)
        status |= codes << np.int16(2 * place)
    return DecodedStamps(columns, status)


def _decode(stamps: StampBytes) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Blocks, shapes int16 (n, 2) with zeros for no image, and codes int16 (n,)."""
    size = len(stamps.start)
    ends, shapes, codes = (
        np.zeros(size + 1, np.int32),
        np.zeros((size, 2), np.int16),
        np.zeros(size, np.int16),
    )
    packed = np.empty(int(stamps.length.sum()) + (64 << 10), np.uint8)
    headers, sides = np.zeros((_HEADERS, BLOCK), np.uint8), np.zeros((_HEADERS, 2), np.int64)
    scratch = np.empty(MAX_BYTES, np.uint8)
    row, known = 0, 0
    while row < size:
        row, why, lacking = _decode_rows(
            stamps.data,
            stamps.start,
            stamps.length,
            row,
            headers,
            sides,
            scratch,
            packed,
            ends,
            shapes,
            codes,
        )
        if why == _FULL:
            packed = _longer(packed, lacking)
        elif why == _HEADER and (shape := plain_shape(bytes(scratch[:BLOCK]))) is not None:
            headers[known % _HEADERS], sides[known % _HEADERS] = scratch[:BLOCK], shape
            known += 1
        elif why in (_HEADER, _ODD):
            start = int(stamps.start[row])
            image, codes[row] = decode_stamp(stamps.data[start : start + int(stamps.length[row])].data)
            block = b""
            if image is not None:
                block, shapes[row] = block_of(image), image.shape
            ends[row + 1] = ends[row] + len(block)
            if len(packed) < ends[row + 1]:
                packed = _longer(packed, len(block))
            packed[ends[row] : ends[row + 1]] = np.frombuffer(block, np.uint8)
            row += 1
    valid = shapes[:, 0] > 0
    bitmap = None if valid.all() else pa.array(valid).buffers()[1]
    buffers = [bitmap, pa.py_buffer(ends), pa.py_buffer(packed[: ends[-1]])]
    return pa.Array.from_buffers(pa.binary(), size, buffers), shapes, codes


def _longer(packed: np.ndarray, least: int) -> np.ndarray:
    return np.concatenate([packed, np.empty(len(packed) // 2 + least, np.uint8)])


@functools.partial(compiled, calls=(_NEW_DECOMPRESSOR, _FREE_DECOMPRESSOR, _GUNZIP, _LZ4, CRC32))
def _decode_rows(
    data: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    row: int,
    headers: np.ndarray,
    sides: np.ndarray,
    scratch: np.ndarray,
    packed: np.ndarray,
    ends: np.ndarray,
    shapes: np.ndarray,
    codes: np.ndarray,
) -> tuple[int, int, int]:
    """Stamps from ``row`` on into blocks, until one is not of the common kind.

    Gives the row at which it stopped, why, and the bytes that lacked; of a header that is not known its block
    is at the beginning of ``scratch``.
    """
    inflater = _NEW_DECOMPRESSOR()
    size, known, why, lacking = len(start), 0, _DONE, 0
    room = len(scratch)
    planes = np.empty(room, np.uint8)
    while row < size:
        first, n, end = start[row], length[row], np.int64(ends[row])
        if n == 0:
            codes[row] = MISSING
            ends[row + 1] = end
            row += 1
            continue
        why = _ODD
        if n < 18 or data[first] != 0x1F or data[first + 1] != 0x8B:
            break
        whole = np.int64(0)
        for place in range(4):
            whole |= np.int64(data[first + n - 4 + place]) << (8 * place)
        if whole <= BLOCK or whole > room:
            break
        if _GUNZIP(inflater, data.ctypes.data + first, n, scratch.ctypes.data, whole, 0) != 0:
            break
        why = _HEADER
        for step in range(len(headers)):
            other = (known + step) % len(headers)
            if sides[other, 0] == 0:
                continue
            same, header = True, headers[other]
            for place in range(BLOCK):
                same &= scratch[place] == header[place]
            if same:
                known, why = other, _DONE
                break
        if why == _HEADER:
            break
        pixels = sides[known, 0] * sides[known, 1]
        why = _ODD
        if whole < BLOCK + 4 * pixels:
            break
        why, lacking = _FULL, 8 + 4 * pixels + 4 * pixels // 255 + 16
        if len(packed) - end < lacking:
            break
        sound = False
        for pixel in range(pixels):
            upper, second = scratch[BLOCK + 4 * pixel], scratch[BLOCK + 4 * pixel + 1]
            planes[pixel], planes[pixels + pixel] = upper, second
            planes[2 * pixels + pixel] = scratch[BLOCK + 4 * pixel + 2]
            planes[3 * pixels + pixel] = scratch[BLOCK + 4 * pixel + 3]
            sound |= (upper & 0x7F) != 0x7F or second < 0x80  # the exponent of what is not finite is all ones
        at = packed.ctypes.data + end + 8
        n_block = _LZ4(planes.ctypes.data, at, np.int32(4 * pixels), np.int32(lacking - 8))
        check = CRC32(np.uint32(0), at, n_block)
        for place in range(4):
            packed[end + place] = (4 * pixels >> (8 * place)) & 0xFF
            packed[end + 4 + place] = (np.int64(check) >> (8 * place)) & 0xFF
        ends[row + 1] = end + 8 + n_block
        shapes[row, 0], shapes[row, 1] = sides[known, 0], sides[known, 1]
        codes[row] = DECODED if sound else DAMAGED
        why = _DONE
        row += 1
    _FREE_DECOMPRESSOR(inflater)
    return row, why, lacking
