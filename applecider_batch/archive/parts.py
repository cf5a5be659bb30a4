"""Parts: immutable, sorted Parquet files of one stretch of hash64, with a sidecar index; writing them.

::

    parts/<part_id>/{alerts,photometry,stamps,duplicates,spectra,quarantine}.parquet
    parts/<part_id>/index.json       hash range of each row group; histogram of rows over hash buckets

``part_id`` follows from what goes into the part, so a rerun writes the same bytes under the same names.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.archive.snapshot import PartRecord, TableFile
from applecider_batch.archive.stamp_blocks import COLUMNS as STAMPS
from applecider_batch.archive.stamp_blocks import packed_schema
from applecider_batch.archive.taken_rows import TakenRows, take_rows
from applecider_batch.digest import digest128
from applecider_batch.schema import load_table
from applecider_batch.storage import Store, json_bytes

TABLES = ("alerts", "photometry", "stamps", "duplicates", "spectra", "quarantine")
LAYOUT = 3
"""Goes into the ids of parts: equal ids, equal bytes."""
HISTOGRAM_BITS = 12
PART_BYTES = 1 << 30
SORT_KEYS = {
    "alerts": ("hash64", "objectId", "jd", "candid", "packet_digest", "source_id"),
    "stamps": ("hash64", "objectId", "jd", "candid", "packet_digest"),
    "duplicates": ("hash64", "objectId", "jd", "candid", "packet_digest", "source_id"),
    "spectra": ("hash64", "objectId", "jd", "spec_id", "source_id"),
    "quarantine": ("source", "source_id", "member", "digest"),
}
# Rows of a row group. 64 triplets read faster than 256 (measured); a spectrum is as heavy as a stamp.
_GROUP_ROWS = {"alerts": 8192, "photometry": 32768, "stamps": 64, "duplicates": 8192, "spectra": 512}
_UNSORTED = ("quarantine",)


def sort_rows(name: str, table: pa.Table) -> pa.Table:
    """Rows of a table in the archive's order (null first); photometry is sorted by ``stitch``."""
    keys = [(key, "ascending", "at_start") for key in SORT_KEYS[name] if key in table.column_names]
    order = pc.sort_indices(table, sort_keys=keys)
    # In order already: a stamp is 38 kB, not to be copied for nothing.
    rows = order.to_numpy()
    return table if np.array_equal(rows, np.arange(table.num_rows)) else take_rows(table, rows)


def part_schema(name: str) -> pa.Schema:
    """The schema of a table in a part: that of ``schemas/``, with stamps packed (see ``stamp_blocks.py``)."""
    return packed_schema() if name == "stamps" else load_table(name).arrow


def _parquet_options(name: str) -> dict[str, Any]:
    if name == "stamps":
        keys = dict.fromkeys(part_schema(name).names, "lz4")
        return {
            "compression": keys | dict.fromkeys(STAMPS, "none"),
            "use_dictionary": False,
            "write_statistics": False,
            "write_page_checksum": True,
        }
    floats = ("float", "double")
    text = [
        c.name for c in load_table(name).columns if str(c.arrow_type) not in floats and "digest" not in c.name
    ]
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": text,
        "write_statistics": False,
        "write_page_checksum": True,
    }


