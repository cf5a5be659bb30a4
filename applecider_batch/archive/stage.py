"""What the ingest of packets and of tables share: a spill on its way into one snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from applecider_batch.archive.build import IngestAssembler, Written, stretches_of_parts, write_part
from applecider_batch.archive.changes import with_change
from applecider_batch.archive.parts import LAYOUT
from applecider_batch.archive.resolve import Resolution
from applecider_batch.archive.snapshot import (
    ArchiveError,
    PartRecord,
    Snapshot,
    SnapshotMoved,
    SourceRecord,
    commit_snapshot,
    load_snapshot,
)
from applecider_batch.archive.spill import Sorted, Spill, cut_ranges
from applecider_batch.archive.stamp_blocks import pack
from applecider_batch.digest import MultisetDigest, hash64, json_digest, table_digest
from applecider_batch.schema import load_table
from applecider_batch.spread import Spread, Update
from applecider_batch.storage import Store

_ATTEMPTS = 10


@dataclass(frozen=True)
class Settings:
    """How an ingest works: where to, with how much memory, in what sizes, in which processes."""

    store: Store
    memory_bytes: int
    part_bytes: int
    spread: Spread


def range_bytes(memory_bytes: int, part_bytes: int) -> int:
    """Rows held at a time: a quarter of the memory (they are copied while sorted), a fraction of a part."""
    return max(min(memory_bytes // 4, part_bytes // 16), 1 << 20)


def spill_rows(spill: Spill, name: str, table: pa.Table) -> None:
    """Spill rows, brought into their schema and given their hash (that of their digest for quarantine)."""
    if not table.num_rows:
        return
    if name == "quarantine":
        rows = load_table(name).conform(table)
        spill.add(name, rows.append_column("hash64", pa.array(hash64(rows.column("digest")))))
    else:
        spill.add(name, conform_with_hash(name, table))


def conform_with_hash(name: str, table: pa.Table) -> pa.Table:
    """A table in the schema that parts have; ``hash64`` is filled in where it is absent."""
    if "hash64" not in table.column_names:
        table = table.append_column("hash64", pa.array(hash64(table.column("objectId"))))
    return pack(table) if name == "stamps" else load_table(name).conform(table)


@dataclass(frozen=True)
class _Sources:
    """What the parts of an ingest are made from."""

    store: Store
    run: str
    rows: Sorted
    resolution: Resolution | None
    spectra: pa.Table | None


def _write_part(
    sources: _Sources, task: tuple[int, list[tuple[int, int]]], update: Update
) -> tuple[PartRecord | None, Written]:
    """One part, of some hash ranges."""
    number, ranges = task
    assembler = IngestAssembler(sources.rows, sources.resolution, sources.spectra)
    tables = (assembler.range(lo, hi) for lo, hi in ranges)
    return write_part(sources.store, sources.run, number, tables), assembler.written


class PartBuilder:
    """Writes the parts of sorted rows, and only again when what they follow from has changed."""

    def __init__(self, settings: Settings, rows: Sorted, sources: list[str]) -> None:
        self._settings = settings
        self._rows = rows
        self._sources = sorted(sources)
        self._run = ""
        self.parts: tuple[PartRecord, ...] = ()
        self.written = Written()

    def build(self, resolution: Resolution | None, salt: str, spectra: pa.Table | None = None) -> None:
        """Make ``parts`` and ``written`` those of this resolution, which ``salt`` identifies.

        ``spectra`` are rows that go with it; they are few and not spilled.
        """
        settings = self._settings
        target = range_bytes(settings.memory_bytes, settings.part_bytes)
        ranges = cut_ranges(self._rows.stretches(), target)
        cuts = [f"{lo:x}" for lo, _ in ranges]
        extra = table_digest(spectra, ["objectId", "spec_id"]) if spectra is not None and len(spectra) else ""
        run = json_digest(["ingest", LAYOUT, self._sources, salt, extra, cuts, settings.part_bytes])
        if run == self._run:
            return
        sources = _Sources(settings.store, run, self._rows, resolution, spectra)
        tasks = stretches_of_parts(ranges, target, settings.part_bytes)
        parts, written = [], Written()
        for part, of_part in settings.spread.map(_write_part, sources, tasks):
            parts.append(part)
            written.add(of_part)
        self.parts = tuple(part for part in parts if part is not None)
        self.written = written
        self._run = run


def commit(store: Store, names: dict[str, str], make: Callable[[Snapshot], Snapshot]) -> Snapshot:
    """Commit what ``make`` makes of the latest snapshot; again on a new one if another process was faster.

    Parameters
    ----------
    names : dict
        Names of the sources that are being ingested, by content digest.
    make : callable
        Writes the parts and gives the successor of the snapshot it is given.

    Raises
    ------
    ArchiveError
        If another process has ingested one of the sources meanwhile.
    SnapshotMoved
        If others keep being faster.
    """
    for _ in range(_ATTEMPTS):
        parent = load_snapshot(store)
        twice = sorted(names[source] for source in parent.source_ids & names.keys())
        if twice:
            raise ArchiveError(
                f"Another process ingested {', '.join(twice[:3])} into '{store.url}' meanwhile.",
                hint="Nothing is lost; run the same command again for the other sources.",
            )
        new = make(parent)
        present = {part.part_id for part in parent.parts}
        for part in new.parts:
            if part.part_id not in present and not store.exists(part.index_path):
                raise SnapshotMoved(
                    f"The part '{part.part_id}' vanished before it was committed; was 'archive gc' running?",
                    hint="Nothing is lost; run the same command again.",
                )
        try:
            return commit_snapshot(
                store, parent, with_change(store, parent, new) if new.kind == "ingest" else new
            )
        except SnapshotMoved:
            continue
    raise SnapshotMoved(
        f"Other processes kept changing the archive '{store.url}'.", hint="Run the same command again."
    )


def successor(
    parent: Snapshot,
    parts: tuple[PartRecord, ...],
    records: list[SourceRecord],
    *,
    packets_digest: MultisetDigest | None = None,
    jd_max_alerts: float | None = None,
    jd_max_tables: float | None = None,
) -> Snapshot:
    """The snapshot after an ingest: the parent's parts, sources and counts and the new ones."""
    counts = Counter(parent.counts)
    for record in records:
        counts.update(record.counts)
    return Snapshot(
        kind="ingest",
        parts=(*parent.parts, *parts),
        sources=(*parent.sources, *records),
        counts=dict(sorted(counts.items())),
        packets_digest=packets_digest or parent.packets_digest,
        jd_max_alerts=later(parent.jd_max_alerts, jd_max_alerts),
        jd_max_tables=later(parent.jd_max_tables, jd_max_tables),
    )


def later(one: float | None, other: float | None) -> float | None:
    """The later of two moments, where there are any."""
    return max((jd for jd in (one, other) if jd is not None), default=None)
