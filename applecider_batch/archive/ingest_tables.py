"""Light-curve tables and spectra on their way into one snapshot."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.compute as pc

from applecider_batch.archive.batches import TableBatch
from applecider_batch.archive.matching import match_spectra, unmatched_points
from applecider_batch.archive.snapshot import Snapshot, SourceRecord
from applecider_batch.archive.spill import Spill
from applecider_batch.archive.stage import (
    PartBuilder,
    Settings,
    commit,
    conform_with_hash,
    spill_rows,
    successor,
)
from applecider_batch.digest import json_digest, multiset_of
from applecider_batch.spread import Here

TABLE_COUNTS = tuple(
    f"{kind}_{what}"
    for kind in ("photometry", "spectra")
    for what in ("in", "stored", "duplicates", "unmatched", "rejected")
)
# What the archive adds to a row is no part of what was delivered.
_ADDED = {"photometry": ("hash64",), "spectra": ("hash64", "objectId", "matched_by", "source_id")}


def ingest_table(settings: Settings, batch: TableBatch) -> SourceRecord:
    """Match the rows of a file with the archive's objects and commit them.

    Rows that match no object are stored under their own name and counted as unmatched.
    """
    table = conform_with_hash(batch.kind, batch.table)
    delivered = sorted(set(table.column_names) - set(_ADDED[batch.kind]))
    rows_digest = multiset_of(table, delivered).hexdigest()
    records: list[SourceRecord] = []

    def make(parent: Snapshot) -> Snapshot:
        if batch.kind == "spectra":
            rows = match_spectra(settings.store, parent, table)
            unmatched = rows.column("matched_by").null_count
        else:
            rows, unmatched = table, unmatched_points(settings.store, parent, table)
        with Spill(settings.memory_bytes) as spill:
            spill_rows(spill, batch.kind, rows)
            rejected = batch.rejected.num_rows if batch.rejected is not None else 0
            if batch.rejected is not None:
                spill_rows(spill, "quarantine", batch.rejected)
            spill.settle()
            # One file is one process's work; only packets are many.
            builder = PartBuilder(replace(settings, spread=Here()), spill, [batch.source_id])
            builder.build(None, json_digest([batch.kind, multiset_of(rows, ["objectId"]).hexdigest()]))
        stored = getattr(builder.written, batch.kind)
        values = (rows.num_rows + rejected, stored, rows.num_rows - stored, unmatched, rejected)
        names = (name for name in TABLE_COUNTS if name.startswith(batch.kind))
        counts = dict(zip(names, values, strict=True))
        records[:] = [SourceRecord(batch.source_id, batch.name, batch.kind, counts, rows_digest)]
        jd_max = pc.max(rows.column("jd")).as_py() if batch.kind == "photometry" else None
        return successor(parent, builder.parts, records, jd_max_tables=jd_max)

    commit(settings.store, {batch.source_id: batch.name}, make)
    return records[0]
