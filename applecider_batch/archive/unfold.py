"""Decoded packets (Arrow columns in the packet's own layout) to rows of the alerts and photometry tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.avro_records import to_json
from applecider_batch.archive.cleaning import candid_from_float, clean
from applecider_batch.archive.stamps import DecodedStamps
from applecider_batch.digest import hash64
from applecider_batch.schema import load_table

CANDIDATE, PRV_CANDIDATE, FP_HIST = 0, 1, 2
"""Codes of ``origin``."""

HISTORIES = (("prv_candidates", PRV_CANDIDATE), ("prv_nondetections", PRV_CANDIDATE), ("fp_hists", FP_HIST))

HISTORY_FIELDS = frozenset(
    "jd fid band pid candid tblid isdiffpos magpsf sigmapsf diffmaglim ra dec rb ssdistnr magzpsci programid "
    "forcediffimflux forcediffimfluxunc procstatus psfFlux psfFluxErr".split()
)
"""What is read of a history's entries; everything else in them is in the packet that each entry came from."""

JD_RANGE = (2_400_000.5, 2_600_000.5)
"""1858 to 2406: a date outside is no date."""

_BANDS = {"g": 1, "r": 2, "i": 3}
_TOP_FIELDS = frozenset(
    ["objectId", "candid", "candidate", "schemavsn", "publisher", *(name for name, _ in HISTORIES)]
)
_COPIED = frozenset(
    "hash64 objectId candid isdiffpos extra n_prv n_fp stamp_status completeness packet_digest source_id "
    "schemavsn publisher fid".split()
)
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
    top = _fields(packets)
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
    top = _fields(packets.slice(row, 1))
    candid, name = _candid(top).to_pylist()[0], _object_id(top).to_pylist()[0]
    return candid, name


def _fields(array: pa.StructArray) -> dict[str, pa.Array]:
    """Columns of a struct; a null struct has null fields."""
    return {array.type.field(i).name: pc.struct_field(array, [i]) for i in range(array.type.num_fields)}


def _length(fields: dict[str, pa.Array]) -> int:
    return len(next(iter(fields.values()))) if fields else 0


def _candidate(top: dict[str, pa.Array]) -> dict[str, pa.Array]:
    array = top.get("candidate")
    return _fields(array) if array is not None and pa.types.is_struct(array.type) else {}


def _object_id(top: dict[str, pa.Array]) -> pa.Array:
    n = _length(top)
    array = top.get("objectId", pa.nulls(n, pa.string()))
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
        return pa.nulls(n, pa.string())
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _candid(top: dict[str, pa.Array]) -> pa.Array:
    """The top-level candid, else the candidate's."""
    candidate = _candidate(top)
    found = pa.nulls(_length(top), pa.int64())
    for fields in (top, candidate):
        if "candid" in fields:
            found = pc.coalesce(found, _whole_candid(fields["candid"], candidate))
    return found


