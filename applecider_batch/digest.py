"""Stable hashes: the sharding hash, content digests, and digests that do not depend on the order of rows.

Nothing here uses Python's or Polars' own ``hash``; every value is the same on every machine and version.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.schema import one_array

HASH64_END = 1 << 64


def hash64_one(object_id: str) -> int:
    """Sharding hash of one objectId: the first 8 bytes, big-endian, of BLAKE2b-64 of its UTF-8 bytes.

    Examples
    --------
    >>> hash64_one("ZTF18abccouv") == int.from_bytes(
    ...     __import__("hashlib").blake2b(b"ZTF18abccouv", digest_size=8).digest(), "big")
    True
    """
    return int.from_bytes(hashlib.blake2b(object_id.encode(), digest_size=8).digest(), "big")


def hash64(object_ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> np.ndarray:
    """Sharding hash of many objectIds.

    Parameters
    ----------
    object_ids : array of str, shape (n,)
        Arrow (dictionary or plain) or any sequence; no nulls.

    Returns
    -------
    ndarray, uint64, shape (n,)
    """
    if isinstance(object_ids, pa.Array | pa.ChunkedArray):
        array = object_ids
    else:
        array = pa.array(list(object_ids), pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    distinct = array.dictionary.to_pylist()
    table = np.fromiter((hash64_one(name) for name in distinct), dtype=np.uint64, count=len(distinct))
    if not len(array):
        return np.empty(0, np.uint64)
    return table[array.indices.to_numpy(zero_copy_only=False)]


def digest128(data: bytes | memoryview) -> str:
    """BLAKE2b-128 of the bytes, as 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def json_digest(value: Any) -> str:
    """BLAKE2b-128 of a JSON value in canonical form (sorted keys, no blanks, NaN refused)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digest128(text.encode())


class MultisetDigest:
    """Digest of a multiset of row digests: their sum modulo 2**128, with the count.

    It does not depend on the order in which rows are added, and a row can be taken out again, so it can be
    kept up to date without reading what is already stored.
    """

    def __init__(self, total: int = 0, count: int = 0) -> None:
        self.total = total % (1 << 128)
        self.count = count

    def add(self, digest: str) -> None:
        """Add a row given by its 128-bit digest in hex."""
        self.total = (self.total + int(digest, 16)) % (1 << 128)
        self.count += 1

    def add_many(self, digests: Iterable[str]) -> None:
        """Add many rows."""
        for digest in digests:
            self.add(digest)

    def remove(self, digest: str) -> None:
        """Take a row out again."""
        self.total = (self.total - int(digest, 16)) % (1 << 128)
        self.count -= 1

    def merge(self, other: MultisetDigest) -> None:
        """Add all rows of another multiset."""
        self.total = (self.total + other.total) % (1 << 128)
        self.count += other.count

    def hexdigest(self) -> str:
        """32 hex digits of the sum and 16 of the count."""
        return f"{self.total:032x}{self.count:016x}"

    @classmethod
    def from_hex(cls, text: str) -> MultisetDigest:
        """The inverse of :meth:`hexdigest`."""
        return cls(int(text[:32], 16), int(text[32:], 16))


def row_digests(table: pa.Table, columns: Sequence[str] | None = None) -> list[bytes]:
    """BLAKE2b-128 of every row.

    Two rows have the same digest exactly when they hold the same values: NaN equals NaN whatever its payload,
    0.0 equals -0.0, null differs from NaN, and the Arrow layout (chunks, dictionaries, large or small
    strings) does not matter.

    Returns
    -------
    list of bytes, length ``table.num_rows``, 16 bytes each
    """
    names = list(columns) if columns is not None else table.column_names
    parts = _encode_table([table.column(name).combine_chunks() for name in names])
    blake = hashlib.blake2b
    return [blake(b"".join(cells), digest_size=16).digest() for cells in zip(*parts, strict=True)]


def multiset_of(table: pa.Table, columns: Sequence[str] | None = None) -> MultisetDigest:
    """Multiset digest of the rows of a table."""
    rows = row_digests(table, columns)
    return MultisetDigest(sum(int.from_bytes(row, "big") for row in rows), len(rows))


def table_digest(table: pa.Table, columns: Sequence[str] | None = None) -> str:
    """Digest of a table's names and rows that does not depend on the order of the rows (hex)."""
    names = list(columns) if columns is not None else table.column_names
    return digest128((json.dumps(names) + multiset_of(table, names).hexdigest()).encode())


