"""Reading a part by hash range: only the row groups and columns that are needed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.archive.parts import part_schema
from applecider_batch.archive.snapshot import ArchiveError, PartRecord
from applecider_batch.archive.spill import hash_slice
from applecider_batch.archive.stamp_blocks import COLUMNS as STAMPS
from applecider_batch.archive.stamp_blocks import pack
from applecider_batch.digest import digest128
from applecider_batch.storage import Store, is_of_storage

#: Decoded row groups that are kept for the next range, of all parts: an archive may have hundreds of parts.
KEPT_BYTES = 128 << 20


@dataclass(frozen=True)
class TableIndex:
    """Row groups of a part's table: rows, uncompressed bytes, first and last hash64 (uint64)."""

    rows: np.ndarray
    bytes: np.ndarray
    lo: np.ndarray
    hi: np.ndarray

    def groups(self, lo: int, hi: int) -> list[int]:
        """Row groups that can hold hash64 in [lo, hi)."""
        if hi <= lo:
            return []
        return np.flatnonzero((self.lo <= np.uint64(hi - 1)) & (self.hi >= np.uint64(lo))).tolist()


class PlainLayout:
    """Where the columns of row groups lie in a file that nothing packs, from its footer."""

    def __init__(self, footer: pq.FileMetaData) -> None:
        self._footer = footer
        self._columns = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
        self._known: dict[tuple[int, str], tuple[int, int, int] | None] = {}

    def place(self, group: int, column: str) -> tuple[int, int, int] | None:
        """First byte, bytes and rows of a column of byte strings; None if the column is anything else."""
        key = group, column
        if key not in self._known:
            self._known[key] = self._place(*key)
        return self._known[key]

    def _place(self, group: int, column: str) -> tuple[int, int, int] | None:
        number = self._columns.get(column)  # that of a list has another path
        if number is None:
            return None
        rows, kind = self._footer.row_group(group), self._footer.schema.column(number)
        chunk, levels = rows.column(number), (kind.max_definition_level, kind.max_repetition_level)
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or levels != (1, 0):
            return None
        return chunk.data_page_offset, chunk.total_compressed_size, rows.num_rows


class PlainChunks:
    """Columns of row groups as they lie in a local file, where nothing packs them."""

    def __init__(self, file: IO[bytes], layout: PlainLayout) -> None:
        self._file, self._layout = file, layout
        self._buffer = np.empty(0, np.uint8)
        self.bytes_read = 0

    def read(self, group: int, column: str) -> tuple[np.ndarray, int] | None:
        """Pages of a column of byte strings without lists or a dictionary, and how many rows they have.

        Returns
        -------
        (ndarray, int) or None
            uint8, valid until the next call; None if the column is anything else.
        """
        place = self._layout.place(group, column)
        if place is None:
            return None
        at, size, rows = place
        if len(self._buffer) < size:
            self._buffer = np.empty(size, np.uint8)
        data = self._buffer[:size]
        self._file.seek(at)
        if self._file.readinto(data.data) != size:  # type: ignore[attr-defined]
            return None
        self.bytes_read += size
        return data, rows


class KeptGroups:
    """Decoded row groups that reach beyond a range, kept for the next one: of all parts a bounded amount."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], tuple[int, pa.Table]] = {}

    def take(self, key: tuple[str, ...], group: int) -> pa.Table | None:
        """The row group of this number, if it is what was kept of a part's columns."""
        number, table = self._groups.pop(key, (-1, None))
        return table if number == group else None

    def keep(self, key: tuple[str, ...], group: int, table: pa.Table) -> None:
        """Keep a row group, unless those that are kept take the room."""
        if table.nbytes + sum(kept.nbytes for _, kept in list(self._groups.values())) <= KEPT_BYTES:
            self._groups[key] = group, table


