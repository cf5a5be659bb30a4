"""Packet fields to the contract's columns: types, signs and sentinels.

ZTF writes -999 where a neighbour, a solar-system match or a reference source does not exist, and -99999 in
forced photometry that failed (ZTF alert schemas 1.8 to 4.02); both are null here. Numbers that do not fit
their column are null too, and are reported so that they can be kept as text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.schema import Column

SENTINELS = (-999.0, -99999.0)
NO_SENTINEL = frozenset(
    [
        "jd",
        "ra",
        "dec",
        "xpos",
        "ypos",
        "sky",
        "scorr",
        "dsnrms",
        "ssnrms",
        "dsdiff",
        "candid",
        "pid",
        "tblid",
        "rfid",
    ]
)
"""Fields in which -999 could be a measured value, or an identifier; ra and dec are checked by their range."""


@dataclass
class Cleaned:
    """A column of the contract's type, and where a value that was given did not fit (bool, shape (n,))."""

    array: pa.Array
    misfit: np.ndarray | None = None


def clean(column: Column, values: pa.Array) -> Cleaned:
    """Bring a packet's field into its column.

    Parameters
    ----------
    column : Column
        Of the alerts or the photometry table.
    values : Array, shape (n,)
        As the packet has it, of any type.
    """
    kind = column.arrow_type
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
        return _lost(values, pa.nulls(len(values), kind))
    if column.name == "isdiffpos":
        return _lost(values, _signs(values))
    if pa.types.is_string(kind):
        return Cleaned(_texts(column.name, values))
    if not _is_number(values.type):
        numbers = _numbers_from_text(values)
        lost = _lost(values, numbers).misfit
        cleaned = clean(column, numbers)
        both = [misfit for misfit in (lost, cleaned.misfit) if misfit is not None]
        return Cleaned(cleaned.array, np.logical_or.reduce(both) if both else None)
    if pa.types.is_floating(kind):
        return _floats(column.name, values, kind)
    return _integers(column.name, values, kind)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _lost(given: pa.Array, array: pa.Array) -> Cleaned:
    """What was given and became null is a misfit."""
    misfit = pc.and_(given.is_valid(), array.is_null()).to_numpy(zero_copy_only=False)
    return Cleaned(array, misfit if misfit.any() else None)


def _signs(values: pa.Array) -> pa.Array:
    """``isdiffpos``: t, 1, true are 1; f, 0, false are -1; anything else is null."""
    if pa.types.is_boolean(values.type):
        return pc.if_else(values, pa.scalar(1, pa.int8()), pa.scalar(-1, pa.int8()))
    text = pc.utf8_lower(pc.utf8_trim_whitespace(values.cast(pa.string())))
    positive = pc.is_in(text, pa.array(["t", "1", "true", "+1", "1.0"]))
    negative = pc.is_in(text, pa.array(["f", "0", "false", "-1", "0.0"]))
    return pc.case_when(pc.make_struct(positive, negative), pa.scalar(1, pa.int8()), pa.scalar(-1, pa.int8()))


def _texts(name: str, values: pa.Array) -> pa.Array:
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), pa.string())
    text = values.cast(pa.string())
    if name == "ssnamenr":  # ZTF writes the word
        return pc.if_else(pc.is_in(text, pa.array(["null", "", "None"])), pa.scalar(None, pa.string()), text)
    return text


def _numbers_from_text(values: pa.Array) -> pa.Array:
    """Numbers written as text; what is no number becomes null."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return pa.nulls(len(values), pa.float64())
    numbers = []
    for text in values.to_pylist():
        try:
            numbers.append(None if text is None else float(text))
        except ValueError:
            numbers.append(None)
    return pa.array(numbers, pa.float64())


def _floats(name: str, values: pa.Array, kind: pa.DataType) -> Cleaned:
    array = values.cast(kind, safe=False)
    if name not in NO_SENTINEL:
        is_sentinel = pc.is_in(array, pa.array(SENTINELS, kind))
        array = pc.if_else(is_sentinel, pa.scalar(None, kind), array)
    if name in ("ra", "dec"):
        low, high = (0.0, 360.0) if name == "ra" else (-90.0, 90.0)
        fits = pc.and_(pc.greater_equal(array, low), pc.less_equal(array, high))  # NaN does not
        misfit = pc.and_(array.is_valid(), pc.invert(pc.fill_null(fits, False))).to_numpy(
            zero_copy_only=False
        )
        if misfit.any():
            return Cleaned(pc.if_else(pa.array(misfit), pa.scalar(None, kind), array), misfit)
    return Cleaned(array)


def _integers(name: str, values: pa.Array, kind: pa.DataType) -> Cleaned:
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(values.type):
        raw = pc.fill_null(values, 0.0).cast(pa.float64()).to_numpy(zero_copy_only=False)
        valid &= ~np.isnan(raw)
        inside = valid & (np.abs(raw) < 2.0**63) & (raw == np.floor(raw))
        numbers = np.where(inside, raw, 0).astype(np.int64)
    elif pa.types.is_uint64(values.type):
        raw = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
        inside = valid & (raw < 2**63)
        numbers = np.where(inside, raw, 0).astype(np.int64)
    else:
        numbers = pc.fill_null(values, False if pa.types.is_boolean(values.type) else 0)
        numbers = numbers.cast(pa.int64()).to_numpy(zero_copy_only=False)
        inside = valid
    if name not in NO_SENTINEL:
        absent = np.isin(numbers, [int(s) for s in SENTINELS]) & valid
        valid, inside = valid & ~absent, inside & ~absent
    limits = np.iinfo(kind.to_pandas_dtype())
    inside = inside & (numbers >= limits.min) & (numbers <= limits.max)
    misfit = valid & ~inside
    array = pa.array(np.where(inside, numbers, 0), pa.int64(), mask=~inside).cast(kind)
    return Cleaned(array, misfit if misfit.any() else None)


def candid_from_float(values: np.ndarray, tblid: np.ndarray, pid: np.ndarray) -> np.ndarray:
    """Restore candids that a table stored as float64, which keeps only 53 of their 62 bits.

    A candid is pid (13 digits), three digits and the three digits of tblid, so the float (known to 512) and
    tblid leave one value.

    Parameters
    ----------
    values : ndarray, float64, shape (n,)
    tblid, pid : ndarray, int64, shape (n,)

    Returns
    -------
    ndarray, int64, shape (n,)
        0 where nothing fits.
    """
    given = np.isfinite(values) & (np.abs(values) < 2.0**63)
    near = np.where(given, values, 0.0).astype(np.int64)
    exact = (near - tblid + 500) // 1000 * 1000 + tblid
    fits = given & (exact.astype(np.float64) == values) & (exact // 1_000_000 == pid)
    small = given & (np.abs(values) < 2.0**53) & (values == np.floor(values))
    return np.where(fits, exact, np.where(small, near, 0))
