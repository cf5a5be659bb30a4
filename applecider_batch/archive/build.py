"""From rows in hash ranges to parts: the last step of ingest and of compaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.parts import SORT_KEYS, PartWriter, part_schema, sort_rows
from applecider_batch.archive.resolve import Resolution, pairs_of
from applecider_batch.archive.snapshot import PartRecord
from applecider_batch.archive.spill import Sorted
from applecider_batch.archive.stitch import stitch
from applecider_batch.archive.taken_rows import TakenRows
from applecider_batch.digest import json_digest
from applecider_batch.schema import load_table
from applecider_batch.storage import Store


def stretches_of_parts(
    ranges: Sequence[tuple[int, int]], range_bytes: int, part_bytes: int
) -> list[tuple[int, list[tuple[int, int]]]]:
    """The hash ranges of each part, with the part's number.

    Ranges hold about ``range_bytes`` of rows each, some a little more. As rows take no more room in a file
    than in memory, and an eighth is left free, no file of a part grows beyond ``part_bytes``; and since
    nothing of this depends on how well they compress, every part can be written by itself.
    """
    count = max(1, (part_bytes - part_bytes // 8) // range_bytes)
    return list(enumerate(list(ranges[at : at + count]) for at in range(0, len(ranges), count)))


def write_part(
    store: Store, run: str, number: int, ranges: Iterable[Mapping[str, pa.Table | TakenRows]]
) -> PartRecord | None:
    """Write finished tables, range by range in ascending hash, into one part; None if they have no row.

    Parameters
    ----------
    run : str
        Digest of everything that the content follows from; the part's id is made from it and its number.
    ranges : iterable of mapping
        Sorted tables of the next hash range by name.
    """
    with PartWriter(store, json_digest([run, number]), run) as writer:
        for tables in ranges:
            for name, table in tables.items():
                writer.append(name, table)
        return None if writer.is_empty else writer.finish()


COUNTED = ("alerts", "duplicates", "photometry", "spectra", "quarantine")


@dataclass
class Written:
    """What went into the parts of an ingest, counted where it was written."""

    alerts: int = 0
    duplicates: int = 0
    photometry: int = 0
    spectra: int = 0
    quarantine: int = 0
    stored_by_source: Counter[str] = field(default_factory=Counter)

    def add(self, other: Written) -> None:
        """Count what went into another part, too."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.stored_by_source.update(other.stored_by_source)


class IngestAssembler:
    """Turns the spilled rows of an ingest into the final tables of a hash range."""

    def __init__(self, spill: Sorted, resolution: Resolution | None, spectra: pa.Table | None = None) -> None:
        self._spill = spill
        self._resolution = resolution
        self._spectra = spectra if spectra is not None else load_table("spectra").empty()
        self.written = Written()

    def range(self, lo: int, hi: int) -> dict[str, pa.Table | TakenRows]:
        """The sorted tables of hash64 in [lo, hi)."""
        out: dict[str, pa.Table | TakenRows] = {}
        fresh: np.ndarray | None = None
        if self._resolution is not None:
            out["alerts"], out["duplicates"], fresh = self._alerts(self._resolution, lo, hi)
            out["stamps"] = self._stamps(self._resolution, lo, hi)
        if "photometry" in self._spill.names:
            out["photometry"] = self._photometry(lo, hi, fresh)
        if "spectra" in self._spill.names:
            out["spectra"] = distinct_rows(
                sort_rows("spectra", self._spill.read("spectra", lo, hi)), "spec_id"
            )
        elif self._spectra.num_rows:
            mine = self._spectra.filter(_inside(self._spectra, lo, hi))
            out["spectra"] = distinct_rows(sort_rows("spectra", mine), "spec_id")
        if "quarantine" in self._spill.names:
            rows = self._spill.read("quarantine", lo, hi).drop_columns(["hash64"])
            out["quarantine"] = sort_rows("quarantine", load_table("quarantine").conform(rows))
        counts: dict[str, Any] = {name: out[name].num_rows for name in COUNTED if name in out}
        self.written.add(Written(**counts))
        return out

    def _alerts(self, resolution: Resolution, lo: int, hi: int) -> tuple[pa.Table, pa.Table, np.ndarray]:
        schema = load_table("duplicates").arrow
        rows = (
            self._spill.read("alerts", lo, hi)
            if "alerts" in self._spill.names
            else load_table("alerts").empty()
        )
        store, lost, candid_new = resolution.decide(pairs_of(rows))
        kept = distinct_packets(
            rows.append_column("_new", pa.array(candid_new)).filter(pa.array(store)), "alerts"
        )
        first = kept.filter(kept.column("_new")).column("source_id").to_pylist()
        self.written.stored_by_source.update(first)
        replaced = resolution.superseded
        losers = pa.concat_tables(
            [
                rows.filter(pa.array(lost)).select(schema.names).cast(schema),
                replaced.filter(_inside(replaced, lo, hi)),
            ]
        )
        fresh = np.unique(rows.column("hash64").to_numpy()[store | lost])
        return kept.drop_columns(["_new"]), distinct_packets(losers, "duplicates"), fresh

    def _stamps(self, resolution: Resolution, lo: int, hi: int) -> pa.Table | TakenRows:
        if "stamps" not in self._spill.names:
            return part_schema("stamps").empty_table()
        table, rows = self._spill.find("stamps", lo, hi)
        keys = table.select([*SORT_KEYS["stamps"]]).take(pa.array(rows))
        keys = keys.append_column("_row", pa.array(rows))
        store, _, _ = resolution.decide(pairs_of(keys))
        kept = distinct_packets(keys.filter(pa.array(store)), "stamps")
        return TakenRows(table, kept.column("_row").to_numpy())

    def _photometry(self, lo: int, hi: int, fresh: np.ndarray | None) -> pa.Table:
        rows = self._spill.read("photometry", lo, hi)
        if fresh is not None:
            # Points of objects without any packet that is new are all in the archive already.
            rows = rows.filter(pa.array(np.isin(rows.column("hash64").to_numpy(), fresh)))
        return stitch(rows)


def _inside(table: pa.Table, lo: int, hi: int) -> pa.Array:
    """Mask of the rows with hash64 in [lo, hi)."""
    hashes = table.column("hash64").to_numpy()
    return pa.array((hashes >= np.uint64(lo)) & (hashes <= np.uint64(hi - 1)))


def distinct_packets(table: pa.Table, name: str) -> pa.Table:
    """Sorted rows with each (candid, packet_digest) once; of equal packets the smallest source id is kept."""
    if table.num_rows < 2:
        return table
    table = sort_rows(name, table)
    pairs = pairs_of(table)
    first = np.concatenate([[True], pairs[1:] != pairs[:-1]])
    return table if first.all() else table.filter(pa.array(first))


def distinct_rows(table: pa.Table, column: str) -> pa.Table:
    """Rows of a table sorted by (…, objectId, …, column) with each (objectId, column) once."""
    seen: set[tuple[str, str]] = set()
    mask = []
    for key in zip(table.column("objectId").to_pylist(), table.column(column).to_pylist(), strict=True):
        mask.append(key not in seen)
        seen.add(key)
    return table.filter(pa.array(mask, pa.bool_()))
