"""``catalog build``: committed shards of a run into one catalogue.

Exactly once and checkable: every committed file is checked against its record, missing shards are refused,
and the same run gives the same bytes.  Memory is bounded by one shard and
24 bytes an object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.catalog.anomaly import QValues
from applecider_batch.catalog.content import ContentDigest
from applecider_batch.catalog.crossmatch import CrossMatcher, MatchOptions
from applecider_batch.catalog.known import KnownList
from applecider_batch.catalog.run_folder import RunFolder
from applecider_batch.catalog.siblings import Siblings
from applecider_batch.catalog.side import CROSSMATCHES, SIDE_TABLES
from applecider_batch.catalog.store import BATCH_ROWS, CATALOG_FILE, FORMAT, FORMAT_VERSION, RUN_FILE
from applecider_batch.catalog.summary import Summary
from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.logs import Progress
from applecider_batch.schema import load_table
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
    progress: Progress | None = None,
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
    progress : Progress, optional
        Counts shards.

    Returns
    -------
    dict
        The contents of ``catalog.json``.

    Raises
    ------
    UserError
        Missing shards without ``allow_partial``; a damaged, missing or foreign data file; duplicate rows; a
        folder that is something else.
    """
    run = RunFolder(run_url, storage_options)
    _refuse_missing(run, allow_partial)
    out = Store(out_url, storage_options)
    _refuse_foreign(out, run)

    matcher = CrossMatcher(known, match) if known else None
    summary, content = Summary(run.plan.get("identity", {}).get("cuts")), ContentDigest()
    committed = [shard for shard in run.shards if shard.shard_id in run.commits]
    qvalues, siblings = QValues(), Siblings()
    for shard in committed:
        table = run.read_columns(shard, (*QValues.COLUMNS, *Siblings.COLUMNS))
        qvalues.update(table)
        siblings.update(table)
    tested = qvalues.finish()
    for shard in committed if siblings.find() else ():
        siblings.name(run.read_columns(shard, Siblings.COLUMNS))

    matched: list[pa.Table] = []  # sources near an episode are few

    def tables() -> Iterator[pa.Table]:
        for shard in committed:
            table = siblings.annotate(qvalues.annotate(run.read_shard(shard)))
            if matcher is not None:
                table, pairs = matcher.annotate_with_pairs(table)
                matched.append(pairs)
            summary.update(table)
            content.update(table)
            yield table
            if progress is not None:
                progress.update(rows=summary.rows)

    build = _build_name(run, matcher)
    parts = _write_parts(out, tables(), "rows", load_table("catalogue").arrow, build, rows_per_part)
    _check_sums(run, summary)
    side: dict[str, Iterator[pa.Table]] = {
        name: run.side_tables(name) for name in run.plan["identity"].get("side", [])
    }
    if matcher is not None:
        side[CROSSMATCHES] = iter(matched)
    side_parts = {
        name: _write_parts(out, content, name, load_table(name).arrow, build, rows_per_part)
        for name, content in side.items()
    }
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
    return info


def _refuse_missing(run: RunFolder, allow_partial: bool) -> None:
    if run.missing and not allow_partial:
        shown = ", ".join(str(shard_id) for shard_id in run.missing[:10]) + (
            ", …" if len(run.missing) > 10 else ""
        )
        given_up = f" ({len(run.quarantined)} of them quarantined)" if run.quarantined else ""
        raise UserError(
            f"The run '{run.store.url}' is not complete: {len(run.missing)} of {len(run.shards)} shards are "
            f"missing{given_up}: {shown}.",
            hint="Run classify again to finish it, or give --allow-partial.",
        )
    if not run.commits and run.shards:
        raise UserError(f"The run '{run.store.url}' has no committed shard.", hint="Run classify first.")


def _refuse_foreign(out: Store, run: RunFolder) -> None:
    if out.exists(CATALOG_FILE):
        there = out.read_json(CATALOG_FILE)
        if there.get("format") != FORMAT or there.get("run_id") != run.run_id:
            raise UserError(
                f"'{out.url}' already holds the catalogue of run {there.get('run_id')}, not of {run.run_id}.",
                hint="Choose another folder.",
            )
    elif [name for name in out.ls() if name not in ("rows", RUN_FILE, *SIDE_TABLES)]:
        raise UserError(f"'{out.url}' is not empty and no catalogue.", hint="Choose a new folder.")


def _build_name(run: RunFolder, matcher: CrossMatcher | None) -> str:
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


class _Hashing:
    """A file to write that keeps the sha256 and the length of what went through it."""

    closed = False

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.bytes += len(data)
        self._out.write(data)
        return len(data)

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        self.closed = True

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _write_parts(
    out: Store, tables: Iterator[pa.Table], folder: str, schema: pa.Schema, build: str, rows_per_part: int
) -> list[dict[str, Any]]:
    """Parquet parts of ``rows_per_part`` rows, cut independently of the shards' borders."""
    groups = _regroup(tables, min(BATCH_ROWS, rows_per_part))
    group = next(groups, None)
    parts: list[dict[str, Any]] = []
    while group is not None or not parts:
        name = f"{folder}/part-{len(parts):05d}.{build}.parquet"
        rows = 0
        with out.open_output(name) as file:
            sink = _Hashing(file)
            with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=3) as writer:
                while group is not None and rows < rows_per_part:
                    writer.write_table(group, row_group_size=BATCH_ROWS)
                    rows += group.num_rows
                    group = next(groups, None)
        parts.append({"file": name, "rows": rows, "bytes": sink.bytes, "sha256": sink.hexdigest()})
    return parts


def _regroup(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``size`` rows, the last one shorter."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        if count >= size:
            joined = pa.concat_tables(held).combine_chunks()
            for start in range(0, count - size + 1, size):
                yield joined.slice(start, size)
            rest = count % size
            held, count = ([joined.slice(joined.num_rows - rest)] if rest else []), rest
    if count:
        yield pa.concat_tables(held).combine_chunks()
