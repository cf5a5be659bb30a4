"""Sorting out of core: tables are spilled as sorted blocks to one local file and read back by hash range.

Memory holds the buffer being filled, and of what is spilled only a few numbers per block. What is in the
buffer at the end can stay there (``settle``): then it is never written. The file is this
machine's until it is published: then it lies in a store, and every process can read its ranges.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

import numpy as np
import pyarrow as pa

from applecider_batch.archive.taken_rows import take_rows
from applecider_batch.digest import HASH64_END
from applecider_batch.errors import StorageError
from applecider_batch.lease import LEASE, Lease, is_abandoned
from applecider_batch.storage import Store

#: What the names of scratch folders begin with.
SCRATCH = ".spill-"
_PREFIX = "applecider-batch-spill-"
_UNLOCKED = "applecider-batch-new-"
_FILE = "sorted-blocks"
_BLOCK_BYTES = 256 << 10
_PIECES = 8  # a stretch is thought of as pieces of an eighth of a range
_MOST_PIECES = 256
_READ_BYTES = 8 << 20  # fetched at a time of a published file
_SMALL_ROW = 4096  # bytes; rows of more are not copied to lie side by side


@dataclass
class _Blocks:
    """Where the sorted blocks of a table lie in the spill file, their ends and what is told of them."""

    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    lo: list[int] = field(default_factory=list)
    hi: list[int] = field(default_factory=list)
    stretches: list[tuple[int, int, int]] = field(default_factory=list)
    _bounds: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, offset: int, length: int, stretch: tuple[int, int, int]) -> None:
        lo, hi, _ = stretch
        for values, value in ((self.offset, offset), (self.length, length), (self.lo, lo), (self.hi, hi)):
            values.append(value)
        self.stretches.append(stretch)
        self._bounds = None

    def overlapping(self, lo: int, hi: int) -> list[int]:
        """Numbers of the blocks that can hold hashes in [lo, hi)."""
        if self._bounds is None:
            self._bounds = np.array(self.lo, np.uint64), np.array(self.hi, np.uint64)
        first, last = self._bounds
        return np.flatnonzero((first <= np.uint64(hi - 1)) & (last >= np.uint64(lo))).tolist()


class _Run:
    """Rows of a table in memory, with their order by the key and what is told of them once written."""

    def __init__(self, tables: list[pa.Table], key: str) -> None:
        table = pa.concat_tables(tables)
        rows, size = table.num_rows, table.nbytes
        self.table = table.combine_chunks() if size < _SMALL_ROW * rows else table
        keys = self.table.column(key).to_numpy()
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        step = max(1, int(_BLOCK_BYTES * rows / max(size, 1)))
        self.blocks = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
        self.stretches = [
            (int(self.keys[own.start]), int(self.keys[own.stop - 1]), size * (own.stop - own.start) // rows)
            for own in self.blocks
        ]

    def places(self, lo: int, hi: int) -> np.ndarray:
        """Rows with keys in [lo, hi), in the order in which they were added."""
        start, stop = hash_slice(self.keys, lo, hi)
        return np.sort(self.order[start:stop])


class Sorted(Protocol):
    """Tables in sorted blocks, to be read by ranges of their key."""

    @property
    def names(self) -> list[str]:
        """Tables that have rows."""

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """First and last key and bytes of every block."""

    def find(self, name: str, lo: int, hi: int) -> tuple[pa.Table, np.ndarray]:
        """A table and its rows (int64) with keys in [lo, hi), in no particular order.

        What is in memory is not copied.
        """

    def read(self, name: str, lo: int, hi: int) -> pa.Table:
        """All rows of a table with keys in [lo, hi), in no particular order."""
        table, rows = self.find(name, lo, hi)
        return table if len(rows) == table.num_rows else take_rows(table, rows)


class _File(Sorted):
    """What spilled and published files share: blocks, and how they are read."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._blocks: dict[str, _Blocks] = {}
        self._schemas: dict[str, pa.Schema] = {}

    @property
    def names(self) -> list[str]:
        """Tables that have rows."""
        return sorted(self._blocks)

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """First and last key and bytes of every block."""
        for blocks in self._blocks.values():
            yield from blocks.stretches

    def find(self, name: str, lo: int, hi: int) -> tuple[pa.Table, np.ndarray]:
        """A table and its rows (int64) with keys in [lo, hi): all of them."""
        schema = self._schemas[name]
        table = pa.Table.from_batches(list(self._pieces(name, schema, lo, hi)), schema=schema)
        return table, np.arange(table.num_rows)

    def _pieces(self, name: str, schema: pa.Schema, lo: int, hi: int) -> Iterator[pa.RecordBatch]:
        blocks = self._blocks[name]
        numbers = blocks.overlapping(lo, hi)
        for data in self._fetch([(blocks.offset[number], blocks.length[number]) for number in numbers]):
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
            start, stop = hash_slice(batch.column(self._key).to_numpy(), lo, hi)
            if stop > start:
                yield batch.slice(start, stop - start)

    @abstractmethod
    def _fetch(self, places: list[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes at each (offset, length)."""


class Published(_File):
    """A spill's file in a store; it can be pickled."""

    def __init__(
        self, store: Store, path: str, key: str, blocks: dict[str, _Blocks], schemas: dict[str, pa.Schema]
    ) -> None:
        super().__init__(key)
        self._store, self._path = store, path
        self._blocks, self._schemas = blocks, schemas
        self.bytes = sum(sum(each.length) for each in blocks.values())

    def _fetch(self, places: list[tuple[int, int]]) -> Iterator[bytes]:
        with self._store.open_ranges(self._path, self.bytes) as file:
            for group in _joined(places):
                start = group[0][0]
                file.seek(start)
                data = file.read(sum(length for _, length in group))
                for offset, length in group:
                    yield data[offset - start : offset - start + length]

    def close(self) -> None:
        """Remove the file."""
        self._store.delete(self._path)


def _joined(places: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Places in groups that follow each other without a gap, of at most a few megabytes."""
    group: list[tuple[int, int]] = []
    for offset, length in places:
        if group and (offset != sum(group[-1]) or offset + length - group[0][0] > _READ_BYTES):
            yield group
            group = []
        group.append((offset, length))
    if group:
        yield group


class Several(Sorted):
    """Several of them, read as one."""

    def __init__(self, members: Iterable[Sorted]) -> None:
        self._members = list(members)

    @property
    def names(self) -> list[str]:
        """Tables that have rows."""
        return sorted({name for member in self._members for name in member.names})

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """First and last key and bytes of every block."""
        for member in self._members:
            yield from member.stretches()

    def find(self, name: str, lo: int, hi: int) -> tuple[pa.Table, np.ndarray]:
        """A table and its rows (int64) with keys in [lo, hi)."""
        return _together([member.find(name, lo, hi) for member in self._members if name in member.names])


def _together(found: list[tuple[pa.Table, np.ndarray]]) -> tuple[pa.Table, np.ndarray]:
    firsts = np.cumsum([0, *(table.num_rows for table, _ in found)])
    rows = [own + first for (_, own), first in zip(found, firsts, strict=False)]
    return pa.concat_tables(table for table, _ in found), np.concatenate(rows)


class Spill(_File):
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
        super().__init__(key)
        self._memory = memory_bytes
        made = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=folder))
        self._file: IO[bytes] = open(made / _FILE, "w+b")  # noqa: SIM115  closed by close()
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Only now by the name that others look for: unlocked it would be taken for a dead process's.
        self._folder = made.rename(made.with_name(_PREFIX + made.name.removeprefix(_UNLOCKED)))
        self._buffers: dict[str, list[pa.Table]] = {}
        self._kept: dict[str, list[_Run]] = {}
        self._buffered = 0
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
        return sorted(self._blocks.keys() | self._buffers.keys() | self._kept.keys())

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

    def settle(self) -> None:
        """Sort what is buffered, and leave it in memory, to be read from there."""
        for name in sorted(self._buffers):
            self._kept.setdefault(name, []).append(_Run(self._buffers.pop(name), self._key))

    def flush(self) -> None:
        """Sort what is buffered and write all that is in memory out."""
        self.settle()
        try:
            for name in sorted(self._kept):
                for run in self._kept.pop(name):
                    self._write_run(name, run)
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"The spill file in '{self._folder.parent}' could not be written: {error}.",
                hint="Set TMPDIR to a folder with more space and run the same command again.",
            ) from error
        self._buffered = 0

    def _write_run(self, name: str, run: _Run) -> None:
        run.table = run.table.combine_chunks()
        blocks = self._blocks.setdefault(name, _Blocks())
        for own, stretch in zip(run.blocks, run.stretches, strict=True):
            for batch in run.table.take(pa.array(run.order[own])).combine_chunks().to_batches():
                data = batch.serialize()
                self._file.write(data)
                blocks.add(self._end, data.size, stretch)
                self._end += data.size

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """First and last key and bytes of every block."""
        yield from super().stretches()
        for runs in self._kept.values():
            for run in runs:
                yield from run.stretches

    def find(self, name: str, lo: int, hi: int) -> tuple[pa.Table, np.ndarray]:
        """A table and its rows (int64) with keys in [lo, hi)."""
        found = [(run.table, run.places(lo, hi)) for run in self._kept.get(name, ())]
        return _together([*found, super().find(name, lo, hi)] if name in self._blocks else found)

    def ranges(self, target_bytes: int) -> list[tuple[int, int]]:
        """Cut [0, 2**64) so that each range holds about ``target_bytes`` (an object is never cut)."""
        self.flush()
        return cut_ranges(self.stretches(), target_bytes)

    def _fetch(self, places: list[tuple[int, int]]) -> Iterator[bytes]:
        for offset, length in places:
            yield os.pread(self._file.fileno(), length, offset)

    def publish(self, store: Store, path: str) -> Published:
        """Copy the file to where every process can read it, and close."""
        self.flush()
        self._file.seek(0)
        with store.open_output(path) as out:
            shutil.copyfileobj(self._file, out, 16 << 20)
        self.close()
        return Published(store, path, self._key, self._blocks, self._schemas)


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


@contextlib.contextmanager
def scratch_folder(store: Store) -> Iterator[Store]:
    """A folder below ``store`` for sorted rows on their way between processes, removed at the end.

    It is leased, so that others can tell whether its owner was killed; what such left is removed first.
    """
    remove_abandoned(store)
    name = f"{SCRATCH}{uuid.uuid4().hex}"
    folder = store.join(name)
    try:
        with Lease(folder, what="scratch folder"):
            try:
                yield folder
            finally:  # before the lease goes: this may take a while
                for file in folder.ls():
                    if file != LEASE:
                        folder.delete(file)
    finally:
        store.delete(name, recursive=True)


def remove_abandoned(store: Store) -> bool:
    """Remove the scratch folders below ``store`` whose owners are gone; whether there were any."""
    found = [name for name in store.ls() if name.startswith(SCRATCH) and is_abandoned(store.join(name))]
    for name in found:
        store.delete(name, recursive=True)
    return bool(found)


def _remove_stale(folder: Path) -> None:
    """Remove the spill folders that no living process holds: their owners were killed."""
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            with open(path / _FILE, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # alive, or another user's
