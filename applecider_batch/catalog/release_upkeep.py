"""Upkeep of a catalogue with releases: deltas are folded into a new base, old releases listed and removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from applecider_batch.catalog.anomaly import QValues
from applecider_batch.catalog.content import ContentDigest
from applecider_batch.catalog.layers import all_files
from applecider_batch.catalog.parts import write_parts
from applecider_batch.catalog.release import (
    ROWS_PER_PART,
    commit_release,
    matcher_of,
    open_newest,
    write_pvalues,
)
from applecider_batch.catalog.release_index import LayerIndex
from applecider_batch.catalog.side import CROSSMATCHES, SIDE_TABLES
from applecider_batch.catalog.store import (
    INDEX,
    RELEASES,
    RUNS,
    half_written,
    iter_rows,
    only_writer,
    open_catalog,
    release_file,
    whole_objects,
)
from applecider_batch.catalog.summary import Summary
from applecider_batch.digest import json_digest
from applecider_batch.errors import UsageError, UserError
from applecider_batch.schema import load_table
from applecider_batch.spread import ProgressLike
from applecider_batch.storage import Store


def fold(
    url: str,
    *,
    known: Sequence[str] = (),
    rows_per_part: int = ROWS_PER_PART,
    storage_options: Mapping[str, Any] | None = None,
    progress: ProgressLike | None = None,
) -> dict[str, Any]:
    """Write base and deltas into a new base: the same rows, a new release; with lists, matched again.

    Parameters
    ----------
    known : sequence of str
        ``[KIND=]FILE``: lists of known sources to match all rows with, in the place of those of before.
    progress : ProgressLike, optional
        Counts rows.

    Returns
    -------
    dict
        Keys as ``catalog fold`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        If it cannot be folded, the rows read are not those that the release promises, or another process is
        changing the catalogue.
    """
    with only_writer(url, storage_options):
        return _fold(url, known, rows_per_part, storage_options, progress)


def _fold(
    url: str,
    known: Sequence[str],
    rows_per_part: int,
    storage_options: Mapping[str, Any] | None,
    progress: ProgressLike | None,
) -> dict[str, Any]:
    store, info, completed = open_newest(url, storage_options)
    matcher = matcher_of(info, known, storage_options)
    if matcher is not None and matcher.describe() == info["crossmatch"]:
        matcher = None
    if not info.get("deltas") and matcher is None:
        return _folded(store, info, completed)
    summary, index, qvalues = Summary(info["identity"].get("cuts")), LayerIndex(), QValues()
    checked, content = ContentDigest(), ContentDigest()
    matched: list[pa.Table] = []
    if progress is not None:
        progress.expect(info["rows"])

    def tables() -> Iterator[pa.Table]:
        for table in whole_objects(iter_rows(store, info)):
            checked.update(table)
            if matcher is not None:
                table, pairs = matcher.annotate_with_pairs(table)
                matched.append(pairs)
            summary.update(table)
            content.update(table)
            qvalues.update(table)
            index.update(table)
            yield table
            if progress is not None:
                progress.update(table.num_rows)

    lists = None if matcher is None else matcher.digest
    build = json_digest(["fold", info["content_sha256"], info.get("release", 1), lists])[:12]
    parts = write_parts(store, tables(), "rows", load_table("catalogue").arrow, build, rows_per_part)
    if checked.hexdigest() != info["content_sha256"]:
        raise UserError(
            f"The rows of '{url}' are not those that catalog.json promises.",
            hint=f"Check with: applecider-batch catalog verify {url}",
        )
    side = {name: iter_rows(store, info, name=name) for name in info["side_tables"]}
    if matcher is not None:
        side[CROSSMATCHES] = iter(matched)
    new = {
        **info,
        "release": info.get("release", 1) + 1,
        "parts": parts,
        "side_tables": {
            name: write_parts(store, rows, name, load_table(name).arrow, build, rows_per_part)
            for name, rows in side.items()
        },
        "content_sha256": content.hexdigest(),
        "content_rows": content.state,
        "anomaly_tests": qvalues.finish(),
        "crossmatch": info["crossmatch"] if matcher is None else matcher.describe(),
        "index": index.write(store, build),
        "pvalues": write_pvalues(store, build, qvalues),
        "deltas": [],
        **summary.as_dict(),
    }
    commit_release(store, info, new)
    return _folded(store, new, True)


def _folded(store: Store, info: Mapping[str, Any], changed: bool) -> dict[str, Any]:
    files = all_files(info) if changed else []
    return {
        "changed": changed,
        "catalogue": store.url,
        "release": info.get("release", 1),
        **{name: info[name] for name in ("rows", "objects", "content_sha256")},
        "bytes_written": sum(entry["bytes"] for entry in files),
    }


def list_releases(url: str, *, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The releases that can be read, oldest first; see ``schemas/answers.json``."""
    store, newest = open_catalog(url, storage_options)
    numbers = [int(name[:-5]) for name in store.ls(RELEASES) if name.endswith(".json")]
    present = numbers or [newest.get("release", 1)]
    found = []
    for number in sorted(present):
        try:
            info = newest if number == newest.get("release", 1) else store.read_json(release_file(number))
        except FileNotFoundError:  # a removal is under way
            continue
        found.append(
            {
                "release": number,
                "read_as": f"{store.url}@{number}",
                "deltas": len(info.get("deltas", ())),
                **{name: info[name] for name in ("rows", "objects", "as_of_jd", "content_sha256")},
                "logical_digest": info["identity"].get("snapshot"),
            }
        )
    return {"catalogue": store.url, "newest": newest.get("release", 1), "releases": found}


def gc(
    url: str, keep: int = 1, *, dry_run: bool = False, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Remove earlier releases and all files that no kept one names.

    Parameters
    ----------
    keep : int
        Newest releases that stay readable, at least 1.
    dry_run : bool
        Only say what would be removed; nothing at all is written.

    Returns
    -------
    dict
        ``releases_kept, releases_removed, files_removed, bytes_removed, dry_run``.

    Raises
    ------
    UserError
        If another process is changing the catalogue; not with ``dry_run``.
    """
    if keep < 1:
        raise UsageError(f"--keep is {keep}; at least 1 release must stay.")
    with contextlib.nullcontext() if dry_run else only_writer(url, storage_options):
        return _gc(url, keep, dry_run, storage_options)


def _gc(url: str, keep: int, dry_run: bool, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
    store, newest, _ = open_newest(url, storage_options, complete=not dry_run)
    listed = [entry["release"] for entry in list_releases(url, storage_options=storage_options)["releases"]]
    kept = listed[-keep:]
    named = {release_file(number) for number in kept}
    for number in kept:
        info = newest if number == newest.get("release", 1) else store.read_json(release_file(number))
        named |= {entry["file"] for entry in all_files(info)}
    folders = (RELEASES, INDEX, RUNS, "rows", *SIDE_TABLES)
    removable = [path for folder in folders for path in store.walk(folder) if path not in named]
    removable += half_written(store)
    # Documents go first: whoever opens one must find its files.
    removable.sort(key=lambda path: (not path.startswith(f"{RELEASES}/"), path))
    size = 0
    for path in removable:
        size += store.size(path)
        if not dry_run:
            store.delete(path)
    if not dry_run:
        store.delete(RUNS, recursive=True)  # the empty folders
    return {
        "releases_kept": kept,
        "releases_removed": [number for number in listed if number not in kept],
        "files_removed": len(removable),
        "bytes_removed": size,
        "dry_run": dry_run,
    }
