"""``catalog build``: committed shards of a run into one catalogue.

Exactly once and checkable: every committed file is checked against its record, missing shards are refused,
and the same run gives the same bytes.  Every part is a task of its own; memory is bounded by one shard and
24 bytes an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from applecider_batch.catalog.anomaly import QValues
from applecider_batch.catalog.content import ContentDigest
from applecider_batch.catalog.crossmatch import CrossMatcher, MatchOptions
from applecider_batch.catalog.known import KnownList
from applecider_batch.catalog.parts import PartTask, part_name, part_tasks, write_part
from applecider_batch.catalog.run_folder import RunFolder, Shard
from applecider_batch.catalog.siblings import Siblings
from applecider_batch.catalog.side import CROSSMATCHES, SIDE_TABLES
from applecider_batch.catalog.store import (
    CATALOG_FILE,
    FORMAT,
    FORMAT_VERSION,
    RUN_FILE,
    half_written,
    release_file,
)
from applecider_batch.catalog.summary import Summary
from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.lease import LEASE, Lease
from applecider_batch.schema import load_table
from applecider_batch.spread import Here, ProgressLike, Spread, Update
from applecider_batch.storage import Store

ROWS_PER_PART = 1_000_000


def build_catalog(
    run_url: str,
    out_url: str,
    *,
    allow_partial: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    rows_per_part: int = ROWS_PER_PART,
    known: Sequence[KnownList] = (),
    match: MatchOptions | None = None,
    progress: ProgressLike | None = None,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Build the catalogue of a run.

    Parameters
    ----------
    run_url, out_url : str
        Run folder and catalogue folder, local or any fsspec URL.  An existing catalogue of the same run is
        replaced, of another run refused.
    allow_partial : bool
        Accept a run with missing shards; the catalogue then says ``partial``.
    rows_per_part : int
        Rows in a Parquet file.
    known : sequence of KnownList
        Lists of known sources to cross-match with (:func:`applecider_batch.catalog.known.read_known`).
    match : MatchOptions, optional
        Radius, window and lateness of the cross-match.
    progress : ProgressLike, optional
        Counts shards.
    spread : Spread, optional
        Where the parts are written; by default in this process.

    Returns
    -------
    dict
        The contents of ``catalog.json``.

    Raises
    ------
    UserError
        Missing shards without ``allow_partial``; a damaged, missing or foreign data file; duplicate rows; a
        folder that is something else, or in which another process is changing the catalogue.
    """
    run = RunFolder(run_url, storage_options)
    refuse_missing(run, allow_partial)
    out = Store(out_url, storage_options)
    _refuse_foreign(out, run)  # before a lease is put there
    with Lease(out, what="catalogue"):
        _refuse_foreign(out, run)  # another process may have ended just now
        matcher = CrossMatcher(known, match) if known else None
        return _build(run, out, matcher, rows_per_part, progress, spread or Here())


def _build(
    run: RunFolder,
    out: Store,
    matcher: CrossMatcher | None,
    rows_per_part: int,
    progress: ProgressLike | None,
    spread: Spread,
) -> dict[str, Any]:
    committed = [shard for shard in run.shards if shard.shard_id in run.commits]
    if progress is not None:
        progress.expect(len(committed))
    qvalues, siblings = QValues(), Siblings()
    wanted = (*QValues.COLUMNS, *Siblings.COLUMNS)
    for table in spread.map(_read_columns, (run, wanted), committed):
        qvalues.update(table)
        siblings.update(table)
    tested = qvalues.finish()
    again = committed if siblings.find() else []
    for table in spread.map(_read_columns, (run, Siblings.COLUMNS), again):
        siblings.name(table)

    build = build_name(run, matcher)
    summary, content = Summary(run.plan.get("identity", {}).get("cuts")), ContentDigest()
    matched: list[pa.Table] = []  # sources near an episode are few
    parts: list[dict[str, Any]] = []
    making = _Making(run, out, build, rows_per_part, qvalues, siblings, matcher)
    tasks = part_tasks([run.commits[shard.shard_id]["rows"] for shard in committed], rows_per_part)
    for part, counts, digest, pairs in spread.map(_write_rows, making, tasks, progress):
        parts.append(part)
        summary.add(counts)
        content.add(digest)
        matched += pairs
    _check_sums(run, summary)
    side_parts: dict[str, list[dict[str, Any]]] = {}
    for name in run.plan["identity"].get("side", []):
        rows = [run.commits[shard.shard_id]["side"][name]["rows"] for shard in committed]
        side = _Side(run, out, name, build, rows_per_part)
        side_parts[name] = list(spread.map(_write_side, side, part_tasks(rows, rows_per_part)))
    if matcher is not None:
        schema = load_table(CROSSMATCHES).arrow
        file = part_name(CROSSMATCHES, 0, build)
        side_parts[CROSSMATCHES] = [write_part(out, file, schema, matched, rows_per_part)]
    info = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run_id": run.run_id,
        "identity": run.plan.get("identity", {}),
        "horizons": run.horizons,
        "columns": load_table("catalogue").names,
        "sorted_by": ["hash64", "objectId", "episode", "horizon_days"],
        "shards": len(run.shards),
        "shards_committed": len(committed),
        "partial": bool(run.missing),
        "missing_shards": run.missing,
        "quarantined_shards": run.quarantined,
        "degraded_shards": sorted(i for i, record in run.commits.items() if record.get("degraded")),
        "content_sha256": content.hexdigest(),
        "content_rows": content.state,
        "as_of_jd": content.end,
        "anomaly_tests": tested,
        "siblings": siblings.describe(),
        "crossmatch": None if matcher is None else matcher.describe(),
        "parts": parts,
        "side_tables": side_parts,
        **summary.as_dict(),
    }
    statistics = run.statistics()
    if statistics is not None:
        out.write_json_atomic(RUN_FILE, statistics)
    out.write_json_atomic(CATALOG_FILE, info)
    named = {part["file"] for part in (*parts, *(p for some in side_parts.values() for p in some))}
    for folder in ("rows", *SIDE_TABLES):
        for name in out.ls(folder):
            if f"{folder}/{name}" not in named:
                out.delete(f"{folder}/{name}")
    for name in half_written(out):
        out.delete(name)
    return info


