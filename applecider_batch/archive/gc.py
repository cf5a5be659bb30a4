"""Removal of what no kept snapshot names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from applecider_batch.archive.objects import cache_files
from applecider_batch.archive.snapshot import MARKER, load_snapshot, open_archive, snapshot_file, snapshot_ids
from applecider_batch.archive.spill import SCRATCH
from applecider_batch.errors import UsageError
from applecider_batch.lease import is_abandoned


def gc(
    url: str, keep: int = 1, *, dry_run: bool = False, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Remove all files that none of the newest ``keep`` snapshots names, and the older snapshots.

    A plan or run that is pinned to a removed snapshot can no longer be continued. Not to be run beside an
    ingest or a compaction: the parts they have written but not yet committed look like left-overs (they
    notice, and ask to be run again). A scratch folder stays while its owner may be alive.

    Parameters
    ----------
    keep : int
        Number of newest snapshots that stay readable, at least 1.
    dry_run : bool
        Only say what would be removed.

    Returns
    -------
    dict
        ``snapshots_kept``, ``snapshots_removed``, ``parts_kept``, ``files_removed``, ``bytes_removed``,
        ``dry_run``.

    Raises
    ------
    ArchiveError
        If it is not an archive.
    UsageError
        If ``keep`` is less than 1.
    """
    if keep < 1:
        raise UsageError(f"--keep is {keep}; at least 1 snapshot must stay.")
    store = open_archive(url, storage_options)
    present = snapshot_ids(store)
    kept = present[-keep:]
    snapshots = [load_snapshot(store, number) for number in kept]
    parts = {part.part_id: part for snapshot in snapshots for part in snapshot.parts}
    named = {MARKER, *(snapshot_file(number) for number in kept)}
    named |= {file for snapshot in snapshots for file in cache_files(snapshot)}
    named |= {change.file for snapshot in snapshots for change in snapshot.changes if change.file}
    for part in parts.values():
        named |= {part.index_path, *(part.path(name) for name in part.tables)}
    scratch = [name for name in store.ls() if name.startswith(SCRATCH)]
    abandoned = {name for name in scratch if is_abandoned(store.join(name))}
    in_use = tuple(f"{name}/" for name in scratch if name not in abandoned)
    removable = [path for path in store.walk() if path not in named and not path.startswith(in_use)]
    # Snapshots go first: whoever opens one must find its parts.
    removable.sort(key=lambda path: (not path.startswith("snapshots/"), path))
    size = 0
    for path in removable:
        size += store.size(path)
        if not dry_run:
            store.delete(path)
    if not dry_run and store.is_local:
        for folder in abandoned:
            store.delete(folder, recursive=True)
        for folder in store.ls("parts"):
            if not store.ls(f"parts/{folder}"):
                store.delete(f"parts/{folder}", recursive=True)
    return {
        "snapshots_kept": kept,
        "snapshots_removed": [number for number in present if number not in kept],
        "parts_kept": len(parts),
        "files_removed": len(removable),
        "bytes_removed": size,
        "dry_run": dry_run,
    }