class PartReader:
    """Reads the tables of one part by hash range; only the needed row groups and columns are fetched.

    With ``only`` (uint64, ascending) the part looks as if it held the objects of these hashes alone. ``kept``
    is shared by the parts of an archive.
    """

    def __init__(
        self,
        store: Store,
        record: PartRecord,
        only: np.ndarray | None = None,
        kept: KeptGroups | None = None,
    ) -> None:
        self.store = store
        self.record = record
        self.only = only
        self._footers: dict[str, pq.FileMetaData] = {}
        self._plain: dict[str, PlainLayout] = {}
        self._stored: dict[str, dict[str, np.ndarray]] = {}
        self._kept = kept or KeptGroups()
        self.bytes_read = 0

    @cached_property
    def _index(self) -> dict[str, Any]:
        try:
            data = self.store.read_bytes(self.record.index_path)
        except FileNotFoundError:
            raise _missing(self.store, self.record.index_path) from None
        if digest128(data) != self.record.index_digest:
            raise ArchiveError(
                f"'{self.store.url}/{self.record.index_path}' is not the file that the snapshot names.",
                hint=f"Check with: applecider-batch archive verify {self.store.url}",
            )
        value: dict[str, Any] = json.loads(data)
        return value

    @cached_property
    def histogram(self) -> dict[str, np.ndarray]:
        """Rows of each table per hash bucket: ``bucket`` (of 2**12) and one int64 array per table."""
        return {name: np.array(v, np.int64) for name, v in self._index["histogram"].items() if name != "bits"}

    @cached_property
    def _tables(self) -> dict[str, TableIndex]:
        out = {}
        for name, value in self._index["tables"].items():
            lo, hi = (np.array([int(h, 16) for h in value[side]], np.uint64) for side in ("lo", "hi"))
            out[name] = TableIndex(
                np.array(value["rows"], np.int64), np.array(value["bytes"], np.int64), lo, hi
            )
        return out

    def index(self, name: str) -> TableIndex | None:
        """The row-group index of a table, None when the part has no such table."""
        return self._tables.get(name)

    def groups(self, name: str, lo: int, hi: int) -> list[int]:
        """Row groups of a table that can hold a row in [lo, hi)."""
        index = self._tables[name]
        found = index.groups(lo, hi)
        if self.only is None:
            return found
        first = np.searchsorted(self.only, index.lo[found], side="left")
        last = np.searchsorted(self.only, index.hi[found], side="right")
        return np.asarray(found, np.int64)[first < last].tolist()

    def overlaps(self, name: str, lo: int, hi: int) -> bool:
        """Whether the part can have rows of the table in [lo, hi)."""
        return name in self.record.tables and self.record.tables[name].overlaps(lo, hi)

    @contextlib.contextmanager
    def open(self, name: str, checked: bool = True) -> Iterator[pq.ParquetFile]:
        """The Parquet file of a table; not ``checked``: without comparing the checksums of its pages."""
        path = self.record.path(name)
        try:
            source = self.store.open_ranges(path, self.record.tables[name].bytes)
        except FileNotFoundError:
            raise _missing(self.store, path) from None
        with source:
            try:
                file = pq.ParquetFile(
                    source,
                    metadata=self._footers.get(name),
                    pre_buffer=not self.store.is_local,
                    page_checksum_verification=checked,
                )
                self._footers[name] = file.metadata
                yield file
            except (pa.ArrowException, OSError) as error:
                if is_of_storage(error):
                    raise
                raise ArchiveError(
                    f"The archive's file '{path}' cannot be read: {str(error).rstrip('.')}.",
                    hint=f"Check with: applecider-batch archive verify --deep {self.store.url}",
                ) from error

    @contextlib.contextmanager
    def open_plain(self, name: str) -> Iterator[PlainChunks | None]:
        """The column chunks of a table as they lie in its file; None where that is not on this machine."""
        if not self.store.is_local:
            yield None
            return
        if name not in self._footers:
            with self.open(name):
                pass
        path = self.record.path(name)
        try:
            file = open(self.store.path(path), "rb", buffering=0)  # noqa: SIM115  closed below
        except FileNotFoundError:
            raise _missing(self.store, path) from None
        with file:
            if name not in self._plain:
                self._plain[name] = PlainLayout(self._footers[name])
            chunks = PlainChunks(file, self._plain[name])
            try:
                yield chunks
            finally:
                self.bytes_read += chunks.bytes_read

    def read(self, name: str, lo: int, hi: int, columns: Iterable[str] | None = None) -> pa.Table:
        """Rows of a table with hash64 in [lo, hi), in the archive's order.

        Parameters
        ----------
        name : str
            A table that is sorted by hash.
        lo, hi : int
            Hash range, half open; ``hi`` may be 2**64.
        columns : iterable of str, optional
            Columns wanted; all by default.

        Returns
        -------
        Table
            In the schema of the table; stamps are packed, whatever the version of the part (`unpack`).
        """
        schema = part_schema(name)
        wanted = list(columns) if columns is not None else schema.names
        if not self.overlaps(name, lo, hi):
            return _select(schema, wanted).empty_table()
        groups = self.groups(name, lo, hi)
        if not groups:
            return _select(schema, wanted).empty_table()
        needed = wanted if "hash64" in wanted else ["hash64", *wanted]
        table = self._read_on(name, groups, needed, hi)
        start, stop = hash_slice(table.column("hash64").to_numpy(), lo, hi)
        if 2 * (stop - start) < table.num_rows:
            # A copy, or the few rows wanted would keep whole row groups in memory.
            table = table.take(pa.array(np.arange(start, stop)))
        else:
            table = table.slice(start, stop - start)
        if self.only is not None:
            table = table.filter(pa.array(np.isin(table.column("hash64").to_numpy(), self.only)))
        return _select_table(table, wanted, _select(schema, wanted))

    def _read_on(self, name: str, groups: list[int], columns: list[str], hi: int) -> pa.Table:
        """Row groups of a range that ends at ``hi``; one that reaches beyond is kept for the next range."""
        key = (self.record.part_id, name, *columns)
        beyond = int(self._tables[name].hi[groups[-1]]) >= hi
        kept = self._kept.take(key, groups[0])
        pieces = [] if kept is None else [kept]
        if rest := groups[len(pieces) :]:
            with self.open(name) as file:
                for some in (rest[:-1], rest[-1:]) if beyond else (rest,):
                    if some:
                        pieces.append(self._read_groups(file, name, some, columns))
        if beyond:
            self._kept.keep(key, groups[-1], pieces[-1])
        return pa.concat_tables(pieces)

    def read_groups(
        self,
        name: str,
        groups: list[int],
        columns: Iterable[str] | None = None,
        schema: pa.Schema | None = None,
    ) -> pa.Table:
        """Whole row groups of a table, in the table's own schema or that of one with equal columns.

        Stamps are packed, whatever the version of the part.
        """
        schema = schema or part_schema(name)
        wanted = list(columns) if columns is not None else schema.names
        with self.open(name) as file:
            table = self._read_groups(file, name, groups, wanted)
        return _select_table(table, wanted, _select(schema, wanted))

    def stored_bytes(self, name: str, groups: list[int], columns: Iterable[str] | None = None) -> int:
        """Bytes of row groups of a table as stored, all columns or some; from its footer."""
        if name not in self._stored:
            if name not in self._footers:
                with self.open(name):
                    pass
            self._stored[name] = _chunk_bytes(self._footers[name])
        sizes = self._stored[name]
        return int(sum(sizes[column][groups].sum() for column in (sizes if columns is None else columns)))

    def _read_groups(
        self, file: pq.ParquetFile, name: str, groups: list[int], columns: list[str]
    ) -> pa.Table:
        self.bytes_read += self.stored_bytes(name, groups, columns)
        stamps = [column for column in columns if name == "stamps" and column in STAMPS]
        if not stamps:
            return file.read_row_groups(groups, columns=columns, use_threads=False)
        if pa.types.is_list(file.schema_arrow.field(stamps[0]).type):  # format version 1
            return pack(file.read_row_groups(groups, columns=columns, use_threads=False))
        keys = [column for column in columns if column not in stamps]
        table = file.read_row_groups(groups, columns=keys, use_threads=False)
        # Blocks have checksums of their own, which are compared when one is unpacked.
        with self.open(name, checked=False) as unchecked:
            blocks = unchecked.read_row_groups(groups, columns=stamps, use_threads=False)
        for column in stamps:
            table = table.append_column(blocks.schema.field(column), blocks.column(column))
        return table


def _chunk_bytes(footer: pq.FileMetaData) -> dict[str, np.ndarray]:
    """Column -> stored bytes in each row group, int64 (n_groups,)."""
    sizes: dict[str, np.ndarray] = {}
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for position in range(group.num_columns):
            chunk = group.column(position)
            column = chunk.path_in_schema.split(".")[0]
            of = sizes.setdefault(column, np.zeros(footer.num_row_groups, np.int64))
            of[number] += chunk.total_compressed_size
    return sizes


def _select(schema: pa.Schema, names: list[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names])


def _select_table(table: pa.Table, names: list[str], schema: pa.Schema) -> pa.Table:
    return pa.table([table.column(name) for name in names], schema=schema)


def _missing(store: Store, path: str) -> ArchiveError:
    return ArchiveError(
        f"The file '{store.url}/{path}' that the snapshot names is missing.",
        hint="If 'archive gc' removed it while a plan still pinned this snapshot, plan again on the latest.",
    )
