"""Ingest: sources become sorted, immutable parts and a new snapshot.

Sources are read once, in batches, a few by each task; their rows are sorted out of core (``spill.py``), the
duplicate rule is applied (``resolve.py``), the parts are written, a hash range each (``build.py``), and one
create-only snapshot makes them visible. Nothing in place is changed, and a source that is in the snapshot is
not read again.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from applecider_batch.archive.batches import TableBatch
from applecider_batch.archive.ingest_packets import (
    PACKET_COUNTS,
    PacketSource,
    PacketStage,
    Reading,
    Taken,
    identify,
    read_sources,
)
from applecider_batch.archive.ingest_tables import TABLE_COUNTS, ingest_table
from applecider_batch.archive.parts import PART_BYTES
from applecider_batch.archive.snapshot import create_archive, load_snapshot
from applecider_batch.archive.spill import scratch_folder
from applecider_batch.archive.stage import Settings
from applecider_batch.errors import InternalError
from applecider_batch.spread import Here, ProgressLike, Spread

MEMORY_BYTES = 256 << 20
COMMIT_BYTES = 32 << 30
GROUP_BYTES = 64 << 20


def ingest(
    sources: Sequence[str | PacketSource],
    archive_url: str,
    *,
    spectra: Sequence[str | TableBatch] = (),
    photometry: Sequence[str | TableBatch] = (),
    storage_options: Mapping[str, Any] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    commit_bytes: int = COMMIT_BYTES,
    part_bytes: int = PART_BYTES,
    progress: ProgressLike | None = None,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Take sources into an archive, which is made if it is not there.

    Parameters
    ----------
    sources : sequence of str
        Nightly tarballs, Avro files, folders of them, Fink-layout Parquet: anything ``open_sources`` takes.
    archive_url : str
        Folder of the archive, any fsspec URL.
    spectra, photometry : sequence of str
        Files of spectra and light-curve tables, taken in after the packets.
    storage_options : mapping, optional
        For fsspec.
    memory_bytes : int
        Rows buffered before they are sorted and spilled to the folder for temporary files.
    commit_bytes : int
        After this many bytes of rows a snapshot is committed before the next source is read, which bounds the
        temporary space and what a kill can cost.
    part_bytes : int
        Size at which a part is closed.
    progress : optional
        ``update(packets, source=…)`` is called as packets are read.
    spread : Spread, optional
        Where packets are read and parts are written; by default in this process. Tables are always.

    Returns
    -------
    dict
        ``packets_in`` = ``stored`` + ``duplicates`` + ``quarantined``, the counts of photometry and spectra,
        ``rejected`` (rows and files of tables that were set aside), ``spectra_rematched`` (spectra that came
        before the alerts of their object),
        ``sources`` read, ``already`` (sources that were in the archive), ``snapshot``, ``logical_digest``,
        ``jd_max`` (end of the archive), ``jd_max_tables`` (latest point of a light-curve table) and
        ``changed`` (whether a snapshot was written).

    Raises
    ------
    ArchiveError
        If the place is not an archive, or another process ingested the same sources meanwhile.
    StorageError
        If the storage refuses; the archive is as it was, up to the last snapshot committed.
    """
    spread = spread or Here()
    opened = [each for source in sources for each in _open_sources(source, storage_options)]
    store = create_archive(archive_url, storage_options)
    settings = Settings(store, memory_bytes, part_bytes, spread)
    present = set(load_snapshot(store).source_ids)
    read: list[dict[str, Any]] = []
    already: list[str] = []
    rematched = 0

    def is_new(source: PacketSource | TableBatch) -> bool:
        if source.source_id in present:
            already.append(source.name)
            return False
        present.add(source.source_id)
        return True

    def take_table(table: TableBatch) -> None:
        if is_new(table):
            read.append(ingest_table(settings, table).to_json())

    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(store)) if spread.elsewhere else None
        new = filter(is_new, spread.map(identify, None, opened))
        reading: Generator[Taken, None, None] | None = None
        more = True
        while more:
            with PacketStage(settings) as stage:
                if reading is None:
                    shared = Reading(memory_bytes, stage.spectra, scratch)
                    reading = spread.map(read_sources, shared, _groups(new), progress)
                    stack.enter_context(contextlib.closing(reading))
                more = False
                for taken in reading:
                    stage.take(taken)
                    if more := stage.bytes >= commit_bytes:
                        break
                read.extend(record.to_json() for record in stage.commit())
                rematched += stage.rematched
    for item in photometry:
        take_table(_open_table("photometry", item, storage_options))
    for item in spectra:
        take_table(_open_table("spectra", item, storage_options))
    totals = Counter(dict.fromkeys((*PACKET_COUNTS, *TABLE_COUNTS), 0))
    for record in read:
        totals.update(record["counts"])
    if totals["packets_in"] != totals["stored"] + totals["duplicates"] + totals["quarantined"]:
        raise InternalError(f"The packets do not add up: {dict(totals)}.")
    after = load_snapshot(store)
    return {
        **totals,
        "rejected": totals["photometry_rejected"] + totals["spectra_rejected"],
        "spectra_rematched": rematched,
        "sources": read,
        "already": already,
        "changed": bool(read),
        "snapshot": after.id,
        "logical_digest": after.logical_digest,
        "jd_max": after.jd_max,
        "jd_max_tables": after.jd_max_tables,
    }


def _groups(sources: Iterable[PacketSource]) -> Iterator[list[PacketSource]]:
    """Sources for one task: a large one, or several small ones."""
    group: list[PacketSource] = []
    size = 0
    for source in sources:
        group.append(source)
        size += source.n_bytes
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _open_sources(
    source: str | PacketSource, storage_options: Mapping[str, Any] | None
) -> Sequence[PacketSource]:
    if not isinstance(source, str):
        return [source]
    from applecider_batch.archive.sources import open_sources

    return open_sources(source, storage_options)


def _open_table(
    kind: Literal["photometry", "spectra"], item: str | TableBatch, storage_options: Mapping[str, Any] | None
) -> TableBatch:
    if isinstance(item, TableBatch):
        return item
    from applecider_batch.archive.tables import open_table

    return open_table(kind, item, storage_options)
