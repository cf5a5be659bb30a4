"""Releases of a catalogue: a base, and what every update since put in its place.

::

    CATALOG/catalog.json               the newest release; earlier ones are read as CATALOG@N
    CATALOG/releases/00001.json        the base as ``catalog build`` wrote it, kept by the first update
    CATALOG/releases/00002.json        create-only: base and deltas of release 2
    CATALOG/rows/part-….parquet        of the base and of the deltas
    CATALOG/index/replaced-….parquet   objects whose earlier rows do not count any more
    CATALOG/index/siblings-….parquet   objects that got other siblings, and were not touched else
    CATALOG/index/positions-…, closing-…, pvalues-….parquet   see ``release_index.py``

All files of a release are written first, then its document, then ``catalog.json`` is replaced.  Their names
follow from what is in them, so an update that was killed writes the same bytes again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.anomaly import QValues
from applecider_batch.catalog.build import build_name, refuse_missing
from applecider_batch.catalog.content import ContentDigest
from applecider_batch.catalog.crossmatch import CrossMatcher, MatchOptions
from applecider_batch.catalog.known import parse_known, read_known
from applecider_batch.catalog.layers import read_file
from applecider_batch.catalog.parts import write_file, write_parts
from applecider_batch.catalog.release_index import (
    COLUMNS,
    POSITIONS,
    LayerIndex,
    Regrouped,
    index_of_base,
    of_hashes,
    positions_of,
)
from applecider_batch.catalog.run_folder import RunFolder
from applecider_batch.catalog.side import CROSSMATCHES
from applecider_batch.catalog.store import (
    CATALOG_FILE,
    INDEX,
    iter_rows,
    open_catalog,
    release_file,
)
from applecider_batch.catalog.summary import Summary
from applecider_batch.digest import digest128, json_digest
from applecider_batch.errors import UsageError, UserError
from applecider_batch.schema import load_table
from applecider_batch.storage import Store, json_bytes

ROWS_PER_PART = 1_000_000
_HASHES = pa.schema([("hash64", pa.uint64())])
_GROUPS = pa.schema([("hash64", pa.uint64()), ("sibling_group", pa.string())])


def open_newest(
    url: str, storage_options: Mapping[str, Any] | None = None, *, complete: bool = True
) -> tuple[Store, dict[str, Any], bool]:
    """The newest release, ready to be updated: store, document, and whether a killed update was completed.

    Parameters
    ----------
    complete : bool
        Whether a release whose document is there is made the newest where an update was killed before it did;
        else it is only taken for that, and nothing is written.

    Raises
    ------
    UserError
        If it is no catalogue, one of an older layout, a partial one, or a named release.
    """
    store, info = open_catalog(url, storage_options)
    if store.url != url.rstrip("/"):
        raise UsageError(f"'{url}' names one release; an update goes on from the newest of '{store.url}'.")
    try:
        following = store.read_json(release_file(info.get("release", 1) + 1))
    except FileNotFoundError:
        following = None
    if following is not None and complete:  # killed between the two
        store.write_json_atomic(CATALOG_FILE, following)
    info = following or info
    if "content_rows" not in info:
        raise UserError(
            f"The catalogue '{url}' was built by an older version, and cannot be updated.",
            hint="Build it again into a new folder: applecider-batch catalog build RUN --out URL",
        )
    if info["partial"]:
        raise UserError(
            f"The catalogue '{url}' is partial: {len(info['missing_shards'])} shards of its run are missing.",
            hint="Finish the run (classify) and build it again first.",
        )
    return store, info, following is not None


def with_index(store: Store, info: dict[str, Any]) -> dict[str, Any]:
    """The document of a release with the index of its base, which is made where there is none."""
    if "index" in info:
        return info
    build = json_digest([info["content_sha256"], info["run_id"]])[:12]
    index, qvalues = index_of_base(store, info, build)
    return {**info, "index": index, "pvalues": write_pvalues(store, build, qvalues)}


def write_pvalues(store: Store, build: str, qvalues: QValues) -> dict[str, Any]:
    counts = qvalues.to_table()
    return write_file(store, f"{INDEX}/pvalues-{build}.parquet", counts.schema, [counts])


def add_release(
    store: Store,
    info: Mapping[str, Any],
    run_url: str,
    replaced: np.ndarray,
    *,
    as_of_jd: float | None,
    matcher: CrossMatcher | None,
    rows_per_part: int = ROWS_PER_PART,
) -> dict[str, Any]:
    """Make the next release: the rows of a run in the place of all rows of some objects.

    Parameters
    ----------
    store, info
        The newest release, with its index.
    run_url : str
        Run of exactly these objects on the archive as it is now.
    replaced : ndarray, uint64, ascending
        hash64 of the objects.
    as_of_jd : float or None
        The archive's end.
    matcher : CrossMatcher or None
        The lists that the release was matched with, and no others.

    Returns
    -------
    dict
        The document of the new release.

    Raises
    ------
    UserError
        If the run is not complete, a file is damaged, or another process made this release meanwhile.
    """
    run = RunFolder(run_url, store.storage_options)
    refuse_missing(run, False, "Run the same update again with --retry-quarantined.")
    change = _Change(store, info, run, replaced, matcher)
    build = json_digest(
        [build_name(run, matcher), info["content_sha256"], digest128(replaced.tobytes()), as_of_jd]
    )[:12]
    parts = write_parts(store, change.rows(), "rows", load_table("catalogue").arrow, build, rows_per_part)
    side: dict[str, Iterator[pa.Table]] = {name: _side_rows(run, name) for name in info["side_tables"]}
    if matcher is not None:
        side[CROSSMATCHES] = iter(change.matched)
    side_parts = {
        name: write_parts(store, tables, name, load_table(name).arrow, build, rows_per_part)
        for name, tables in side.items()
    }
    hashes = pa.table([pa.array(replaced)], schema=_HASHES)
    delta = {
        "run_id": run.run_id,
        "parts": parts,
        "side_tables": side_parts,
        "rows_superseded": change.superseded,
        "objects_replaced": len(replaced),
        "degraded_shards": sorted(i for i, record in run.commits.items() if record.get("degraded")),
        "index": change.index.write(store, build),
        "replaced": write_file(store, f"{INDEX}/replaced-{build}.parquet", _HASHES, [hashes]),
        "siblings": write_file(
            store, f"{INDEX}/siblings-{build}.parquet", _GROUPS, [change.regrouped.changes]
        ),
    }
    number = info.get("release", 1) + 1
    has_full_rows = info["as_of_jd"] is not None or change.content.end is not None
    end = as_of_jd if has_full_rows else None
    new = {
        **info,
        "release": number,
        "run_id": run.run_id,
        "identity": {**info["identity"], "snapshot": run.plan["identity"]["snapshot"]},
        "shards": info["shards"] + len(run.shards),
        "shards_committed": info["shards_committed"] + len(run.commits),
        "content_sha256": change.content.hexdigest(end),
        "content_rows": change.content.state,
        "as_of_jd": end,
        "anomaly_tests": change.tested,
        "siblings": change.regrouped.describe(),
        "pvalues": write_pvalues(store, build, change.qvalues),
        "deltas": [*info.get("deltas", ()), delta],
        **change.summary.as_dict(),
    }
    commit_release(store, info, new)
    return new


def _side_rows(run: RunFolder, name: str) -> Iterator[pa.Table]:
    return (run.read_side(shard, name) for shard in run.shards)


class _Change:
    """What an update takes out of a release and puts in, one pass over each."""

    def __init__(
        self,
        store: Store,
        info: Mapping[str, Any],
        run: RunFolder,
        replaced: np.ndarray,
        matcher: CrossMatcher | None,
    ) -> None:
        cuts = info["identity"].get("cuts")
        self._run, self._matcher = run, matcher
        self.summary = Summary.from_dict(info, cuts)
        self.content = ContentDigest(info["content_rows"])
        self.qvalues = QValues.from_table(read_file(store, info["pvalues"]))
        self.index = LayerIndex()
        self.superseded = 0
        self.matched: list[pa.Table] = []
        before, after = [POSITIONS.empty_table()], [POSITIONS.empty_table()]
        old = Summary(cuts)
        for table in of_hashes(iter_rows(store, info, hashes=replaced), replaced):
            old.update(table)
            self.content.remove(table)
            self.qvalues.remove(table)
            before.append(positions_of(table))
            self.superseded += table.num_rows
        self.summary.remove(old)
        self.content = ContentDigest(self.content.state)  # the end is that of the rows to come
        for shard in run.shards:
            table = run.read_columns(shard, COLUMNS)
            self.qvalues.update(table)
            self.index.update(table)
            after.append(positions_of(table))
        self.tested = self.qvalues.finish()
        self.regrouped = Regrouped(store, info, replaced, pa.concat_tables(before), pa.concat_tables(after))

    def rows(self) -> Iterator[pa.Table]:
        """The rows to put in."""
        for shard in self._run.shards:
            table = self.regrouped.annotate(self.qvalues.annotate(self._run.read_shard(shard)))
            if self._matcher is not None:
                table, pairs = self._matcher.annotate_with_pairs(table)
                self.matched.append(pairs)
            self.summary.update(table)
            self.content.update(table)
            yield table


def commit_release(store: Store, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Keep the base's document, write the new one, and make it the newest."""
    if "release" not in old:
        base = {name: value for name, value in old.items() if name not in ("index", "pvalues")}
        store.write_json_atomic(release_file(1), base)
    number = int(new["release"])
    try:
        store.create_only(release_file(number), json_bytes(new))
    except FileExistsError:
        if store.read_json(release_file(number)) != new:
            raise UserError(
                f"Another process made release {number} of '{store.url}' meanwhile.",
                hint="Nothing is lost; run the same command again.",
            ) from None
    store.write_json_atomic(CATALOG_FILE, new)


