"""The fields that every packet needs, out of decoded packets of any layout."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.cleaning import candid_from_float, clean
from applecider_batch.schema import load_table

JD_RANGE = (2_400_000.5, 2_600_000.5)
"""1858 to 2406: a date outside is no date."""

_BANDS = {"g": 1, "r": 2, "i": 3}


def fields_of(array: pa.StructArray) -> dict[str, pa.Array]:
    """Columns of a struct; a null struct has null fields."""
    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    return dict(zip(names, array.flatten(), strict=True))


def n_rows(fields: dict[str, pa.Array]) -> int:
    return len(next(iter(fields.values()))) if fields else 0


def candidate_of(top: dict[str, pa.Array]) -> dict[str, pa.Array]:
    array = top.get("candidate")
    return fields_of(array) if array is not None and pa.types.is_struct(array.type) else {}


def object_ids(top: dict[str, pa.Array]) -> pa.Array:
    n = n_rows(top)
    array = top.get("objectId", pa.nulls(n, pa.string()))
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
        return pa.nulls(n, pa.string())
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def candids(top: dict[str, pa.Array]) -> pa.Array:
    """The top-level candid, else the candidate's."""
    candidate = candidate_of(top)
    found = pa.nulls(n_rows(top), pa.int64())
    for fields in (top, candidate):
        if "candid" in fields:
            found = pc.coalesce(found, whole_candids(fields["candid"], candidate))
    return found


def whole_candids(array: pa.Array, fields: dict[str, pa.Array]) -> pa.Array:
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


def filters(fields: dict[str, pa.Array], size: int) -> pa.Array:
    """Filter number, of ``fid`` or of ``band`` (g, r, i)."""
    column = load_table("alerts").column("fid")
    fid = clean(column, fields["fid"]).array if "fid" in fields else pa.nulls(size, pa.int8())
    if "band" in fields and pa.types.is_string(fields["band"].type):
        places = pc.index_in(fields["band"], pa.array(list(_BANDS)))
        fid = pc.coalesce(fid, pa.array(list(_BANDS.values()), pa.int8()).take(places))
    return fid


def dates(fields: dict[str, pa.Array], size: int) -> tuple[np.ndarray, np.ndarray]:
    """``jd`` as float64 (NaN for none) and whether it is a date."""
    if "jd" not in fields:
        return np.full(size, np.nan), np.zeros(size, bool)
    array = clean(load_table("alerts").column("jd"), fields["jd"]).array
    jd = pc.fill_null(array, np.nan).to_numpy(zero_copy_only=False)
    return jd, (jd >= JD_RANGE[0]) & (jd <= JD_RANGE[1])
