"""Light-curve tables in long format (one row a point) to the contract's photometry.

Columns are found by name, whatever their case; the first alias that is there wins:

===============  ====================================================================================
objectId         objectId, object_id, oid, ztf_id, ztfid, object, object_name, name, snname
jd               jd, jd_obs
mjd              mjd, mjd_obs, obsmjd (jd = mjd + 2400000.5)
fid              band, fid, filter, filtercode, passband: g r i, 1 2 3, ztfg, ztf_g, zg, p48g
magpsf           mag, magpsf, magnitude, mag_psf
sigmapsf         mag_err, sigmapsf, magerr, magpsf_err, mag_error, e_mag, emag, dmag
diffmaglim       limiting_mag, diffmaglim, limmag, lim_mag, maglim, mag_limit
flux_ujy         flux_uJy, flux_microjy, forced_flux_ujy
flux_err_ujy     flux_err_uJy, fluxerr_uJy, flux_unc_uJy, flux_error_uJy
isdiffpos        isdiffpos, is_diff_pos (t, true, 1: 1; f, false, 0, -1: -1)
is_detection     is_detection, detection, detected; or the opposite: upperlimit, upper_limit, is_upperlimit
ra, dec, survey  of the same names (survey: null for ZTF)
===============  ====================================================================================

Also ALeRCE's ``.dat`` exports: the object in ``# SNNAME:``, the band in ``# FILTER g``, limits flagged T.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from applecider_batch.archive.table_files import MISSING_WORDS, RawTable, bare_name, numbers
from applecider_batch.archive.table_rejects import Rejects
from applecider_batch.digest import hash64
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table

ORIGIN_TABLE = 3
MJD_TO_JD = 2400000.5
DETECTION_SNR = 5.0  # where a table of fluxes does not say what is a detection: as diffmaglim, five sigma
ZERO_POINT_UJY = 23.9
JD_RANGE = (2_400_000.5, 2_500_000.0)
MAG_RANGE = (0.0, 40.0)

ALIASES: dict[str, tuple[str, ...]] = {
    "objectId": (
        "objectId",
        "object_id",
        "oid",
        "ztf_id",
        "ztfid",
        "object",
        "object_name",
        "name",
        "snname",
    ),
    "jd": ("jd", "jd_obs"),
    "mjd": ("mjd", "mjd_obs", "obsmjd"),
    "fid": ("band", "fid", "filter", "filtercode", "passband"),
    "magpsf": ("mag", "magpsf", "magnitude", "mag_psf"),
    "sigmapsf": ("mag_err", "sigmapsf", "magerr", "magpsf_err", "mag_error", "e_mag", "emag", "dmag"),
    "diffmaglim": ("limiting_mag", "diffmaglim", "limmag", "lim_mag", "maglim", "mag_limit"),
    "flux_ujy": ("flux_uJy", "flux_microjy", "forced_flux_ujy"),
    "flux_err_ujy": ("flux_err_uJy", "fluxerr_uJy", "flux_unc_uJy", "flux_error_uJy"),
    "isdiffpos": ("isdiffpos", "is_diff_pos"),
    "is_detection": ("is_detection", "detection", "detected"),
    "is_limit": ("upperlimit", "upper_limit", "is_upperlimit", "is_upper_limit"),
    "ra": ("ra",),
    "dec": ("dec",),
    "survey": ("survey",),
}
_KNOWN = frozenset(alias.lower() for aliases in ALIASES.values() for alias in aliases)
_BANDS = {
    spelling: fid
    for fid, band in ((1, "g"), (2, "r"), (3, "i"))
    for spelling in (
        str(fid),
        band,
        f"ztf{band}",
        f"ztf_{band}",
        f"ztf-{band}",
        f"ztf {band}",
        f"z{band}",
        f"p48{band}",
    )
}
_TRUE, _FALSE = ("t", "true", "1", "+1", "yes", "y"), ("f", "false", "0", "-1", "no", "n")
ZTF_NAME = re.compile(r"ZTF\d{2}[a-z]{7}")


def is_known(name: str) -> bool:
    """Whether a column of this name is one of the aliases."""
    return bare_name(name) in _KNOWN


class _Rows:
    """What is wrong with which row: the first complaint about a row stays."""

    def __init__(self, n: int) -> None:
        self.bad = np.zeros(n, bool)
        self.why: dict[int, tuple[str, str]] = {}

    def refuse(self, where: np.ndarray, reason: str, message: Callable[[int], str]) -> None:
        """Refuse the rows where ``where`` (n,) bool is true and nothing was said before."""
        for i in np.flatnonzero(where & ~self.bad).tolist():
            self.why[i] = (reason, message(i))
        self.bad |= where


def photometry_of(raw: RawTable, file_name: str, rejects: Rejects) -> pa.Table:
    """Points of a light-curve table.

    Parameters
    ----------
    raw : RawTable
        The file's columns.
    file_name : str
        Its name; holds the object where neither a column nor the header does.
    rejects : Rejects
        Takes every row that cannot be used: rows in = rows returned + rows rejected.

    Returns
    -------
    Table
        Schema ``photometry``: origin 3, known_jd = jd, in the file's order.

    Raises
    ------
    UserError
        If there is no column for time, band or any measurement, or a column holds lists.
    """
    found = {key: raw.find(aliases) for key, aliases in ALIASES.items()}
    _check_columns(raw, found, file_name)
    rows = _Rows(raw.table.num_rows)
    ids = _object_ids(raw, found["objectId"], file_name, rows)
    jd = _times(raw, found, rows)
    fid = _bands(raw, found["fid"], rows)
    value = {
        key: _floats(raw, found[key], rows)
        for key in ("magpsf", "sigmapsf", "diffmaglim", "flux_ujy", "flux_err_ujy", "ra", "dec")
    }
    detected = _flags(raw, found["is_detection"], rows)
    limit = _flags(raw, found["is_limit"], rows)
    detected = np.where(np.isnan(detected), 1 - limit, detected)
    sign = 2 * _flags(raw, found["isdiffpos"], rows) - 1
    is_detection = _settle(value, detected, sign, rows)
    survey = raw.texts(found["survey"]) if found["survey"] else [None] * rows.bad.size

    for label, message in raw.rejected:
        rejects.add(label, "bad_value", f"{label} of '{file_name}': {message}.")
    for i, (reason, message) in sorted(rows.why.items()):
        rejects.add(raw.labels[i], reason, f"{raw.labels[i]} of '{file_name}': {message}.", object_id=ids[i])

    good = np.flatnonzero(~rows.bad)
    object_id = pa.array([ids[i] for i in good], pa.string())

    def floats(key: str) -> pa.Array:
        return pa.array(value[key][good], pa.float64(), from_pandas=True)

    columns = {
        "hash64": pa.array(hash64(object_id)),
        "objectId": object_id,
        "jd": pa.array(jd[good]),
        "fid": pa.array(fid[good].astype(np.int8)),
        "origin": pa.array(np.full(len(good), ORIGIN_TABLE, np.int8)),
        "known_jd": pa.array(jd[good]),
        "is_detection": pa.array(is_detection[good]),
        "isdiffpos": pa.array(sign[good], pa.float64(), from_pandas=True).cast(pa.int8()),
        **{key: floats(key) for key in value},
        "survey": pa.array([_other_survey(survey[i]) for i in good], pa.string()),
    }
    return load_table("photometry").conform(pa.table(columns))


def _check_columns(raw: RawTable, found: dict[str, str | None], file_name: str) -> None:
    missing = [
        " or ".join(keys)
        for keys in (("jd", "mjd"), ("fid",), ("magpsf", "diffmaglim", "flux_ujy"))
        if not any(found[k] for k in keys)
    ]
    if missing:
        raise UserError(
            f"The light-curve table '{file_name}' has no column for {', '.join(missing)}; it has "
            f"{raw.table.column_names}.",
            hint="Rename them, for example to objectId, mjd, band, mag, mag_err, limiting_mag.",
        )
    lists = [
        name for name in found.values() if name and pa.types.is_nested(raw.table.schema.field(name).type)
    ]
    if lists:
        raise UserError(
            f"The light-curve table '{file_name}' holds lists in {', '.join(lists)}; a point is one row."
        )


def _object_ids(raw: RawTable, column: str | None, file_name: str, rows: _Rows) -> list[str | None]:
    if column is not None:
        ids = raw.texts(column)
    else:
        in_name = ZTF_NAME.search(file_name)
        name = next(
            (raw.header[k] for k in ("snname", "objectid", "object", "oid", "name") if k in raw.header), None
        )
        name = name or (in_name[0] if in_name else None)
        if name is None:
            raise UserError(
                f"The light-curve table '{file_name}' names no object: neither a column "
                f"({', '.join(ALIASES['objectId'])}), nor its header, nor the file's name."
            )
        ids = [name] * raw.table.num_rows
    rows.refuse(np.array([i is None for i in ids], bool), "missing_field", lambda _: "no object name")
    return ids


def _times(raw: RawTable, found: dict[str, str | None], rows: _Rows) -> np.ndarray:
    jd = np.full(rows.bad.size, np.nan)
    for key, shift in (("jd", 0.0), ("mjd", MJD_TO_JD)):
        if found[key]:
            jd = np.where(np.isnan(jd), _floats(raw, found[key], rows) + shift, jd)
    rows.refuse(np.isnan(jd), "missing_field", lambda _: "no time")
    with np.errstate(invalid="ignore"):
        outside = ~((jd >= JD_RANGE[0]) & (jd <= JD_RANGE[1]))
    low, high = JD_RANGE
    rows.refuse(
        outside, "bad_value", lambda i: f"the time {jd[i]:.5f} is no Julian date in {low:.1f}..{high:.1f}"
    )
    return jd


def _bands(raw: RawTable, column: str | None, rows: _Rows) -> np.ndarray:
    assert column is not None
    words = raw.texts(column)
    fid = np.array([_BANDS.get(w.lower(), 0) if w else 0 for w in words], np.int64)
    rows.refuse(np.array([w is None for w in words], bool), "missing_field", lambda _: "no band")
    rows.refuse(fid == 0, "bad_value", lambda i: f"the band '{words[i]}' is none of g, r, i (1, 2, 3)")
    return fid


def _floats(raw: RawTable, column: str | None, rows: _Rows) -> np.ndarray:
    if column is None:
        return np.full(rows.bad.size, np.nan)
    values, bad = numbers(raw.table.column(column))
    bad |= np.isinf(values)
    cells = raw.table.column(column)
    rows.refuse(bad, "bad_value", lambda i: f"{column} is '{cells[i].as_py()}', not a finite number")
    return np.where(bad, np.nan, values)


def _flags(raw: RawTable, column: str | None, rows: _Rows) -> np.ndarray:
    """1 true, 0 false, NaN not said."""
    if column is None:
        return np.full(rows.bad.size, np.nan)
    words = [(w or "").lower() for w in raw.texts(column)]
    flags = np.array([1.0 if w in _TRUE else 0.0 if w in _FALSE else np.nan for w in words])
    unknown = np.array([w not in MISSING_WORDS for w in words], bool) & np.isnan(flags)
    rows.refuse(unknown, "bad_value", lambda i: f"{column} is '{words[i]}', not true or false")
    return flags


def _refuse_absurd(mag: np.ndarray, rows: _Rows) -> None:
    low, high = MAG_RANGE
    absurd = ~np.isnan(mag) & ~((mag > low) & (mag < high))
    rows.refuse(absurd, "bad_value", lambda i: f"the magnitude {mag[i]:g} is not in {low:g}..{high:g}")


def _settle(value: dict[str, np.ndarray], detected: np.ndarray, sign: np.ndarray, rows: _Rows) -> np.ndarray:
    """Decide what is a detection, fill in magnitudes and signs from fluxes, refuse what measures nothing."""
    mag, sigma, limit = value["magpsf"], value["sigmapsf"], value["diffmaglim"]
    flux, flux_err = value["flux_ujy"], value["flux_err_ujy"]
    with np.errstate(invalid="ignore", divide="ignore"):
        rows.refuse(sigma <= 0, "bad_value", lambda i: f"the magnitude's error {sigma[i]:g} is not positive")
        rows.refuse(flux_err <= 0, "bad_value", lambda i: f"the flux's error {flux_err[i]:g} is not positive")
        for m in (mag, limit):
            _refuse_absurd(m, rows)
        significant = np.abs(flux) >= DETECTION_SNR * flux_err
    said = ~np.isnan(detected)
    is_detection = np.where(said, detected == 1, ~np.isnan(mag) | (np.isnan(limit) & significant))
    # A limit written into the magnitude column, with a flag beside it.
    np.copyto(limit, mag, where=~is_detection & np.isnan(limit))
    for column in (mag, sigma):
        column[~is_detection] = np.nan
    bright = is_detection & (np.abs(flux) > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        from_flux = bright & np.isnan(mag)
        np.copyto(mag, ZERO_POINT_UJY - 2.5 * np.log10(np.abs(flux)), where=from_flux)
        np.copyto(sigma, 2.5 / np.log(10) * flux_err / np.abs(flux), where=from_flux)
    np.copyto(sign, np.sign(flux), where=bright & np.isnan(sign))
    sign[~is_detection] = np.nan
    nothing = np.isnan(np.where(is_detection, mag, limit)) & np.isnan(flux)
    rows.refuse(
        nothing,
        "missing_field",
        lambda i: (
            "a detection without magnitude and flux"
            if is_detection[i]
            else "neither magnitude, limit nor flux"
        ),
    )
    return is_detection


def _other_survey(name: str | None) -> str | None:
    return None if name is None or name.strip().upper() == "ZTF" else name