def _whole_candid(array: pa.Array, fields: dict[str, pa.Array]) -> pa.Array:
    """candid as int64; a float column is restored with the help of tblid and pid."""
    if not pa.types.is_floating(array.type):
        return clean(load_table("alerts").column("candid"), array).array
    values = pc.fill_null(array.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
    tblid, pid = (_int_column(fields, name, len(array)) for name in ("tblid", "pid"))
    exact = candid_from_float(values, tblid, pid)
    return pa.array(exact, mask=exact == 0)


def _int_column(fields: dict[str, pa.Array], name: str, size: int) -> np.ndarray:
    if name not in fields:
        return np.full(size, -1, np.int64)
    array = clean(load_table("alerts").column(name), fields[name]).array
    return pc.fill_null(array.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)


def _fid(fields: dict[str, pa.Array], size: int) -> pa.Array:
    """Filter number, of ``fid`` or of ``band`` (g, r, i)."""
    column = load_table("alerts").column("fid")
    fid = clean(column, fields["fid"]).array if "fid" in fields else pa.nulls(size, pa.int8())
    if "band" in fields and pa.types.is_string(fields["band"].type):
        places = pc.index_in(fields["band"], pa.array(list(_BANDS)))
        fid = pc.coalesce(fid, pa.array(list(_BANDS.values()), pa.int8()).take(places))
    return fid


def _dates(fields: dict[str, pa.Array], size: int) -> tuple[np.ndarray, np.ndarray]:
    """``jd`` as float64 (NaN for none) and whether it is a date."""
    if "jd" not in fields:
        return np.full(size, np.nan), np.zeros(size, bool)
    array = clean(load_table("alerts").column("jd"), fields["jd"]).array
    jd = pc.fill_null(array, np.nan).to_numpy(zero_copy_only=False)
    return jd, (jd >= JD_RANGE[0]) & (jd <= JD_RANGE[1])


def _reject(top: dict[str, pa.Array], size: int) -> list[Rejected]:
    """Packets without what a row needs."""
    candidate = _candidate(top)
    if not candidate:
        return [Rejected(i, "missing_field", "The packet has no 'candidate' record.") for i in range(size)]
    jd, is_date = _dates(candidate, size)
    checks = [
        (top["candidate"].is_null(), "missing_field", "The packet has no 'candidate' record."),
        (_object_id(top).is_null(), "missing_field", "The packet has no objectId."),
        (_candid(top).is_null(), "missing_field", "The packet has no candid."),
        (pa.array(np.isnan(jd)), "missing_field", "The packet's candidate has no jd."),
        (pa.array(~is_date), "bad_value", "The packet's candidate.jd {jd!r} is not a Julian date of 1858 to 2406."),
        (_fid(candidate, size).is_null(), "missing_field", "The packet's candidate has no filter (fid)."),
    ]
    found: dict[int, Rejected] = {}
    for mask, reason, message in checks:
        for i in np.flatnonzero(mask.to_numpy(zero_copy_only=False)):
            found.setdefault(int(i), Rejected(int(i), reason, message.format(jd=float(jd[i]))))
    return [found[i] for i in sorted(found)]


def _rows(
    top: dict[str, pa.Array], digests: list[str], stamps: DecodedStamps, index: np.ndarray, source_id: str
) -> tuple[pa.Table, pa.Table, np.ndarray]:
    schema = load_table("alerts")
    size = len(index)
    candidate = _candidate(top)
    extras = _Extras(size)
    columns: dict[str, pa.Array] = {"objectId": _object_id(top), "candid": _candid(top), "fid": _fid(candidate, size)}
    columns["hash64"] = pa.array(hash64(columns["objectId"]), pa.uint64())
    for column in schema.columns:
        if column.name in candidate and (column.name not in _COPIED or column.name == "isdiffpos"):
            cleaned = clean(column, candidate[column.name])
            columns[column.name] = cleaned.array
            extras.add_misfits("candidate", column.name, candidate[column.name], cleaned.misfit)
    for name in ("schemavsn", "publisher"):
        if name in top:
            columns[name] = clean(schema.column(name), top[name]).array
    known = set(schema.names) - (_COPIED - {"isdiffpos", "fid"}) | {"candid"}
    for name, array in candidate.items():
        if name not in known:
            extras.add("candidate", name, array)
    if "candid" in candidate and "candid" in top:
        inner = _whole_candid(candidate["candid"], candidate)
        differs = pc.fill_null(pc.not_equal(inner, columns["candid"]), False).to_numpy(zero_copy_only=False)
        extras.add_misfits("candidate", "candid", inner, differs)
    for name, array in top.items():
        if name not in _TOP_FIELDS:
            extras.add(None, name, array)

    points, owners = [_candidate_points(columns)], [np.arange(size)]
    counts = {}
    for name, origin in HISTORIES:
        counts[name] = np.zeros(size, np.int32)
        if name in top and _is_history(top[name]):
            table, owner, counts[name], left_out = _history_points(top[name], origin, columns, candidate)
            points.append(table)
            owners.append(owner)
            extras.add_counts(f"{name}_left_out", left_out)
        elif name in top:
            extras.add(None, name, top[name])
    n_prv = counts["prv_candidates"] + counts["prv_nondetections"]
    n_fp = counts["fp_hists"]
    n_stamps = stamps.n_decoded[index]
    columns["n_prv"], columns["n_fp"] = pa.array(n_prv, pa.int32()), pa.array(n_fp, pa.int32())
    columns["stamp_status"] = pa.array(stamps.status[index], pa.int16())
    columns["completeness"] = pa.array(completeness(n_stamps, n_fp, n_prv), pa.int32())
    columns["packet_digest"] = pa.array(digests, pa.string())
    columns["source_id"] = pa.array([source_id] * size, pa.string())
    columns["extra"] = extras.to_arrow()
    return schema.conform(pa.table(columns)), pa.concat_tables(points), np.concatenate(owners)


def completeness(n_stamps: np.ndarray, n_fp: np.ndarray, n_prv: np.ndarray) -> np.ndarray:
    """Rank of a packet among those of its candid: stamps first, then forced photometry, then history.

    Two bits of decoded stamps (0 to 3), 14 bits of forced points, 14 bits of history entries; int32, shape (n,).
    """
    stamps = n_stamps.astype(np.int32) << 28
    return stamps | np.minimum(n_fp, _MAX_COUNT).astype(np.int32) << 14 | np.minimum(n_prv, _MAX_COUNT)


def _is_history(array: pa.Array) -> bool:
    kind = array.type
    if pa.types.is_null(kind):
        return False
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and pa.types.is_struct(kind.value_type)


def _candidate_points(columns: dict[str, pa.Array]) -> pa.Table:
    schema = load_table("photometry")
    size = len(columns["candid"])
    own = {name: columns[name] for name in schema.names if name in columns}
    own["origin"] = pa.array(np.full(size, CANDIDATE, np.int8))
    own["known_jd"], own["known_candid"] = columns["jd"], columns["candid"]
    own["is_detection"] = _measured(columns.get("magpsf"), size)
    return schema.conform(pa.table(own))


def _measured(array: pa.Array | None, size: int) -> pa.Array:
    """Where a magnitude or flux is a finite number."""
    if array is None:
        return pa.array(np.zeros(size, bool))
    return pc.fill_null(pc.is_finite(array), False)


def _history_points(
    history: pa.Array, origin: int, alerts: dict[str, pa.Array], candidate: dict[str, pa.Array]
) -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray]:
    """Points of one history column, the packet of each, entries and entries left out (no date or filter), (n,)."""
    schema = load_table("photometry")
    n_packets = len(history)
    parent = pc.list_parent_indices(history).to_numpy(zero_copy_only=False).astype(np.int64)
    items = pc.list_flatten(history)
    counts = np.bincount(parent, minlength=n_packets).astype(np.int32)
    fields = _fields(items)
    jd, is_date = _dates(fields, len(items))
    usable = is_date & _fid(fields, len(items)).is_valid().to_numpy(zero_copy_only=False)
    left_out = np.bincount(parent[~usable], minlength=n_packets).astype(np.int32)
    if left_out.any():
        chosen = pa.array(np.flatnonzero(usable))
        fields = {name: array.take(chosen) for name, array in fields.items()}
        parent, jd = parent[usable], jd[usable]
    size = len(parent)
    place = pa.array(parent)
    columns: dict[str, pa.Array] = {
        name: clean(schema.column(name), fields[name]).array
        for name in schema.names
        if name in fields and name not in ("candid", "fid", "jd")
    }
    columns["jd"], columns["fid"] = pa.array(jd), _fid(fields, size)
    if "candid" in fields and origin != FP_HIST:
        columns["candid"] = _whole_candid(fields["candid"], fields)
    if "psfFlux" in fields or "psfFluxErr" in fields:
        _add_flux_points(columns, fields, origin, _zero_points(candidate, n_packets)[parent])
    if origin == FP_HIST:
        columns.pop("ra", None), columns.pop("dec", None)
        columns["is_detection"] = _measured(columns.get("forcediffimflux"), size)
    else:
        columns["is_detection"] = _measured(columns.get("magpsf"), size)
        _recognise_candidate(columns, alerts, parent)
    for name, known in (("hash64", "hash64"), ("objectId", "objectId"), ("known_jd", "jd"), ("known_candid", "candid")):
        columns[name] = alerts[known].take(place)
    columns["origin"] = pa.array(np.full(size, origin, np.int8))
    return schema.conform(pa.table(columns)), parent, counts, left_out