def refuse_missing(
    run: RunFolder,
    allow_partial: bool,
    hint: str = "Run classify again to finish it, or give --allow-partial.",
) -> None:
    if run.missing and not allow_partial:
        shown = ", ".join(str(shard_id) for shard_id in run.missing[:10]) + (
            ", …" if len(run.missing) > 10 else ""
        )
        given_up = f" ({len(run.quarantined)} of them quarantined)" if run.quarantined else ""
        raise UserError(
            f"The run '{run.store.url}' is not complete: {len(run.missing)} of {len(run.shards)} shards are "
            f"missing{given_up}: {shown}.",
            hint=hint,
        )
    if not run.commits and run.shards:
        raise UserError(f"The run '{run.store.url}' has no committed shard.", hint="Run classify first.")


def _refuse_foreign(out: Store, run: RunFolder) -> None:
    if out.exists(CATALOG_FILE):
        there = out.read_json(CATALOG_FILE)
        if "release" in there or out.exists(release_file(2)):  # the second: an update was killed at its end
            raise UserError(
                f"'{out.url}' holds release {there.get('release', 2)} of a catalogue, made by updates.",
                hint="Choose another folder, or go on with: applecider-batch update",
            )
        if there.get("format") != FORMAT or there.get("run_id") != run.run_id:
            raise UserError(
                f"'{out.url}' already holds the catalogue of run {there.get('run_id')}, not of {run.run_id}.",
                hint="Choose another folder.",
            )
    # Names with a dot are what killed writers leave.
    elif [n for n in out.ls() if n not in ("rows", RUN_FILE, LEASE, *SIDE_TABLES) and not n.startswith(".")]:
        raise UserError(f"'{out.url}' is not empty and no catalogue.", hint="Choose a new folder.")


def build_name(run: RunFolder, matcher: CrossMatcher | None) -> str:
    """Short name of exactly these committed rows: a new build never overwrites the parts of an old one."""
    files = {str(shard_id): record["sha256"] for shard_id, record in run.commits.items()}
    known = None if matcher is None else matcher.digest
    return json_digest({"files": files, "columns": load_table("catalogue").names, "known": known})[:12]


def _check_sums(run: RunFolder, summary: Summary) -> None:
    objects = [record["objects"] for record in run.commits.values() if "objects" in record]
    if len(objects) == len(run.commits) and sum(objects) != summary.objects:
        raise UserError(
            f"The commits of '{run.store.url}' promise {sum(objects)} objects, "
            f"their files hold {summary.objects}."
        )


@dataclass(frozen=True)
class _Making:
    """What all parts of a catalogue are made with."""

    run: RunFolder
    out: Store
    build: str
    rows_per_part: int
    qvalues: QValues
    siblings: Siblings
    matcher: CrossMatcher | None


@dataclass(frozen=True)
class _Side:
    """What all parts of a side table are made with."""

    run: RunFolder
    out: Store
    name: str
    build: str
    rows_per_part: int


def _read_columns(shared: tuple[RunFolder, Sequence[str]], shard: Shard, update: Update) -> pa.Table:
    run, columns = shared
    return run.read_columns(shard, columns)


def _write_rows(
    making: _Making, task: PartTask, update: Update
) -> tuple[dict[str, Any], Summary, ContentDigest, list[pa.Table]]:
    """One part; counts, digest and pairs are of the shards that begin in it."""
    run = making.run
    committed = [shard for shard in run.shards if shard.shard_id in run.commits]
    summary, content = Summary(run.plan.get("identity", {}).get("cuts")), ContentDigest()
    matched: list[pa.Table] = []

    def tables() -> Iterator[pa.Table]:
        for piece in task.pieces:
            table = making.siblings.annotate(making.qvalues.annotate(run.read_shard(committed[piece.shard])))
            if making.matcher is not None:
                table, pairs = making.matcher.annotate_with_pairs(table)
                matched.extend([pairs] if piece.first else [])
            if piece.first:
                summary.update(table)
                content.update(table)
                update(1)
            yield table.slice(piece.start, piece.stop - piece.start)

    name = part_name("rows", task.number, making.build)
    part = write_part(making.out, name, load_table("catalogue").arrow, tables(), making.rows_per_part)
    return part, summary, content, matched


def _write_side(side: _Side, task: PartTask, update: Update) -> dict[str, Any]:
    """One part of a side table."""
    committed = [shard for shard in side.run.shards if shard.shard_id in side.run.commits]
    tables = (
        side.run.read_side(committed[piece.shard], side.name).slice(piece.start, piece.stop - piece.start)
        for piece in task.pieces
    )
    name = part_name(side.name, task.number, side.build)
    return write_part(side.out, name, load_table(side.name).arrow, tables, side.rows_per_part)
