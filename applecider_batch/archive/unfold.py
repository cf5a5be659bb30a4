"""Decoded packets (Arrow columns in the packet's own layout) to rows of the alerts and photometry tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.avro_records import to_json
from applecider_batch.archive.cleaning import clean
from applecider_batch.archive.history import HISTORIES, candidate_points, history_points, is_history
from applecider_batch.archive.packet_fields import (
    candidate_of,
    candids,
    dates,
    fields_of,
    filters,
    n_rows,
    object_ids,
    whole_candids,
)
from applecider_batch.archive.stamp_batches import DecodedStamps
from applecider_batch.digest import hash64
from applecider_batch.schema import load_table

_TOP_FIELDS = frozenset(
    ["objectId", "candid", "candidate", "schemavsn", "publisher", *(name for name, _ in HISTORIES)]
)
_OWN = frozenset(
    """
    hash64 objectId candid fid schemavsn publisher extra n_prv n_fp stamp_status completeness packet_digest
    source_id
    """.split()  # noqa: SIM905
)
"""Columns of alerts that are not simply a field of ``candidate``."""

_MAX_COUNT = (1 << 14) - 1


@dataclass
class Rejected:
    """A packet that was decoded but cannot be a row."""

    index: int
    reason: str
    message: str


@dataclass
class Unfolded:
    """Rows of n decoded packets.

    Attributes
    ----------
    alerts, photometry : Table
    owner : ndarray, int64
        Row of ``alerts`` that each row of ``photometry`` belongs to.
    index : ndarray, int64
        Packets that became alerts, in order.
    rejected : list of Rejected
    """

    alerts: pa.Table
    photometry: pa.Table
    owner: np.ndarray
    index: np.ndarray
    rejected: list[Rejected]


def unfold(packets: pa.StructArray, digests: list[str], stamps: DecodedStamps, source_id: str) -> Unfolded:
    """Make rows of decoded packets.

    Parameters
    ----------
    packets : StructArray, shape (n,)
        Top-level fields of the packets, without stamps.
    digests : list of str, length n
        ``packet_digest`` of each.
    stamps : DecodedStamps
        Of the n packets.
    source_id : str

    Returns
    -------
    Unfolded
        ``alerts`` in schema alerts, one row a packet; ``photometry`` in schema photometry: the candidate's
        point, ``prv_candidates``, ``prv_nondetections`` as upper limits, ``fp_hists``.
    """
    top = fields_of(packets)
    rejected = _reject(top, len(packets))
    bad = {entry.index for entry in rejected}
    index = np.array([i for i in range(len(packets)) if i not in bad], np.int64)
    if not len(index):
        empty = load_table("alerts").empty(), load_table("photometry").empty()
        return Unfolded(*empty, index, index, rejected)
    if bad:
        top = {name: array.take(pa.array(index)) for name, array in top.items()}
    rows = _rows(top, [digests[i] for i in index], stamps, index, source_id)
    return Unfolded(*rows, index, rejected)


def identity(packets: pa.StructArray, row: int) -> tuple[int | None, str | None]:
    """candid and objectId of a decoded packet, where it says them."""
    top = fields_of(packets.slice(row, 1))
    if not top:
        return None, None
    candid, name = candids(top).to_pylist()[0], object_ids(top).to_pylist()[0]
    return candid, name


def _reject(top: dict[str, pa.Array], size: int) -> list[Rejected]:
    """Packets without what a row needs."""
    candidate = candidate_of(top)
    if not candidate:
        return [Rejected(i, "missing_field", "The packet has no 'candidate' record.") for i in range(size)]
    jd, is_date = dates(candidate, size)
    name = object_ids(top)
    checks = [
        (top["candidate"].is_null(), "missing_field", "The packet has no 'candidate' record."),
        (name.is_null(), "missing_field", "The packet has no objectId."),
        (pc.match_substring(name, "\ufffd"), "bad_value", "The packet's objectId is not text."),
        (candids(top).is_null(), "missing_field", "The packet has no candid."),
        (pa.array(np.isnan(jd)), "missing_field", "The packet's candidate has no jd."),
        (
            pa.array(~is_date),
            "bad_value",
            "The packet's candidate.jd {jd!r} is not a Julian date of 1858 to 2406.",
        ),
        (filters(candidate, size).is_null(), "missing_field", "The packet's candidate has no filter (fid)."),
    ]
    found: dict[int, Rejected] = {}
    for mask, reason, message in checks:
        for i in np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)):
            found.setdefault(int(i), Rejected(int(i), reason, message.format(jd=float(jd[i]))))
    return [found[i] for i in sorted(found)]


def _rows(
    top: dict[str, pa.Array], digests: list[str], stamps: DecodedStamps, index: np.ndarray, source_id: str
) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """Alerts, points and the alert of each point, for packets that have passed :func:`_reject`."""
    size = len(index)
    candidate = candidate_of(top)
    extras = _Extras(size)
    columns = _alert_columns(top, candidate, extras)
    points, owners = [candidate_points(columns)], [np.arange(size)]
    counts = {name: np.zeros(size, np.int32) for name, _ in HISTORIES}
    for name, origin in HISTORIES:
        if name in top and is_history(top[name]):
            table, owner, counts[name], left_out = history_points(top[name], origin, columns, candidate)
            points.append(table)
            owners.append(owner)
            extras.add_counts(f"{name}_left_out", left_out)
        elif name in top:
            extras.add(None, name, top[name])
    n_prv = counts["prv_candidates"] + counts["prv_nondetections"]
    n_fp = counts["fp_hists"]
    rank = completeness(stamps.n_decoded[index], n_fp, n_prv)
    columns |= {
        "n_prv": pa.array(n_prv, pa.int32()),
        "n_fp": pa.array(n_fp, pa.int32()),
        "stamp_status": pa.array(stamps.status[index], pa.int16()),
        "completeness": pa.array(rank, pa.int32()),
        "packet_digest": pa.array(digests, pa.string()),
        "source_id": pa.array([source_id] * size, pa.string()),
        "extra": extras.to_arrow(),
    }
    alerts = load_table("alerts").conform(pa.table(columns))
    return alerts, pa.concat_tables(points), np.concatenate(owners)


def _alert_columns(
    top: dict[str, pa.Array], candidate: dict[str, pa.Array], extras: _Extras
) -> dict[str, pa.Array]:
    """The columns that are in the packets; what has no column or does not fit goes to ``extras``."""
    schema = load_table("alerts")
    size = n_rows(top)
    names = object_ids(top)
    columns = {
        "hash64": pa.array(hash64(names), pa.uint64()),
        "objectId": names,
        "candid": candids(top),
        "fid": filters(candidate, size),
    }
    for column in schema.columns:
        if column.name in candidate and column.name not in _OWN:
            cleaned = clean(column, candidate[column.name])
            columns[column.name] = cleaned.array
            extras.add_misfits("candidate", column.name, candidate[column.name], cleaned.misfit)
    for name in ("schemavsn", "publisher"):
        if name in top:
            columns[name] = clean(schema.column(name), top[name]).array
    for name, array in candidate.items():
        if name not in columns:
            extras.add("candidate", name, array)
    if "candid" in candidate and "candid" in top:
        inner = whole_candids(candidate["candid"], candidate)
        differs = pc.fill_null(pc.not_equal(inner, columns["candid"]), False)
        extras.add_misfits("candidate", "candid", inner, differs.to_numpy(zero_copy_only=False))
    for name, array in top.items():
        if name not in _TOP_FIELDS:
            extras.add(None, name, array)
    return columns


def completeness(n_stamps: np.ndarray, n_fp: np.ndarray, n_prv: np.ndarray) -> np.ndarray:
    """Rank of a packet among those of its candid: stamps first, then forced photometry, then history.

    Two bits of decoded stamps, 14 bits of forced points, 14 bits of history entries; int32, shape (n,).
    """
    stamps = n_stamps.astype(np.int32) << 28
    return stamps | np.minimum(n_fp, _MAX_COUNT).astype(np.int32) << 14 | np.minimum(n_prv, _MAX_COUNT)


class _Extras:
    """What a packet holds and no column has: one JSON object per row."""

    def __init__(self, size: int) -> None:
        self.rows: list[dict[str, Any] | None] = [None] * size

    def put(self, row: int, group: str | None, name: str, value: Any) -> None:
        entry = self.rows[row]
        if entry is None:
            entry = self.rows[row] = {}
        (entry if group is None else entry.setdefault(group, {}))[name] = value

    def add(self, group: str | None, name: str, array: pa.Array) -> None:
        if array.null_count == len(array):
            return
        for row, value in enumerate(_to_python(array)):
            if value is not None:
                self.put(row, group, name, value)

    def add_misfits(self, group: str, name: str, array: pa.Array, misfit: np.ndarray | None) -> None:
        if misfit is not None:
            for row in np.flatnonzero(misfit):
                self.put(int(row), group, name, _to_python(array.slice(int(row), 1))[0])

    def add_counts(self, name: str, counts: np.ndarray) -> None:
        for row in np.flatnonzero(counts):
            self.put(int(row), None, name, int(counts[row]))

    def to_arrow(self) -> pa.Array:
        return pa.array([None if row is None else to_json(row) for row in self.rows], pa.string())


def _to_python(array: pa.Array) -> list[Any]:
    if pa.types.is_temporal(array.type):
        array = array.cast(pa.string())
    values: list[Any] = array.to_pylist()
    if pa.types.is_map(array.type):
        return [None if value is None else dict(value) for value in values]
    return values