def _encode_table(columns: Sequence[pa.Array | pa.ChunkedArray]) -> list[list[bytes]]:
    """Encoded columns; neighbouring columns of numbers come as one, which is several times faster."""
    parts: list[list[bytes]] = []
    for numbers, run in itertools.groupby(columns, key=lambda column: _is_number(column.type)):
        if not numbers:
            parts.extend(_encode_column(column) for column in run)
            continue
        block = np.stack([_number_bytes(column) for column in run], axis=1)  # (n, k) of 9 bytes
        data, width = block.tobytes(), block.shape[1] * block.dtype.itemsize
        parts.append([data[i : i + width] for i in range(0, len(data), width)])
    return parts


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _encode_column(column: pa.Array | pa.ChunkedArray) -> list[bytes]:
    """One self-delimiting byte string per row."""
    if isinstance(column, pa.ChunkedArray):
        column = one_array(column)
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _encode_column(column.dictionary_decode())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _encode_lists(column)
    if pa.types.is_struct(kind):
        fields = [_encode_column(pc.struct_field(column, [i])) for i in range(kind.num_fields)]
        valid = column.is_valid().to_pylist()
        joined = (b"".join(cells) for cells in zip(*fields, strict=True))
        return [b"\x02" + cell if ok else b"\x00" for cell, ok in zip(joined, valid, strict=True)]
    if _is_number(kind):
        return _encode_numbers(column)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        cells = column.to_pylist()
    else:
        cells = [None if v is None else v.encode() for v in column.cast(pa.string()).to_pylist()]
    return [b"\x00" if v is None else b"\x01" + len(v).to_bytes(8, "little") + v for v in cells]


def _number_bytes(column: pa.Array) -> np.ndarray:
    """Values as (n,) void items of one valid byte and eight value bytes; NaN and -0.0 in one form."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        values = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False) + 0.0
        bits = np.where(np.isnan(values), np.nan, values).astype("<f8").view("<u8")
        bits = np.where(np.isnan(values), np.uint64(0x7FF8000000000000), bits)
    else:
        wide = pa.uint64() if pa.types.is_uint64(column.type) else pa.int64()
        bits = pc.fill_null(column.cast(wide), 0).to_numpy(zero_copy_only=False)
        bits = bits.astype("<u8" if pa.types.is_uint64(column.type) else "<i8").view("<u8")
    out = np.empty(len(column), dtype=[("valid", "u1"), ("bits", "<u8")])
    out["valid"] = valid
    out["bits"] = np.where(valid, bits, 0)
    return out


def _encode_numbers(column: pa.Array) -> list[bytes]:
    data = _number_bytes(column).tobytes()
    return [data[i : i + 9] for i in range(0, len(data), 9)]


def _encode_lists(column: pa.Array) -> list[bytes]:
    valid = column.is_valid().to_pylist()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    flat = column.flatten()
    numeric = pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)
    if numeric or pa.types.is_boolean(flat.type):
        data = _number_bytes(flat).tobytes()
        cells = [data[9 * (e - n) : 9 * e] for e, n in zip(ends, lengths, strict=True)]
    else:
        items = _encode_column(flat)
        cells = [b"".join(items[e - n : e]) for e, n in zip(ends, lengths, strict=True)]
    return [
        b"\x03" + int(n).to_bytes(8, "little") + cell if ok else b"\x00"
        for cell, n, ok in zip(cells, lengths, valid, strict=True)
    ]
