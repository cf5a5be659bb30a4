"""Parquet parts of a catalogue: which rows of which shards each holds, and how one is written.

Parts are cut by rows, independently of the shards' borders, and the commit records say how many rows a shard
has, so every part can be written by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.catalog.store import BATCH_ROWS
from applecider_batch.storage import Store

#: Rows of a row group: an update looks up the rows of a few objects, each for the price of one group.
GROUP_ROWS = 8192


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of the shard with this position; ``first``: the part holds its beginning."""

    shard: int
    start: int
    stop: int
    first: bool


@dataclass(frozen=True)
class PartTask:
    """What a part is made of, in row order."""

    number: int
    pieces: tuple[Piece, ...]


def part_tasks(rows: Sequence[int], rows_per_part: int) -> list[PartTask]:
    """Cut shards with so many rows each into parts: whole row groups, and each shard's beginning in one part.

    Parameters
    ----------
    rows : sequence of int
        Rows of each shard, in row order.
    rows_per_part : int
        A part has this many rows, made up to a whole row group; the last one what is left.

    Returns
    -------
    list of PartTask
        At least one.
    """
    group = _group_rows(rows_per_part)
    size = -(-rows_per_part // group) * group
    ends = np.cumsum([0, *rows])
    total = int(ends[-1])
    tasks = []
    for number in range(max(1, -(-total // size))):
        lo = number * size
        hi = total if lo + size >= total else lo + size
        last = hi == total
        pieces = []
        for shard, begin in enumerate(ends[:-1].tolist()):
            end = begin + rows[shard]
            first = lo <= begin < hi or (last and begin == total)
            if first or (begin < hi and end > lo):
                pieces.append(Piece(shard, max(lo - begin, 0), min(hi, end) - begin, first))
        tasks.append(PartTask(number, tuple(pieces)))
    return tasks


def _group_rows(rows_per_part: int) -> int:
    return min(BATCH_ROWS, rows_per_part)


def part_name(folder: str, number: int, build: str) -> str:
    """Relative path of a part."""
    return f"{folder}/part-{number:05d}.{build}.parquet"


def write_part(
    out: Store, name: str, schema: pa.Schema, tables: Iterable[pa.Table], rows_per_part: int
) -> dict[str, Any]:
    """Write one part in row groups of exactly the same size, the last one smaller; see :func:`write_file`."""
    return write_file(out, name, schema, _regroup(tables, _group_rows(rows_per_part)))


def write_parts(
    out: Store, tables: Iterable[pa.Table], folder: str, schema: pa.Schema, build: str, rows_per_part: int
) -> list[dict[str, Any]]:
    """Write tables one after another into as many parts as they need, at least one."""
    size = _group_rows(rows_per_part)
    groups = _regroup(tables, size)
    parts: list[dict[str, Any]] = []
    while True:
        some = list(islice(groups, 1))
        if parts and not some:
            return parts
        rest = islice(groups, -(-rows_per_part // size) - 1)
        parts.append(write_file(out, part_name(folder, len(parts), build), schema, chain(some, rest)))


def write_file(out: Store, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Write one Parquet file.

    Returns
    -------
    dict
        ``file, rows, bytes, sha256``.
    """
    rows = 0
    with out.open_output(name) as file:
        sink = _Hashing(file)
        with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=3) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=GROUP_ROWS)
                rows += table.num_rows
    return {"file": name, "rows": rows, "bytes": sink.bytes, "sha256": sink.hexdigest()}


class _Hashing:
    """A file to write that keeps the sha256 and the length of what went through it."""

    closed = False

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.bytes += len(data)
        self._out.write(data)
        return len(data)

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        self.closed = True

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _regroup(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``size`` rows, the last one shorter."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        if count >= size:
            joined = pa.concat_tables(held).combine_chunks()
            for start in range(0, count - size + 1, size):
                yield joined.slice(start, size)
            rest = count % size
            held, count = ([joined.slice(joined.num_rows - rest)] if rest else []), rest
    if count:
        yield pa.concat_tables(held).combine_chunks()
