"""Does an archive hold what its snapshot says? And what does it hold?"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.changes import read_change
from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.parts import SORT_KEYS
from applecider_batch.archive.read import Archive
from applecider_batch.archive.resolve import pair_digest, pairs_of
from applecider_batch.archive.snapshot import ArchiveError, Snapshot, snapshot_ids
from applecider_batch.archive.stamp_blocks import unpack
from applecider_batch.archive.stitch import stitch
from applecider_batch.digest import MultisetDigest, hash64
from applecider_batch.errors import StorageError
from applecider_batch.schema import load_table
from applecider_batch.spread import ProgressLike
from applecider_batch.storage import Store

_CHUNK = 8 << 20
_CANDIDS_AT_ONCE = 20_000_000
_PACKET_TABLES = ("alerts", "duplicates")
_STAMPS = ("Science", "Template", "Difference")

SHOWN = 1000
_QUARANTINE = ["source", "member", "kind", "reason", "message"]


@dataclass
class _Findings:
    problems: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    files: int = 0
    bytes: int = 0

    def check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def verify(
    url: str,
    deep: bool = False,
    *,
    snapshot: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: ProgressLike | None = None,
) -> dict[str, Any]:
    """Check an archive against its snapshot.

    Every file's size and digest, row counts, row-group indices, sort order, hash64, one packet per candid,
    the sums of the sources' counts, the records of what changed, and the logical digest, recomputed from the
    rows. With ``deep`` also
    that every stamp has the pixels of its shape and an alert, and that the photometry is de-duplicated.
    ``progress`` counts the files of parts.

    Returns
    -------
    dict
        ``ok``, ``problems`` (sentences), ``snapshot``, ``logical_digest``, ``files``, ``bytes``, ``rows`` per
        table, ``deep``.

    Raises
    ------
    ArchiveError
        If it is not an archive, or its snapshot cannot be read.
    """
    archive = Archive.open(url, storage_options, snapshot)
    found = _Findings()
    readable = []
    if progress is not None:
        progress.expect(sum(len(part.record.tables) for part in archive.parts))
    for part in archive.parts:
        if _check_part(part, deep, found):
            readable.append(part)
        if progress is not None:
            progress.update(len(part.record.tables))
    if len(readable) == len(archive.parts):
        _check_packets(archive, found)
        if deep:
            _check_stamps_have_alerts(archive, found)
    _check_counts(archive.snapshot, found)
    for change in archive.snapshot.changes:
        try:
            read_change(archive.store, change)
        except ArchiveError as error:
            found.problems.append(error.message)
    return {
        "ok": not found.problems,
        "problems": found.problems,
        "snapshot": archive.snapshot.id,
        "logical_digest": archive.snapshot.logical_digest,
        "files": found.files,
        "bytes": found.bytes,
        "rows": dict(sorted(found.rows.items())),
        "deep": deep,
    }


def _check_part(part: PartReader, deep: bool, found: _Findings) -> bool:
    """Whether the files are those that were written; if so their rows are checked, too."""
    sound = True
    for name, table in part.record.tables.items():
        path = part.record.path(name)
        found.files += 1
        try:
            size, digest = _size_and_digest(part.store, path)
        except (FileNotFoundError, StorageError):
            found.problems.append(f"{path} is missing or cannot be read.")
            sound = False
            continue
        found.bytes += size
        if (size, digest) != (table.bytes, table.digest):
            found.problems.append(
                f"{path} is damaged: it has {size} bytes with digest {digest}, "
                f"written were {table.bytes} with {table.digest}."
            )
            sound = False
    try:
        tables = {name: part.index(name) for name in part.record.tables}
    except ArchiveError as error:
        found.problems.append(str(error))
        return False
    if not sound:
        return False
    for name in tables:
        _check_rows(part, name, deep, found)
    return True


def _size_and_digest(store: Store, path: str) -> tuple[int, str]:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with pa.OSFile(store.path(path)) if store.is_local else store.open_input(path) as source:
        while block := source.read(_CHUNK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _check_rows(part: PartReader, name: str, deep: bool, found: _Findings) -> None:
    """Counts, index, order and hashes of a table, row group by row group."""
    path, index = part.record.path(name), part.index(name)
    assert index is not None
    with part.open(name) as file:
        rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    found.rows[name] += sum(rows)
    found.check(
        rows == index.rows.tolist(), f"{path} has row groups {rows}, its index {index.rows.tolist()}."
    )
    found.check(
        sum(rows) == part.record.rows(name),
        f"{path} has {sum(rows)} rows, the snapshot {part.record.rows(name)}.",
    )
    if name == "quarantine" or rows != index.rows.tolist():
        return
    keys = [key for key in SORT_KEYS.get(name, ("hash64", "objectId", "jd", "candid")) if key != "source_id"]
    last: pa.Table | None = None
    for group in range(len(rows)):
        wanted = None if deep and name in ("stamps", "photometry") else keys
        table = part.read_groups(name, [group], wanted)
        hashes = table.column("hash64").to_numpy()
        bounds = (int(hashes[0]), int(hashes[-1]))
        found.check(
            bounds == (int(index.lo[group]), int(index.hi[group])),
            f"{path}: row group {group} does not have the hash range of its index.",
        )
        right = bool(np.array_equal(hash64(table.column("objectId")), hashes))
        found.check(right, f"{path}: row group {group} has a hash64 that is not its objectId's.")
        joined = table.select(keys) if last is None else pa.concat_tables([last, table.select(keys)])
        found.check(
            _in_order(joined, keys), f"{path}: row group {group} is not sorted by ({', '.join(keys)})."
        )
        last = joined.slice(joined.num_rows - 1)
        if deep and name == "stamps":
            try:
                _check_shapes(unpack(table), path, group, found)
            except ValueError as error:
                found.problems.append(f"{path}: row group {group} holds a damaged stamp: {error}.")
    if deep and name == "photometry":
        _check_stitched(part, path, found)


def _in_order(table: pa.Table, keys: list[str]) -> bool:
    order = [(key, "ascending", "at_start") for key in keys]
    return bool(np.array_equal(pc.sort_indices(table, sort_keys=order).to_numpy(), np.arange(table.num_rows)))


def _check_shapes(table: pa.Table, path: str, group: int, found: _Findings) -> None:
    for stamp in _STAMPS:
        pixels = pc.fill_null(pc.list_value_length(table.column(f"cutout{stamp}")), 0)
        area = pc.multiply(
            pc.fill_null(table.column(f"height{stamp}").cast(pa.int32()), 0),
            pc.fill_null(table.column(f"width{stamp}").cast(pa.int32()), 0),
        )
        same = pixels.to_numpy() == area.to_numpy()
        missing = pc.is_null(table.column(f"cutout{stamp}")).to_numpy()
        bad = int(np.count_nonzero(~(same | missing)))
        found.check(
            not bad,
            f"{path}: {bad} {stamp} stamps of row group {group} do not have the pixels of their shape.",
        )


def _check_stitched(part: PartReader, path: str, found: _Findings) -> None:
    for lo, hi in Archive(part.store, Snapshot(parts=(part.record,))).ranges(64 << 20, ("photometry",)):
        table = part.read("photometry", lo, hi)
        found.check(
            stitch(table).equals(table), f"{path}: points from hash {lo:016x} on are not de-duplicated."
        )


def _packet_pairs(archive: Archive, name: str) -> Iterator[np.ndarray]:
    for part in archive.parts:
        index = part.index(name)
        for group in range(len(index.rows)) if index is not None else ():
            yield pairs_of(part.read_groups(name, [group], ["candid", "packet_digest"]))


def _check_packets(archive: Archive, found: _Findings) -> None:
    """One packet per candid, and the digest over all accepted; some candids at a time to bound the memory."""
    total = sum(part.record.rows(name) for part in archive.parts for name in _PACKET_TABLES)
    passes = max(1, -(-total // _CANDIDS_AT_ONCE))
    digest = MultisetDigest()
    stored = 0
    for number in range(passes):
        alerts, duplicates = (
            np.concatenate(
                [pairs_of(load_table(name).empty())]
                + [pairs[pairs["candid"] % passes == number] for pairs in _packet_pairs(archive, name)]
            )
            for name in _PACKET_TABLES
        )
        winners = alerts[~np.isin(alerts, duplicates)] if len(duplicates) else alerts
        twice = len(winners) - len(np.unique(winners["candid"]))
        found.check(not twice, f"{twice} alerts have a candid that another alert has, too.")
        stored += len(winners)
        digest.merge(pair_digest(np.unique(np.concatenate([alerts, duplicates]))))
    snapshot = archive.snapshot
    expected = snapshot.packets_digest.hexdigest()
    found.check(
        digest.hexdigest() == expected,
        f"The packets have the digest {digest.hexdigest()}, the snapshot states {expected}.",
    )
    given = snapshot.counts.get("stored", 0)
    found.check(stored == given, f"{stored} packets are stored, the snapshot counts {given}.")


def _check_stamps_have_alerts(archive: Archive, found: _Findings) -> None:
    for lo, hi in archive.ranges(64 << 20, ("alerts",)):
        lost = archive.duplicates(lo, hi)
        alerts = pairs_of(archive.read_alerts(lo, hi, ["candid", "packet_digest"], lost=lost))
        stamps = pairs_of(archive.read_packets("stamps", lo, hi, ["candid", "packet_digest"], lost))
        stray = int(np.count_nonzero(~np.isin(stamps, alerts)))
        found.check(not stray, f"{stray} stamps from hash {lo:016x} on belong to no alert.")


def _check_counts(snapshot: Snapshot, found: _Findings) -> None:
    sums: Counter[str] = Counter()
    for source in snapshot.sources:
        sums.update(source.counts)
    found.check(
        dict(sums) == snapshot.counts, f"The sources' counts sum to {dict(sums)}, not {snapshot.counts}."
    )
    parts = sums["stored"] + sums["duplicates"] + sums["quarantined"]
    found.check(
        sums["packets_in"] == parts,
        f"{sums['packets_in']} packets came in, {parts} are stored, duplicates or quarantined.",
    )
    aside = sums["quarantined"] + sums["photometry_rejected"] + sums["spectra_rejected"]
    rows = sum(part.rows("quarantine") for part in snapshot.parts)
    found.check(rows == aside, f"The quarantine has {rows} rows, the sources count {aside}.")


def info(url: str, *, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What an archive holds: counts, nights, sizes, schema versions, sources and the chain of snapshots.

    Returns
    -------
    dict
        ``snapshot``, ``logical_digest``, ``counts``, ``rows`` and ``bytes`` per table (superseded packets
        included), ``parts``, ``runs``, ``nights``, ``jd_max`` (end of the archive), ``jd_max_tables`` (latest
        point of a light-curve table), ``schema_versions`` (packets per schemavsn), ``sources``,
        ``quarantine`` (the first :data:`SHOWN` things set aside: source, member, kind, reason,
        message) and ``chain`` (newest first).
    """
    archive = Archive.open(url, storage_options)
    snapshot = archive.snapshot
    rows: Counter[str] = Counter()
    size: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    for part in archive.parts:
        for name, table in part.record.tables.items():
            rows[name] += table.rows
            size[name] += table.bytes
        index = part.index("alerts")
        for group in range(len(index.rows)) if index is not None else ():
            column = part.read_groups("alerts", [group], ["schemavsn"]).column("schemavsn")
            for entry in pc.value_counts(column).to_pylist():
                versions[entry["values"] or "before 2.0"] += entry["counts"]
    return {
        "snapshot": snapshot.id,
        "logical_digest": snapshot.logical_digest,
        "counts": snapshot.counts,
        "rows": dict(sorted(rows.items())),
        "bytes": dict(sorted(size.items())),
        "parts": len(snapshot.parts),
        "runs": len({part.run for part in snapshot.parts}),
        "nights": sorted({night for part in snapshot.parts for night in part.nights}),
        "jd_max": snapshot.jd_max,
        "jd_max_tables": snapshot.jd_max_tables,
        "schema_versions": dict(sorted(versions.items())),
        "sources": [source.to_json() for source in snapshot.sources],
        "quarantine": archive.quarantine().slice(0, SHOWN).select(_QUARANTINE).to_pylist(),
        "chain": _chain(archive.store),
    }


def _chain(store: Store) -> list[dict[str, Any]]:
    chain = []
    for number in reversed(snapshot_ids(store)):
        value = store.read_json(f"snapshots/{number:08d}.json")
        chain.append({key: value.get(key) for key in ("id", "parent", "kind", "logical_digest")})
    return chain
