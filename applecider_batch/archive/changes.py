"""Which objects an ingest touched: what a nightly update starts from.

::

    ARCHIVE/changes/<digest>.parquet     objects with a row in the parts of one ingest: hash64, jd_latest

A snapshot names one such file for every ingest since the archive began, with the logical digest that the
archive had afterwards.  As compaction changes no logical digest and keeps the list, what is new since any
earlier state is found from the files after it, without looking into the parts.

A row of a table can also be dated after the archive's end (a light-curve table or a spectrum that is ahead of
the alerts): it is seen from the night on that reaches its date, so every file says how late its rows are.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.snapshot import ArchiveError, Change, PartRecord, Snapshot
from applecider_batch.digest import digest128
from applecider_batch.storage import Store

# Table -> when a row of it is seen first.
_SEEN = {"alerts": "jd", "photometry": "known_jd", "spectra": "jd"}


def with_change(store: Store, parent: Snapshot, new: Snapshot) -> Snapshot:
    """The successor of ``parent`` with the record of what its own parts touch, written beside it.

    An archive that began before there were such records gets one of everything it holds with its next ingest.
    """
    present = {part.part_id for part in parent.parts}
    before = parent.changes or (_record(store, parent, parent.parts),)
    fresh = [part for part in new.parts if part.part_id not in present]
    return replace(new, changes=(*before, _record(store, new, fresh)))


def _record(store: Store, snapshot: Snapshot, parts: Iterable[PartRecord]) -> Change:
    hashes, latest = _touched(store, parts)
    file, data = None, b""
    if len(hashes):
        sink = io.BytesIO()
        pq.write_table(pa.table({"hash64": hashes, "jd_latest": latest}), sink, compression="zstd")
        data = sink.getvalue()
        file = f"changes/{digest128(data)}.parquet"
        store.write_atomic(file, data)
    ahead = float(latest.max()) if len(latest) and np.isfinite(latest.max()) else None
    return Change(snapshot.logical_digest, snapshot.jd_max, file, len(hashes), len(data), ahead)


def _touched(store: Store, parts: Iterable[PartRecord]) -> tuple[np.ndarray, np.ndarray]:
    """hash64 (uint64, ascending) of all objects of some parts, and when their last row is seen (JD)."""
    found = [(np.empty(0, np.uint64), np.empty(0))]
    for record in parts:
        part = PartReader(store, record)
        for name, seen in _SEEN.items():
            index = part.index(name)
            for group in range(len(index.rows)) if index is not None else ():
                rows = part.read_groups(name, [group], ["hash64", seen])
                jd = rows.column(seen).to_numpy()
                found.append(_latest(rows.column("hash64").to_numpy(), np.where(np.isnan(jd), -np.inf, jd)))
    return _latest(*(np.concatenate(values) for values in zip(*found, strict=True)))


def _latest(hashes: np.ndarray, jd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each hash once, ascending, with its largest jd."""
    order = np.argsort(hashes, kind="stable")
    distinct, starts = np.unique(hashes[order], return_index=True)
    return distinct, np.maximum.reduceat(jd[order], starts) if len(starts) else jd


def changed_objects(store: Store, snapshot: Snapshot, logical_digest: str) -> np.ndarray:
    """hash64 of the objects that are not what they were when the archive had this digest.

    Parameters
    ----------
    snapshot : Snapshot
        The state now.
    logical_digest : str
        Of an earlier state of the same archive.

    Returns
    -------
    ndarray, uint64, ascending
        Objects with rows that came since, and those with rows that are seen only now that the archive's end
        has moved on.  Some may be unchanged after all (a packet that came twice).

    Raises
    ------
    ArchiveError
        If the archive never had this digest, or does not know what has changed since; or if its end has moved
        back (the first alerts came to an archive of light-curve tables).
    """
    if logical_digest == snapshot.logical_digest:
        return np.empty(0, np.uint64)
    states = [change.logical_digest for change in snapshot.changes]
    if logical_digest not in states:
        raise ArchiveError(
            f"The archive '{store.url}' cannot tell what has changed since it had the logical digest "
            f"{logical_digest}: it has no record of that state.",
            hint="It is another archive, or one that was written by an older version: classify it in full.",
        )
    at = states.index(logical_digest)
    before, since = snapshot.changes[: at + 1], snapshot.changes[at + 1 :]
    end, now = before[-1].jd_max, snapshot.jd_max
    if end is not None and now is not None and now < end:
        raise ArchiveError(
            f"The archive's end moved back from {end} to {now}: its first alerts have come.",
            hint="Every row has another end of its history: classify the archive in full.",
        )
    found = [np.empty(0, np.uint64), *(read_change(store, change)[0] for change in since)]
    for change in before:
        if end is not None and change.jd_latest is not None and change.jd_latest > end and now != end:
            hashes, latest = read_change(store, change)
            found.append(hashes[latest > end])
    return np.unique(np.concatenate(found))


def read_change(store: Store, change: Change) -> tuple[np.ndarray, np.ndarray]:
    """hash64 (uint64, ascending) of the objects of a change, and the JD from which their last row is seen.

    Raises
    ------
    ArchiveError
        If the file is missing, or is not the one that the snapshot names.
    """
    if change.file is None:
        return np.empty(0, np.uint64), np.empty(0)
    try:
        data = store.read_bytes(change.file)
    except FileNotFoundError:
        data = b""
    if change.file != f"changes/{digest128(data)}.parquet":
        raise ArchiveError(
            f"The file '{store.url}/{change.file}' that the snapshot names is missing or was changed.",
            hint="Without it nobody knows what has changed: classify the archive in full.",
        )
    table = pq.read_table(io.BytesIO(data))
    return table.column("hash64").to_numpy(), table.column("jd_latest").to_numpy()
