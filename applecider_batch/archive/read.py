"""Reading an archive by hash range."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.build import distinct_rows
from applecider_batch.archive.part_reader import KeptGroups, PartReader
from applecider_batch.archive.parts import HISTOGRAM_BITS, SORT_KEYS, part_schema, sort_rows
from applecider_batch.archive.resolve import pairs_of
from applecider_batch.archive.snapshot import ArchiveError, Snapshot, load_snapshot, open_archive
from applecider_batch.archive.spill import cut_ranges
from applecider_batch.archive.stamp_blocks import COLUMNS as STAMPS
from applecider_batch.archive.stamp_blocks import unpack
from applecider_batch.archive.stamp_keys import StampKeys, blocks_of, chosen, keys_of, no_keys
from applecider_batch.archive.stamp_pages import read_pixels
from applecider_batch.archive.stitch import stitch
from applecider_batch.digest import hash64_one
from applecider_batch.schema import load_table
from applecider_batch.storage import Store

_KEPT_ROWS = 1 << 17
"""Most rows of stamps whose keys stay in memory for the next call, some 25 MB."""
_COUNTED = ("alerts", "photometry", "stamps", "spectra")


@dataclass(frozen=True)
class ShardData:
    """All of the objects of a hash range.

    Attributes
    ----------
    objects : list of str
        objectIds that have an alert or a photometry point, sorted by (hash64, objectId).
    alerts : Table
        Schema ``alerts``, one row per candid, the winning packets.
    photometry : Table
        Schema ``photometry``, stitched over all packets; every forced revision, with ``known_jd``.
    spectra : Table
        Schema ``spectra``; of names that are no object, too.
    stamps : Table or None
        Schema ``stamps``, where asked for.
    """

    objects: list[str]
    alerts: pa.Table
    photometry: pa.Table
    spectra: pa.Table
    stamps: pa.Table | None = None


class Archive:
    """A snapshot of an archive, open for reading; it keeps no file open and can be pickled.

    Examples
    --------
    >>> archive = Archive.open("s3://bucket/archive")         # doctest: +SKIP
    >>> shard = archive.read_shard(0, 1 << 54)                # doctest: +SKIP
    """

    def __init__(self, store: Store, snapshot: Snapshot, hashes: np.ndarray | None = None) -> None:
        self.store = store
        self.snapshot = snapshot
        self._hashes = hashes
        self._kept_keys: tuple[tuple[int, int], StampKeys] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Archive, (self.store, self.snapshot, self._hashes))

    def only(self, hashes: np.ndarray) -> Archive:
        """The archive as if it held the objects of these hash64 alone (uint64, ascending).

        Only row groups that can hold one of them are read.
        """
        return Archive(self.store, self.snapshot, hashes)

    @classmethod
    def open(
        cls, url: str, storage_options: Mapping[str, Any] | None = None, snapshot: int | None = None
    ) -> Archive:
        """Open an archive at its latest snapshot or at a given one.

        Raises
        ------
        ArchiveError
            If it is not an archive or has no such snapshot.
        """
        store = open_archive(url, storage_options)
        return cls(store, load_snapshot(store, snapshot))

    @property
    def bytes_read(self) -> int:
        """Bytes of the parts' tables, as stored, that were read since this archive was opened."""
        return sum(part.bytes_read for part in self.parts)

    @cached_property
    def parts(self) -> list[PartReader]:
        """The parts of the snapshot."""
        kept = KeptGroups()
        return [PartReader(self.store, record, self._hashes, kept) for record in self.snapshot.parts]

    def holds(self, name: str) -> bool:
        """Whether any part has rows of that table."""
        return any(record.rows(name) for record in self.snapshot.parts)

    def object_names(self, lo: int, hi: int) -> list[str]:
        """objectIds with hash64 in [lo, hi) that have an alert or a point, sorted by (hash64, objectId)."""
        tables = []
        for name in ("alerts", "photometry"):
            empty = load_table(name).empty().select(["objectId"])
            tables.append(pa.concat_tables([empty, *self._pieces(name, lo, hi, ["objectId"])]))
        return _objects(*tables)

    def read_shard(self, lo: int, hi: int, *, stamps: bool = False, without: Iterable[int] = ()) -> ShardData:
        """Everything of the objects with hash64 in [lo, hi).

        Parameters
        ----------
        lo, hi : int
            Hash range, half open; ``hi`` may be 2**64.
        stamps : bool
            Whether to read the stamps, too (about 48 kB an alert).
        without : iterable of int
            hash64 of objects to leave out; where row groups hold nothing else, these are not read.
        """
        if gaps := sorted({hash_ for hash_ in without if lo <= hash_ < hi}):
            edges = zip([lo, *(gap + 1 for gap in gaps)], [*gaps, hi], strict=True)
            return _joined([self.read_shard(a, b, stamps=stamps) for a, b in edges])
        lost = self.duplicates(lo, hi)
        alerts = self.read_alerts(lo, hi, lost=lost)
        photometry = self.read_photometry(lo, hi)
        return ShardData(
            objects=_objects(alerts, photometry),
            alerts=alerts,
            photometry=photometry,
            spectra=self.read_spectra(lo, hi),
            stamps=self.read_packets("stamps", lo, hi, None, lost) if stamps else None,
        )

    def duplicates(self, lo: int, hi: int) -> np.ndarray:
        """(candid, digest) of the packets that lost to another, in a hash range (structured array)."""
        return pairs_of(self.read_duplicates(lo, hi, ["candid", "packet_digest"]))

    def read_duplicates(self, lo: int, hi: int, columns: Iterable[str] | None = None) -> pa.Table:
        """The record of the packets of a hash range that lost to another, once per content."""
        schema = load_table("duplicates").arrow
        wanted = list(columns) if columns is not None else schema.names
        pieces = self._pieces("duplicates", lo, hi, wanted)
        return pa.concat_tables([schema.empty_table().select(wanted), *pieces])

    def read_alerts(
        self, lo: int, hi: int, columns: Iterable[str] | None = None, *, lost: np.ndarray | None = None
    ) -> pa.Table:
        """The alerts of a hash range, one row per candid, in the archive's order."""
        return self.read_packets("alerts", lo, hi, columns, self.duplicates(lo, hi) if lost is None else lost)

    def read_packets(
        self, name: str, lo: int, hi: int, columns: Iterable[str] | None, lost: np.ndarray
    ) -> pa.Table:
        """The ``alerts`` or ``stamps`` of the winning packets; ``lost`` is what :meth:`duplicates` gives."""
        schema = load_table(name).arrow
        wanted = list(columns) if columns is not None else schema.names
        keys = ["hash64", "objectId", "jd", "candid", "packet_digest"]
        needed = [column for column in schema.names if column in wanted or column in keys]
        empty = part_schema(name).empty_table().select(needed)
        rows = self._resolve(name, self._pieces(name, lo, hi, needed), lost, empty).select(wanted)
        with self._damage_told():
            return unpack(rows) if name == "stamps" else rows

    def read_photometry(self, lo: int, hi: int) -> pa.Table:
        """The stitched photometry of a hash range."""
        pieces = self._pieces("photometry", lo, hi)
        if len(pieces) == 1:
            return pieces[0]
        return stitch(pa.concat_tables([load_table("photometry").empty(), *pieces]))

    def read_points(self, lo: int, hi: int, columns: Iterable[str]) -> pa.Table:
        """Some columns of the photometry as the parts hold it, not stitched over them."""
        wanted = list(columns)
        empty = load_table("photometry").empty().select(wanted)
        return pa.concat_tables([empty, *self._pieces("photometry", lo, hi, wanted)])

    def read_spectra(self, lo: int, hi: int, columns: Iterable[str] | None = None) -> pa.Table:
        """The spectra of a hash range, each once per object, in the archive's order."""
        schema = load_table("spectra").arrow
        wanted = list(columns) if columns is not None else schema.names
        needed = [name for name in schema.names if name in wanted or name in SORT_KEYS["spectra"]]
        pieces = self._pieces("spectra", lo, hi, needed)
        table = pa.concat_tables([schema.empty_table().select(needed), *pieces])
        return distinct_rows(sort_rows("spectra", table), "spec_id").select(wanted)

    def read_stamps(self, lo: int, hi: int, candids: Iterable[int]) -> pa.Table:
        """The stamps of given alerts of a hash range.

        Only the row groups that hold one of the candids are read. What the range holds is kept for the next
        call, if it is for the same range and that is not too much.

        Returns
        -------
        Table
            Schema ``stamps``, in the archive's order; alerts without stamps have no row.
        """
        wanted = np.unique(np.fromiter(candids, np.int64))
        rows = self._stamp_keys(lo, hi).of(wanted)
        with self._damage_told():
            pixels = read_pixels(self.parts, rows)
            if pixels is None:
                pixels = unpack(blocks_of(self.parts, rows))
        schema = load_table("stamps").arrow
        columns = [(pixels if name in STAMPS else rows.keys).column(name) for name in schema.names]
        return pa.table(columns, schema=schema)

    def _stamp_keys(self, lo: int, hi: int) -> StampKeys:
        kept = self._kept_keys
        if kept is not None and kept[0] == (lo, hi):
            return kept[1]
        pieces = [keys_of(number, part, lo, hi) for number, part in enumerate(self.parts)]
        found = [table for table in pieces if table is not None]
        keys = StampKeys(self._resolve("stamps", found, self.duplicates(lo, hi), no_keys()))
        self._kept_keys = ((lo, hi), keys) if len(keys) <= _KEPT_ROWS else None
        return keys

    def read_object(self, object_id: str) -> ShardData:
        """Everything of one object, stamps included."""
        position = hash64_one(object_id)
        shard = self.read_shard(position, position + 1, stamps=True)
        assert shard.stamps is not None
        mine = [t.filter(pc.equal(t.column("objectId"), object_id)) for t in (shard.alerts, shard.photometry)]
        rest = [t.filter(pc.equal(t.column("objectId"), object_id)) for t in (shard.spectra, shard.stamps)]
        return ShardData([name for name in shard.objects if name == object_id], *mine, *rest)

    def quarantine(self) -> pa.Table:
        """All rows that were set aside, with the reason."""
        schema = load_table("quarantine")
        tables = []
        for part in self.parts:
            index = part.index("quarantine")
            if index is not None:
                tables.append(part.read_groups("quarantine", list(range(len(index.rows)))))
        return sort_rows("quarantine", pa.concat_tables([schema.empty(), *tables]))

    def object_counts(self) -> pa.Table:
        """Rows per hash bucket, from the sidecar indices alone, for planning.

        Returns
        -------
        Table
            ``hash_lo`` (uint64, first hash of the bucket; buckets are 2**52 wide), ``alerts``,
            ``photometry``, ``stamps``, ``spectra`` (int64 rows; what several parts hold is counted several
            times) and ``bytes`` (int64, compressed). Buckets without rows are left out.
        """
        totals = {name: np.zeros(1 << HISTOGRAM_BITS, np.int64) for name in _COUNTED}
        size = np.zeros(1 << HISTOGRAM_BITS, np.float64)
        for part in self.parts:
            histogram = part.histogram
            for name in _COUNTED:
                if name in histogram:
                    totals[name][histogram["bucket"]] += histogram[name]
                    table = part.record.tables[name]
                    size[histogram["bucket"]] += histogram[name] * (table.bytes / table.rows)
        used = np.flatnonzero(np.sum(list(totals.values()), axis=0))
        starts = used.astype(np.uint64) << np.uint64(64 - HISTOGRAM_BITS)
        columns = {name: pa.array(counts[used]) for name, counts in totals.items()}
        return pa.table(
            {"hash_lo": pa.array(starts), **columns, "bytes": pa.array(size[used].astype(np.int64))}
        )

    def ranges(self, target_bytes: int, tables: Iterable[str] = _COUNTED) -> list[tuple[int, int]]:
        """Cut all hashes into ranges that hold about ``target_bytes`` (uncompressed) of these tables."""
        stretches: list[tuple[int, int, int]] = []
        for part in self.parts:
            for name in tables:
                index = part.index(name)
                if index is not None:
                    groups = (index.lo.tolist(), index.hi.tolist(), index.bytes.tolist())
                    stretches.extend(zip(*groups, strict=True))
        return cut_ranges(stretches, target_bytes)

    def _pieces(self, name: str, lo: int, hi: int, columns: Iterable[str] | None = None) -> list[pa.Table]:
        wanted = list(columns) if columns is not None else None
        tables = (part.read(name, lo, hi, wanted) for part in self.parts if part.overlaps(name, lo, hi))
        return [table for table in tables if table.num_rows]

    @contextlib.contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ArchiveError(
                f"The archive '{self.store.url}' holds a damaged stamp: {error}.",
                hint=f"Check with: applecider-batch archive verify --deep {self.store.url}",
            ) from error

    def _resolve(self, name: str, pieces: list[pa.Table], lost: np.ndarray, empty: pa.Table) -> pa.Table:
        """Leave out superseded packets and bring the pieces of several parts into order."""
        pieces.sort(key=lambda piece: int(piece.column("hash64")[0].as_py()))
        table = pa.concat_tables([empty, *pieces])
        if len(lost):
            table = chosen(table, ~np.isin(pairs_of(table), lost))
        ends = [(piece.column("hash64")[0].as_py(), piece.column("hash64")[-1].as_py()) for piece in pieces]
        disjoint = all(one[1] < other[0] for one, other in pairwise(ends))
        return table if disjoint else sort_rows(name, table)


def _joined(pieces: list[ShardData]) -> ShardData:
    """Neighbouring hash ranges, in order, as one."""

    def of(name: str) -> pa.Table:
        return pa.concat_tables([getattr(piece, name) for piece in pieces])

    stamps = None if pieces[0].stamps is None else of("stamps")
    objects = [name for piece in pieces for name in piece.objects]
    return ShardData(objects, of("alerts"), of("photometry"), of("spectra"), stamps)


def _objects(alerts: pa.Table, photometry: pa.Table) -> list[str]:
    names = pc.unique(
        pa.chunked_array([*alerts.column("objectId").chunks, *photometry.column("objectId").chunks])
    )
    return sorted(names.to_pylist(), key=lambda name: (hash64_one(name), name))
