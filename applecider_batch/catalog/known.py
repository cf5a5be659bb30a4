"""Lists of known sources: the TNS dump, BTS tables and any table with ra and dec, read into one form.

A list has a *kind*.  ``transient`` lists decide known, late and out of window; ``minor_planet``,
``variable_star`` and ``agn`` lists say that a source at the position is known for another reason.

Read are Parquet, CSV (also gzipped or zipped; a first line with the time stamp of the TNS dump is taken as
the end of what the list can know), FITS, ECSV and VOTable, from any fsspec URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from applecider_batch.catalog.table_files import frame_of, read_file
from applecider_batch.digest import digest128
from applecider_batch.errors import UsageError, UserError

KINDS: tuple[str, ...] = ("transient", "minor_planet", "variable_star", "agn")

#: Column -> names under which it is looked for, lower case, best first.
_ALIASES: dict[str, tuple[str, ...]] = {
    "ra": ("ra", "raj2000", "ra_deg", "radeg", "_ra", "ra_icrs", "ramean"),
    "dec": ("dec", "declination", "dej2000", "decj2000", "dec_deg", "decdeg", "_de", "decl", "de_icrs",
            "decmean"),
    "name": ("iau_name", "iauid", "iau", "name", "objname", "designation", "oname", "id", "objectid",
             "ztfid"),
    "type": ("type", "type_raw", "objtype", "class", "spectype", "otype"),
    "date": ("discoverydate", "discovery_date", "disc_date", "discdate", "date", "obsdate", "epoch"),
    "received": ("time_received", "received", "report_date", "creationdate"),
    "jd": ("discovery_jd", "jd_discovery", "jd"),
    "mjd": ("discovery_mjd", "mjd_discovery", "mjd"),
    "peakt": ("peakt",),
}  # fmt: skip
_STAMP = re.compile(r'^"?(\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2})(?: - (\d{2}:\d{2}:\d{2}))?"?$')
_IAU_YEAR = re.compile(r"^(?:SN|AT|TDE)?\s?((?:19|20)\d{2})[A-Za-z]{1,5}$")
_DATE = re.compile(
    r"^(\d{3,4})(?:[-/](\d{1,2})(?:[-/](\d{1,2}(?:\.\d+)?))?)?(?:[ T](\d{2}:\d{2}(?::\d{2})?).*)?$"
)
_OBJECT = re.compile(r"\bZTF\d{2}[a-z]{7}\b")
_BTS_JD = 2458000.0
_UNIX_JD = 2440587.5


@dataclass(frozen=True)
class KnownList:
    """A list of known sources.

    Attributes
    ----------
    label, kind, digest : str
        File name, kind, and BLAKE2b-128 of the file's bytes.
    ra, dec : ndarray of float64, shape (n,)
        ICRS, degrees.
    jd_lo, jd_hi : ndarray of float64, shape (n,)
        First and last moment at which the source can have been discovered, as well as the list dates it (a
        year alone spans that year); NaN without a date.
    jd_received : ndarray of float64, shape (n,)
        When the report reached the list's keeper; NaN where the list does not say.
    names, types : list of str or None
    until : float or None
        JD at which the list was written, where it says so: it cannot know of anything later.
    rejected : int
        Rows without a usable position.
    objects : list of str or None
        The survey's own name of a source, where the list gives it; empty if it gives none.
    """

    label: str
    kind: str
    digest: str
    ra: np.ndarray
    dec: np.ndarray
    jd_lo: np.ndarray
    jd_hi: np.ndarray
    jd_received: np.ndarray
    names: list[str | None]
    types: list[str | None]
    until: float | None
    rejected: int
    objects: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ra)

    def describe(self) -> dict[str, Any]:
        """What ``catalog.json`` says about the list."""
        return {"list": self.label, "kind": self.kind, "rows": len(self), "rejected": self.rejected,
                "until_jd": self.until, "digest": self.digest}  # fmt: skip


def parse_known(given: str) -> tuple[str, str]:
    """``KIND=FILE`` or ``FILE`` (then a transient list) as (kind, file).

    Raises
    ------
    UsageError
        If the kind is none of :data:`KINDS`.
    """
    kind, separator, file = given.partition("=")
    if not separator or "/" in kind or "." in kind:
        return "transient", given
    if kind not in KINDS or not file:
        raise UsageError(
            f"--known takes FILE or KIND=FILE with KIND one of {', '.join(KINDS)}, and got '{given}'."
        )
    return kind, file


def read_known(
    url: str, kind: str = "transient", *, storage_options: Mapping[str, Any] | None = None
) -> KnownList:
    """Read a list of known sources.

    Parameters
    ----------
    url : str
        Local path or fsspec URL of the file.
    kind : str
        One of :data:`KINDS`.

    Raises
    ------
    UserError
        If the file is missing, cannot be read, or has no position columns.
    """
    (frame, until), data = read_file(url, "list of known sources", _with_stamp, storage_options)
    return _known_list(frame, url.rstrip("/").rpartition("/")[2], kind, digest128(data), until, url)


def _with_stamp(data: bytes) -> tuple[pl.DataFrame, float | None]:
    """The table, and the time that TNS writes before the header of its dump."""
    first, _, rest = data.partition(b"\n")
    stamp = _STAMP.match(first.decode("utf-8-sig", errors="replace").strip())
    if not stamp:
        return frame_of(data), None
    day = stamp.group(1)
    return frame_of(rest), _jd(f"{day[:10]}T{stamp.group(2)}" if stamp.group(2) else day.replace(" ", "T"))


def _jd(text: str) -> float:
    return float(np.datetime64(text, "s").astype(np.int64)) / 86400.0 + _UNIX_JD


def _known_list(
    frame: pl.DataFrame, label: str, kind: str, digest: str, until: float | None, url: str
) -> KnownList:
    by_name = {column.strip().lower(): column for column in reversed(frame.columns)}
    found = {
        what: next((by_name[alias] for alias in aliases if alias in by_name), None)
        for what, aliases in _ALIASES.items()
    }
    if found["ra"] is None or found["dec"] is None:
        raise UserError(
            f"The list '{url}' has no columns for the position; its columns are {', '.join(frame.columns)}.",
            hint=f"Name them one of {', '.join(_ALIASES['ra'])} and {', '.join(_ALIASES['dec'])}.",
        )
    ra, dec = _angles(frame[found["ra"]], hours=True), _angles(frame[found["dec"]], hours=False)
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(np.nan_to_num(dec)) <= 90.0)
    kept = frame.filter(pl.Series(good))
    # Row by row the first name that is given: a table of many sources has IAU names for some only.
    columns = [_texts(kept, by_name[alias]) for alias in _ALIASES["name"] if alias in by_name]
    names = [next((n for n in row if n), None) for row in zip(*columns, strict=True)] or [None] * kept.height
    if "name_prefix" in by_name:  # the TNS dump: prefix and name are two columns
        prefix = _texts(kept, by_name["name_prefix"])
        names = [f"{p or ''}{n}" if n else None for p, n in zip(prefix, names, strict=True)]
    lo, hi = _discovery(kept, found, names)
    received = _dates(kept, found["received"])[0]
    return KnownList(
        label, kind, digest, np.mod(ra[good], 360.0), dec[good], lo, hi, received, names,
        _texts(kept, found["type"]), until, int((~good).sum()), _objects(kept, by_name),
    )  # fmt: skip


def _objects(frame: pl.DataFrame, by_name: Mapping[str, str]) -> list[str | None]:
    """ZTF's name of each source, from the columns of names and from TNS's ``internal_names``."""
    wanted = (*_ALIASES["name"], "internal_names", "ztf_id")
    columns = [_texts(frame, by_name[name]) for name in wanted if name in by_name]
    found = [_OBJECT.search(" ".join(filter(None, row))) for row in zip(*columns, strict=True)]
    objects = [None if name is None else name[0] for name in found]
    return objects if any(objects) else []


def _texts(frame: pl.DataFrame, column: str | None) -> list[str | None]:
    if column is None:
        return [None] * frame.height
    texts = frame[column].cast(pl.String).str.strip_chars()
    return texts.set(texts.is_in(["", "-", "null", "None"]).fill_null(False), None).to_list()


def _numbers(series: pl.Series) -> np.ndarray:
    return series.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy().astype(float)


def _angles(series: pl.Series, hours: bool) -> np.ndarray:
    """Degrees from decimal degrees or from sexagesimal text (right ascension in hours)."""
    if series.dtype != pl.String:
        return _numbers(series)
    text = series.str.strip_chars()
    values = _numbers(text)
    sexagesimal = (text.str.contains(":") | text.str.contains(" ")).fill_null(False).to_numpy()
    for row in np.flatnonzero(sexagesimal):
        parts = re.split(r"[:\s]+", str(text[int(row)]))
        try:
            d, m, s = (float(p) for p in (*parts, "0")[:3])
        except ValueError:
            continue
        size = abs(d) + m / 60.0 + s / 3600.0
        values[row] = (-size if parts[0].startswith("-") else size) * (15.0 if hours else 1.0)
    return values


def _discovery(
    frame: pl.DataFrame, found: Mapping[str, str | None], names: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the discovery: its date, else jd or mjd, else BTS's peak, else the IAU name's year."""
    lo, hi = _dates(frame, found["date"])
    for what, zero in (("jd", 0.0), ("mjd", 2400000.5), ("peakt", _BTS_JD)):
        column = found[what]
        if column is not None:
            given = _numbers(frame[column]) + zero
            missing = np.isnan(lo)
            lo[missing], hi[missing] = given[missing], given[missing]
    for row in np.flatnonzero(np.isnan(lo)).tolist():
        year = _IAU_YEAR.match(names[row] or "")
        if year:
            lo[row], hi[row] = _jd(f"{year[1]}-01-01"), _jd(f"{int(year[1]) + 1}-01-01")
    return lo, hi