def _zero_points(candidate: dict[str, pa.Array], size: int) -> np.ndarray:
    """Zero-point of ``psfFlux`` (mag = zp - 2.5 log10 flux), from the candidate, which has both; NaN for none.

    Brokers that give fluxes instead of magnitudes do not state their unit.
    """
    if "psfFlux" not in candidate or "magpsf" not in candidate:
        return np.full(size, np.nan)
    flux, mag = (pc.fill_null(candidate[k].cast(pa.float64()), np.nan).to_numpy(False) for k in ("psfFlux", "magpsf"))
    with np.errstate(divide="ignore", invalid="ignore"):
        zero_point = mag + 2.5 * np.log10(np.abs(flux))
    return np.where(np.isfinite(zero_point), zero_point, np.nan)


def _add_flux_points(
    columns: dict[str, pa.Array], fields: dict[str, pa.Array], origin: int, zero_point: np.ndarray
) -> None:
    """Magnitudes, limits or forced fluxes of points given as ``psfFlux`` and ``psfFluxErr`` (BABAMUL)."""
    size = len(zero_point)
    blank = pa.nulls(size, pa.float64())
    flux, error = (
        pc.fill_null(fields.get(name, blank).cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        for name in ("psfFlux", "psfFluxErr")
    )

    def column(values: np.ndarray, name: str) -> None:
        given = columns.get(name, pa.nulls(size, pa.float32()))
        made = pa.array(values.astype(np.float32), mask=~np.isfinite(values))
        columns[name] = pc.coalesce(given, made)

    with np.errstate(divide="ignore", invalid="ignore"):
        if origin == FP_HIST:
            column(flux, "forcediffimflux")
            column(error, "forcediffimfluxunc")
            column(zero_point, "magzpsci")
            return
        column(zero_point - 2.5 * np.log10(np.abs(flux)), "magpsf")
        column(2.5 / np.log(10.0) * error / np.abs(flux), "sigmapsf")
        limit = np.where(np.isfinite(flux), np.nan, zero_point - 2.5 * np.log10(5.0 * error))
        column(limit, "diffmaglim")
    sign = pa.array(np.sign(np.nan_to_num(flux)).astype(np.int8), mask=~(np.abs(flux) > 0))
    columns["isdiffpos"] = pc.coalesce(columns.get("isdiffpos", pa.nulls(size, pa.int8())), sign)


def _recognise_candidate(columns: dict[str, pa.Array], alerts: dict[str, pa.Array], parent: np.ndarray) -> None:
    """Give a history's copy of the packet's own candidate its candid, so that it is not counted twice.

    Only where the history has no candid: same date, filter and position.
    """
    size = len(parent)
    place = pa.array(parent)
    candid = columns.get("candid", pa.nulls(size, pa.int64()))
    same = pc.and_(candid.is_null(), columns["is_detection"])
    for name in ("jd", "fid", "ra", "dec"):
        if name not in columns or name not in alerts:
            return
        same = pc.and_(same, pc.fill_null(pc.equal(columns[name], alerts[name].take(place)), False))
    if not pc.any(same).as_py():
        return
    for name in ("candid", "pid"):
        if name in alerts:
            given = columns.get(name, pa.nulls(size, pa.int64()))
            columns[name] = pc.if_else(same, alerts[name].take(place), given)


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
