"""Points of light curves out of decoded packets: the candidate's own, its history, forced photometry."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.cleaning import clean
from applecider_batch.archive.packet_fields import dates, fields_of, filters, whole_candids
from applecider_batch.schema import load_table

CANDIDATE, PRV_CANDIDATE, FP_HIST = 0, 1, 2
"""Codes of ``origin``."""

HISTORIES = (("prv_candidates", PRV_CANDIDATE), ("prv_nondetections", PRV_CANDIDATE), ("fp_hists", FP_HIST))

HISTORY_FIELDS = frozenset(
    """
    jd fid band pid candid tblid isdiffpos magpsf sigmapsf diffmaglim ra dec rb ssdistnr magzpsci programid
    forcediffimflux forcediffimfluxunc procstatus psfFlux psfFluxErr
    """.split()  # noqa: SIM905
)
"""What is read of a history's entries; everything else in them is in the packet that each entry came from."""


def is_history(array: pa.Array) -> bool:
    kind = array.type
    if pa.types.is_null(kind):
        return False
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and (pa.types.is_struct(kind.value_type) or pa.types.is_null(kind.value_type))


def candidate_points(columns: dict[str, pa.Array]) -> pa.Table:
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


def history_points(
    history: pa.Array, origin: int, alerts: dict[str, pa.Array], candidate: dict[str, pa.Array]
) -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray]:
    """Points of one history column, the packet of each, and per packet its entries and those left out.

    An entry without a date or a filter is left out.
    """
    schema = load_table("photometry")
    n_packets = len(history)
    parent = pc.list_parent_indices(history).to_numpy(zero_copy_only=False).astype(np.int64)
    items = pc.list_flatten(history)
    counts = np.bincount(parent, minlength=n_packets).astype(np.int32)
    fields = fields_of(items) if pa.types.is_struct(items.type) else {}
    jd, is_date = dates(fields, len(items))
    usable = is_date & filters(fields, len(items)).is_valid().to_numpy(zero_copy_only=False)
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
    columns["jd"], columns["fid"] = pa.array(jd), filters(fields, size)
    if "candid" in fields and origin != FP_HIST:
        columns["candid"] = whole_candids(fields["candid"], fields)
    if "psfFlux" in fields or "psfFluxErr" in fields:
        _add_flux_points(columns, fields, origin, _zero_points(candidate, n_packets)[parent])
    if origin == FP_HIST:
        columns.pop("ra", None), columns.pop("dec", None)
        columns["is_detection"] = _measured(columns.get("forcediffimflux"), size)
    else:
        columns["is_detection"] = _measured(columns.get("magpsf"), size)
        _recognise_candidate(columns, alerts, parent)
    for name, known in (
        ("hash64", "hash64"),
        ("objectId", "objectId"),
        ("known_jd", "jd"),
        ("known_candid", "candid"),
    ):
        columns[name] = alerts[known].take(place)
    columns["origin"] = pa.array(np.full(size, origin, np.int8))
    return schema.conform(pa.table(columns)), parent, counts, left_out


def _zero_points(candidate: dict[str, pa.Array], size: int) -> np.ndarray:
    """Zero-point of ``psfFlux`` (mag = zp - 2.5 log10 flux), from the candidate, which has both.

    Brokers that give fluxes instead of magnitudes do not state their unit.
    """
    if "psfFlux" not in candidate or "magpsf" not in candidate:
        return np.full(size, np.nan)
    flux, mag = (
        pc.fill_null(candidate[k].cast(pa.float64()), np.nan).to_numpy(False) for k in ("psfFlux", "magpsf")
    )
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


def _recognise_candidate(
    columns: dict[str, pa.Array], alerts: dict[str, pa.Array], parent: np.ndarray
) -> None:
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
