"""Compaction: many small parts become few large ones, in a new snapshot; nothing in place is changed.

Runs (the parts of one ingest or compaction) are merged by tiers of size, as in a log-structured store: as
soon as four runs are of about one size they become one, so an alert is rewritten a few times at most.
Superseded packets leave their alerts and stamps rows here; their row in ``duplicates`` stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.build import distinct_packets, distinct_rows, stretches_of_parts, write_part
from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.parts import LAYOUT, PART_BYTES, part_schema, sort_rows
from applecider_batch.archive.read import Archive
from applecider_batch.archive.resolve import pairs_of
from applecider_batch.archive.snapshot import (
    ArchiveError,
    PartRecord,
    Snapshot,
    SnapshotMoved,
    load_snapshot,
    open_archive,
)
from applecider_batch.archive.stage import commit, range_bytes
from applecider_batch.archive.stamp_blocks import damaged_rows
from applecider_batch.archive.stitch import stitch
from applecider_batch.digest import json_digest
from applecider_batch.errors import InternalError
from applecider_batch.spread import Here, ProgressLike, Spread, Update
from applecider_batch.storage import Store

MEMORY_BYTES = 256 << 20
_SMALLEST_TIER = 64 << 20
_TIER_FACTOR = 4
_MOST_RUNS = 16  # merged at a time: each costs a row group of memory


def compact(
    url: str,
    *,
    full: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    part_bytes: int = PART_BYTES,
    progress: ProgressLike | None = None,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Merge small parts into larger ones until no tier holds four runs; with ``full`` until one run is left.

    Parameters
    ----------
    url : str
        The archive.
    full : bool
        Merge everything, whatever the sizes.
    memory_bytes : int
        About four hash ranges of rows are held in it.
    part_bytes : int
        Size at which a part is closed.
    spread : Spread, optional
        Where the parts are written; by default in this process.

    Returns
    -------
    dict
        ``snapshot``, ``logical_digest`` (unchanged), ``parts_before``, ``parts_after``, ``merged_runs``,
        ``bytes_written``, ``changed``.

    Raises
    ------
    ArchiveError
        If it is not an archive, or another process compacted the same parts meanwhile.
    """
    store = open_archive(url, storage_options)
    before = load_snapshot(store)
    snapshot, merged, written = before, 0, 0
    while chosen := choose_runs(snapshot, full=full):
        parts = _merge(store, snapshot, chosen, memory_bytes, part_bytes, progress, spread or Here())
        written += sum(part.bytes for part in parts)
        merged += len(chosen)
        snapshot = load_snapshot(store)
    return {
        "snapshot": snapshot.id,
        "logical_digest": snapshot.logical_digest,
        "parts_before": len(before.parts),
        "parts_after": len(snapshot.parts),
        "merged_runs": merged,
        "bytes_written": written,
        "changed": snapshot.id != before.id,
    }


def choose_runs(snapshot: Snapshot, *, full: bool = False) -> list[str]:
    """The runs to merge next, none when there is nothing to do."""
    sizes: dict[str, int] = {}
    for part in snapshot.parts:
        sizes[part.run] = sizes.get(part.run, 0) + part.bytes
    ordered = sorted(sizes, key=lambda run: (sizes[run], run))
    if full:
        return ordered[:_MOST_RUNS] if len(ordered) > 1 else []
    tiers = {run: _tier(size) for run, size in sizes.items()}
    for tier in sorted(set(tiers.values())):
        if sum(other == tier for other in tiers.values()) >= _TIER_FACTOR:
            return [run for run in ordered if tiers[run] <= tier][:_MOST_RUNS]
    return []


def _tier(size: int) -> int:
    return max(0, math.ceil(math.log(max(size, 1) / _SMALLEST_TIER, _TIER_FACTOR)))


