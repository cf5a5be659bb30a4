"""Sorting out of core: tables are spilled as sorted blocks to one local file and read back by hash range.

Memory holds the buffer being filled, and of what is spilled only a few numbers per block.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import pyarrow as pa

from applecider_batch.digest import HASH64_END
from applecider_batch.errors import StorageError

_PREFIX = "applecider-batch-spill-"
_FILE = "sorted-blocks"
_BLOCK_BYTES = 256 << 10
_PIECES = 8  # a stretch is thought of as pieces of an eighth of a range
_MOST_PIECES = 256


@dataclass
class _Blocks:
    """Where the sorted blocks of a table lie in the spill file, and their first and last hash."""

    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    lo: list[int] = field(default_factory=list)
    hi: list[int] = field(default_factory=list)
    _bounds: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, offset: int, length: int, lo: int, hi: int) -> None:
        for values, value in ((self.offset, offset), (self.length, length), (self.lo, lo), (self.hi, hi)):
            values.append(value)
        self._bounds = None

    def overlapping(self, lo: int, hi: int) -> list[int]:
        """Numbers of the blocks that can hold hashes in [lo, hi)."""
        if self._bounds is None:
            self._bounds = np.array(self.lo, np.uint64), np.array(self.hi, np.uint64)
        first, last = self._bounds
        return np.flatnonzero((first <= np.uint64(hi - 1)) & (last >= np.uint64(lo))).tolist()


class Spill:
    """Tables with a key column, taken in any order and given back in ranges of it.

    Parameters
    ----------
    memory_bytes : int
        Buffered bytes at which the buffer is sorted and written out.
    folder : str or Path, optional
        Where the spill file lives; by default the system's folder for temporary files (``TMPDIR``).
    key : str
        The uint64 column that the ranges are of.
    """

    def __init__(self, memory_bytes: int, folder: str | Path | None = None, *, key: str = "hash64") -> None:
        _remove_stale(Path(folder) if folder else Path(tempfile.gettempdir()))
        self._memory = memory_bytes
        self._key = key
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        self._file: IO[bytes] = open(self._folder / _FILE, "w+b")  # noqa: SIM115  closed by close()
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._buffers: dict[str, list[pa.Table]] = {}
        self._buffered = 0
        self._blocks: dict[str, _Blocks] = {}
        self._schemas: dict[str, pa.Schema] = {}
        self._end = 0
        self.bytes = 0

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the spill file."""
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """Tables that have rows."""
        return sorted(self._blocks.keys() | self._buffers.keys())

    def add(self, name: str, table: pa.Table) -> None:
        """Take the rows of a table; all tables of one name have one schema."""
        if not table.num_rows:
            return
        self._schemas.setdefault(name, table.schema)
        self._buffers.setdefault(name, []).append(table)
        self._buffered += table.nbytes
        self.bytes += table.nbytes
        if self._buffered >= self._memory:
            self.flush()

    def flush(self) -> None:
        """Sort what is buffered and write it out."""
        try:
            for name in sorted(self._buffers):
                self._write_run(name, self._buffers.pop(name))
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"The spill file in '{self._folder.parent}' could not be written: {error}.",
                hint="Set TMPDIR to a folder with more space and run the same command again.",
            ) from error
        self._buffered = 0

    def _write_run(self, name: str, tables: list[pa.Table]) -> None:
        table = pa.concat_tables(tables).combine_chunks()
        tables.clear()
        keys = table.column(self._key).to_numpy()
        order = np.argsort(keys, kind="stable")
        step = max(1, int(_BLOCK_BYTES * table.num_rows / max(table.nbytes, 1)))
        blocks = self._blocks.setdefault(name, _Blocks())
        for start in range(0, table.num_rows, step):
            taken = order[start : start + step]
            for batch in table.take(pa.array(taken)).combine_chunks().to_batches():
                data = batch.serialize()
                self._file.write(data)
                hashes = batch.column(self._key).to_numpy()
                blocks.add(self._end, data.size, int(hashes[0]), int(hashes[-1]))
                self._end += data.size

    def ranges(self, target_bytes: int) -> list[tuple[int, int]]:
        """Cut [0, 2**64) so that each range holds about ``target_bytes`` (an object is never cut)."""
        self.flush()
        tables = (zip(b.lo, b.hi, b.length, strict=True) for b in self._blocks.values())
        return cut_ranges((block for blocks in tables for block in blocks), target_bytes)

    def read(self, name: str, lo: int, hi: int) -> pa.Table:
        """All rows of a table with keys in [lo, hi), in no particular order."""
        schema = self._schemas[name]
        pieces = list(self._pieces(name, schema, lo, hi))
        return pa.Table.from_batches(pieces, schema=schema)

    def _pieces(self, name: str, schema: pa.Schema, lo: int, hi: int) -> Iterator[pa.RecordBatch]:
        blocks = self._blocks[name]
        for number in blocks.overlapping(lo, hi):
            data = os.pread(self._file.fileno(), blocks.length[number], blocks.offset[number])
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
            start, stop = hash_slice(batch.column(self._key).to_numpy(), lo, hi)
            if stop > start:
                yield batch.slice(start, stop - start)


def hash_slice(hashes: np.ndarray, lo: int, hi: int) -> tuple[int, int]:
    """First and end row of [lo, hi) in ascending hashes (uint64, shape (n,)); hi may be 2**64."""
    start = int(np.searchsorted(hashes, np.uint64(lo), side="left"))
    if hi >= HASH64_END:
        return start, len(hashes)
    return start, int(np.searchsorted(hashes, np.uint64(hi), side="left"))


def cut_ranges(stretches: Iterable[tuple[int, int, int]], target: int) -> list[tuple[int, int]]:
    """Cut [0, 2**64) so that each range weighs about ``target``; what has one hash is never cut.

    Parameters
    ----------
    stretches : iterable of (first hash, last hash, weight)
        A weight is taken to be spread evenly over its hashes, as hashes are.
    """
    weights: Counter[int] = Counter()
    for lo, hi, weight in stretches:
        pieces = min(max(_PIECES * weight // max(target, 1), 1), _MOST_PIECES, hi - lo + 1)
        for number in range(pieces):
            weights[lo + (hi - lo + 1) * number // pieces] += weight // pieces
    cuts, held = [0], 0
    for position, weight in sorted(weights.items()):
        if held >= target and position > cuts[-1]:
            cuts.append(position)
            held = 0
        held += weight
    return list(zip(cuts, [*cuts[1:], HASH64_END], strict=True))


def _remove_stale(folder: Path) -> None:
    """Remove the spill folders that no living process holds: their owners were killed."""
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            with open(path / _FILE, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # alive, or another user's