def matcher_of(
    info: Mapping[str, Any], known: Sequence[str], storage_options: Mapping[str, Any] | None = None
) -> CrossMatcher | None:
    """Lists of known sources (``[KIND=]FILE``) with the options that a release was matched with."""
    if not known:
        return None
    before = info["crossmatch"]
    options = MatchOptions()
    if before is not None:
        options = MatchOptions(before["radius_arcsec"], tuple(before["window_days"]), before["late_days"])
    lists = [
        read_known(file, kind, storage_options=storage_options) for kind, file in map(parse_known, known)
    ]
    return CrossMatcher(lists, options)


def same_lists(info: Mapping[str, Any], matcher: CrossMatcher | None, url: str) -> None:
    """Refuse lists of known sources that are not those of a release.

    Raises
    ------
    UserError
        If others, none, or some were given where there were none.
    """
    before, now = info["crossmatch"], None if matcher is None else matcher.describe()
    if before == now:
        return
    lists = ", ".join(entry["list"] for entry in before["lists"]) if before else "no list"
    given = ", ".join(entry["list"] for entry in now["lists"]) if now else "none"
    raise UserError(
        f"The release was cross-matched with {lists} in their state and with the options of then, given are "
        f"{given}: rows matched with different lists do not go into one release.",
        hint=f"Give the same --known, or match all rows again first: applecider-batch catalog fold {url} "
        "--known FILE",
    )