def _dates(frame: pl.DataFrame, column: str | None) -> tuple[np.ndarray, np.ndarray]:
    """First and last JD of dates written as year[-month[-day[ time]]] with - or /; NaN where unreadable."""
    lo, hi = np.full(frame.height, np.nan), np.full(frame.height, np.nan)
    if column is None:
        return lo, hi
    series = frame[column]
    if series.dtype.is_temporal():
        series = series.cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S")
    elif series.dtype.is_numeric():  # JD, MJD or a year, told apart by size
        value = _numbers(series)
        lo = np.where(value > 2e6, value, np.where(value > 3e4, value + 2400000.5, np.nan))
        return lo, lo.copy()
    seen: dict[str, tuple[float, float]] = {}
    for row, text in enumerate(series.cast(pl.String).to_list()):
        if text:
            if text not in seen:
                seen[text] = _one_date(text.strip())
            lo[row], hi[row] = seen[text]
    return lo, hi


def _one_date(text: str) -> tuple[float, float]:
    parts = _DATE.match(text)
    if parts is None:
        return np.nan, np.nan
    year, month, day, time = parts.groups()
    try:
        if month is None:
            return _jd(f"{int(year):04d}-01-01"), _jd(f"{int(year) + 1:04d}-01-01")
        start = f"{int(year):04d}-{int(month):02d}"
        if day is None:
            after = np.datetime64(start, "M") + 1
            return _jd(f"{start}-01"), _jd(f"{after}-01")
        jd = _jd(f"{start}-{int(float(day)):02d}" + (f"T{time}" if time else ""))
    except ValueError:
        return np.nan, np.nan
    return jd + float(day) % 1.0, jd + float(day) % 1.0