class _HashingSink(io.RawIOBase):
    """Counts and digests what is written on its way to the storage."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._digest = hashlib.blake2b(digest_size=16)
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._sink.write(view)
        self._digest.update(view)
        self.count += len(view)
        return len(view)

    def tell(self) -> int:
        return self.count

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _TableWriter:
    """One Parquet file with row groups of an exact size; the last may have up to twice that."""

    def __init__(self, name: str, sink: IO[bytes]) -> None:
        self.name = name
        self.rows = 0
        self._group = _GROUP_ROWS.get(name, 8192)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._footers: list[pq.FileMetaData] = []
        self.sink = _HashingSink(sink)
        self._writer = pq.ParquetWriter(
            self.sink, part_schema(name), metadata_collector=self._footers, **_parquet_options(name)
        )
        self.lo: list[int] = []
        self.hi: list[int] = []
        self.group_rows: list[int] = []
        self.histogram = np.zeros(1 << HISTOGRAM_BITS, np.int64)

    @property
    def bytes(self) -> int:
        return self.sink.count + sum(table.nbytes for table in self._pending)

    def append(self, table: pa.Table | TakenRows) -> None:
        self.rows += table.num_rows
        written = False
        start = 0
        while start < table.num_rows:
            # Pieces end where row groups do.
            count = min(self._group - self._pending_rows % self._group, table.num_rows - start)
            self._pending.append(table.slice(start, count))
            self._pending_rows += count
            start += count
            # One group stays back so that the last one is never smaller than a group.
            if self._pending_rows == 2 * self._group:
                self._write_group(self._first_group())
                written = True
        if written and isinstance(table, pa.Table):
            # Copies, or the slices would keep all of what was written in memory.
            self._pending = [piece.take(pa.array(np.arange(piece.num_rows))) for piece in self._pending]

    def _first_group(self) -> pa.Table:
        pieces: list[pa.Table] = []
        rows = 0
        while rows < self._group:
            pieces.append(self._pending.pop(0))
            rows += pieces[-1].num_rows
        self._pending_rows -= rows
        return pa.concat_tables(pieces)

    def _write_group(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self.group_rows.append(table.num_rows)
        if self.name in _UNSORTED:
            return
        hashes = table.column("hash64").to_numpy()
        self.lo.append(int(hashes[0]))
        self.hi.append(int(hashes[-1]))
        buckets = (hashes >> np.uint64(64 - HISTOGRAM_BITS)).astype(np.int64)
        self.histogram += np.bincount(buckets, minlength=len(self.histogram))

    def close(self) -> None:
        if self._pending_rows:
            self._write_group(pa.concat_tables(self._pending))
        self._writer.close()

    def abandon(self) -> None:
        """Close without what is pending; the storage drops the file."""
        self._writer.close()

    def index(self) -> dict[str, Any]:
        footer = self._footers[0]
        return {
            "rows": self.group_rows,
            "bytes": [footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)],
            "lo": [f"{value:016x}" for value in self.lo],
            "hi": [f"{value:016x}" for value in self.hi],
        }

    def record(self) -> TableFile:
        lo, hi = (self.lo[0], self.hi[-1]) if self.lo else (None, None)
        return TableFile(f"{self.name}.parquet", self.rows, self.sink.count, self.sink.hexdigest(), lo, hi)


class PartWriter:
    """Writes one part; tables are appended in ascending hash ranges. Nothing appears if the block fails."""

    def __init__(self, store: Store, part_id: str, run: str) -> None:
        self._store = store
        self.part_id = part_id
        self._run = run
        self._stack = contextlib.ExitStack()
        self._writers: dict[str, _TableWriter] = {}
        self._candids: list[tuple[int, int]] = []
        self._nights: set[str] = set()

    def __enter__(self) -> PartWriter:
        self._stack.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for writer in self._writers.values():
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    writer.abandon()
        self._stack.__exit__(kind, error, trace)

    @property
    def largest(self) -> int:
        """Bytes of the largest file so far, with the rows that wait to fill a row group."""
        return max((writer.bytes for writer in self._writers.values()), default=0)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was appended yet."""
        return not self._writers

    def rows(self, name: str) -> int:
        """Rows appended to a table."""
        return self._writers[name].rows if name in self._writers else 0

    def append(self, name: str, table: pa.Table | TakenRows) -> None:
        """Append sorted rows of the table's schema (`part_schema`)."""
        if not table.num_rows:
            return
        if name not in self._writers:
            sink = self._stack.enter_context(self._store.open_output(f"parts/{self.part_id}/{name}.parquet"))
            self._writers[name] = _TableWriter(name, sink)
        self._writers[name].append(table)
        if name in ("alerts", "duplicates"):
            candids = table.column("candid").to_numpy()
            self._candids.append((int(candids.min()), int(candids.max())))
        if name == "alerts":
            self._nights.update(nights_of(table.column("jd").to_numpy()))

    def finish(self) -> PartRecord:
        """Close the files, write the index and say what was written."""
        for writer in self._writers.values():
            writer.close()
        self._stack.close()
        buckets = {name: w.histogram for name, w in self._writers.items() if name not in _UNSORTED}
        used = np.flatnonzero(np.sum([*buckets.values(), np.zeros(1 << HISTOGRAM_BITS, np.int64)], axis=0))
        index = {
            "part_id": self.part_id,
            "tables": {name: writer.index() for name, writer in self._writers.items()},
            "histogram": {
                "bits": HISTOGRAM_BITS,
                "bucket": used.tolist(),
                **{name: counts[used].tolist() for name, counts in buckets.items()},
            },
        }
        data = json_bytes(index)
        record = PartRecord(
            part_id=self.part_id,
            run=self._run,
            tables={name: self._writers[name].record() for name in sorted(self._writers)},
            index_digest=digest128(data),
            candid_lo=min((lo for lo, _ in self._candids), default=None),
            candid_hi=max((hi for _, hi in self._candids), default=None),
            nights=tuple(sorted(self._nights)),
        )
        self._store.write_atomic(record.index_path, data)
        return record


def nights_of(jd: np.ndarray) -> list[str]:
    """Distinct UTC dates (YYYYMMDD) of Julian dates (d); absurd dates have none."""
    sane = jd[np.isfinite(jd) & (jd > 2_400_000.5) & (jd < 2_500_000.5)]
    days = np.unique(np.floor(sane - 2_440_587.5).astype(np.int64))
    return [str(day).replace("-", "") for day in days.astype("datetime64[D]")]