def _merge(
    store: Store,
    snapshot: Snapshot,
    runs: list[str],
    memory_bytes: int,
    part_bytes: int,
    progress: ProgressLike | None,
    spread: Spread,
) -> tuple[PartRecord, ...]:
    """Merge some runs and commit; a concurrent ingest is no obstacle, a concurrent compaction is."""
    chosen = tuple(part for part in snapshot.parts if part.run in runs)
    mine = Archive(store, replace(snapshot, parts=chosen))
    target = range_bytes(memory_bytes, part_bytes)
    ranges = mine.ranges(target)
    run = json_digest(
        ["compact", LAYOUT, sorted(p.part_id for p in chosen), [f"{lo:x}" for lo, _ in ranges], part_bytes]
    )
    merge = _Merge(run, Archive(store, snapshot), mine)
    tasks = stretches_of_parts(ranges, target, part_bytes)
    done = list(spread.map(_write_part, merge, tasks, progress))
    parts = tuple(part for part, _ in done if part is not None)
    superseded = sum(count for _, count in done)
    alerts = sum(part.rows("alerts") for part in parts)
    if alerts + superseded != sum(part.rows("alerts") for part in chosen):
        raise InternalError(
            f"Compaction wrote {alerts} alerts and left out {superseded}: they do not add up."
        )
    gone = {part.part_id for part in chosen}

    def make(parent: Snapshot) -> Snapshot:
        if not gone <= {part.part_id for part in parent.parts}:
            raise SnapshotMoved(
                f"Another process compacted the archive '{store.url}' meanwhile.",
                hint="Nothing is lost; run the same command again.",
            )
        kept = tuple(part for part in parent.parts if part.part_id not in gone)
        return replace(parent, kind="compact", parts=(*parts, *kept))

    commit(store, {}, make)
    return parts


@dataclass(frozen=True)
class _Merge:
    """What is merged: parts of ``mine``, which are among those of ``whole``."""

    run: str
    whole: Archive
    mine: Archive


def _write_part(
    merge: _Merge, task: tuple[int, list[tuple[int, int]]], update: Update
) -> tuple[PartRecord | None, int]:
    """One part, and how many superseded alerts it leaves out."""
    number, ranges = task
    merger = _Merger(merge, update)
    tables = merger.tables(ranges, quarantine=number == 0)
    return write_part(merge.whole.store, merge.run, number, tables), merger.superseded


class _Merger:
    """Streams the merged tables of some hash ranges."""

    def __init__(self, merge: _Merge, update: Update) -> None:
        self.whole = merge.whole
        self.mine = merge.mine
        self.superseded = 0
        self._update = update

    def tables(self, ranges: list[tuple[int, int]], *, quarantine: bool) -> Iterator[dict[str, pa.Table]]:
        """First what was set aside, row group by row group, then the hash ranges in ascending order."""
        for part in self.mine.parts if quarantine else ():
            index = part.index("quarantine")
            for group in range(len(index.rows)) if index is not None else ():
                yield {"quarantine": part.read_groups("quarantine", [group])}
        for lo, hi in ranges:
            yield self._range(lo, hi)

    def _range(self, lo: int, hi: int) -> dict[str, pa.Table]:
        lost = self.whole.duplicates(lo, hi)  # a packet of ours may be superseded by one in another part
        alerts = self._without("alerts", lo, hi, lost)
        self._update(alerts.num_rows)
        return {
            "alerts": alerts,
            "stamps": self._sound(self._without("stamps", lo, hi, lost)),
            "duplicates": distinct_packets(self._read("duplicates", lo, hi), "duplicates"),
            "photometry": stitch(self._read("photometry", lo, hi)),
            "spectra": distinct_rows(sort_rows("spectra", self._read("spectra", lo, hi)), "spec_id"),
        }

    def _sound(self, stamps: pa.Table) -> pa.Table:
        """Blocks are copied as they are: one that is damaged must not get a good page's checksum."""
        bad = damaged_rows(stamps)
        if len(bad):
            names = [stamps.column(name)[int(bad[0])].as_py() for name in ("candid", "objectId")]
            raise ArchiveError(
                f"The stamps of alert {names[0]} ({names[1]}) in '{self.whole.store.url}' are damaged"
                + (f", and those of {len(bad) - 1} more alerts." if len(bad) > 1 else "."),
                hint="The archive is as it was. Name the damaged files with: "
                f"applecider-batch archive verify --deep {self.whole.store.url}",
            )
        return stamps

    def _without(self, name: str, lo: int, hi: int, lost: np.ndarray) -> pa.Table:
        rows = self._read(name, lo, hi)
        if len(lost):
            kept = rows.filter(pa.array(~np.isin(pairs_of(rows), lost)))
            self.superseded += rows.num_rows - kept.num_rows if name == "alerts" else 0
            rows = kept
        return sort_rows(name, rows)

    def _read(self, name: str, lo: int, hi: int) -> pa.Table:
        return pa.concat_tables([part_schema(name).empty_table(), *read_parts(self.mine.parts, name, lo, hi)])


def read_parts(parts: list[PartReader], name: str, lo: int, hi: int) -> Iterator[pa.Table]:
    """The rows of a table in a hash range, part by part."""
    return (part.read(name, lo, hi) for part in parts if part.overlaps(name, lo, hi))
