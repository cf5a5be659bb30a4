"""Files of spectra to the contract's spectra.

A table with a list per row (Parquet) holds one spectrum a row; a table of plain columns holds one spectrum a
file, or one per object (and date) where it names them; a FITS file holds a table or a 1-D image with a
wavelength axis.

Columns are found by name, whatever their case; the first alias that is there wins:

===========  ==========================================================================================
wavelength   wavelength, wave, lambda, lam, wl, wavelength_angstrom; loglam, loglambda: powers of ten
flux         flux, fluxcal, flam, f_lambda, flux_lambda, counts, spec
name         objectId, ztf_id, ztfid, object_id, object, object_name, name; object_key (only if a ZTF name)
date         jd, mjd, mjd_obs (jd = mjd + 2400000.5), date-obs of a header
redshift     redshift, z, zspec; outside -0.1..20 it is a mark for unknown
others       instrument, flux_kind, type_raw or type, ra, dec, redshift_source
===========  ==========================================================================================

Text without a header line: wavelength, flux, and whatever follows. Wavelengths come out in Angstrom: by the
unit where one is given, else micron if none exceeds 30, nanometre if none exceeds 1,150, else Angstrom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.fits_spectra import image_spectrum
from applecider_batch.archive.light_curve_tables import MJD_TO_JD, ZTF_NAME
from applecider_batch.archive.table_files import RawTable, bare_name, numbers, read_columns
from applecider_batch.archive.table_rejects import Rejects
from applecider_batch.digest import digest128, hash64
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table

MICRON_MAX = 30.0
NANOMETRE_MAX = 1150.0
PHYSICAL_FLUX_MAX = 1e-6
"""erg/s/cm2/Angstrom; no transient is as bright, so larger numbers are counts or in arbitrary units."""

ALIASES: dict[str, tuple[str, ...]] = {
    "wavelength": ("wavelength", "wave", "lambda", "lam", "wl", "wavelength_angstrom", "loglam", "loglambda"),
    "flux": ("flux", "fluxcal", "flam", "f_lambda", "flux_lambda", "counts", "spec"),
    "name": ("objectId", "ztf_id", "ztfid", "object_id", "object", "object_name", "name"),
    "key": ("object_key",),
    "jd": ("jd",),
    "mjd": ("mjd", "mjd_obs", "mjd-obs"),
    "redshift": ("redshift", "z", "zspec"),
    "ra": ("ra",),
    "dec": ("dec",),
    "instrument": ("instrument", "instrume"),
    "flux_kind": ("flux_kind",),
    "type_raw": ("type_raw", "type"),
    "redshift_source": ("redshift_source",),
}
_KNOWN = frozenset(alias.lower() for aliases in ALIASES.values() for alias in aliases) | {"flux_err", "err"}
_TEXTS = ("instrument", "flux_kind", "type_raw", "redshift_source")
_RANGES = {
    "jd": (2_400_000.5, 2_500_000.0),
    "redshift": (-0.1, 20.0),
    "ra": (0.0, 360.0),
    "dec": (-90.0, 90.0),
}
_TO_ANGSTROM = {
    "angstrom": 1.0,
    "angstroms": 1.0,
    "aa": 1.0,
    "a": 1.0,
    "0.1 nm": 1.0,
    "nm": 10.0,
    "nanometer": 10.0,
    "nanometers": 10.0,
    "um": 1e4,
    "micron": 1e4,
    "microns": 1e4,
    "µm": 1e4,
    "m": 1e10,
}


@dataclass
class Spectrum:
    """One spectrum as a file gives it, not yet cleaned; wavelength and flux are float64, shape (n,)."""

    member: str
    wavelength: np.ndarray
    flux: np.ndarray
    unit: str | None
    facts: dict[str, Any]


class NotASpectrumError(Exception):
    """Why something is no spectrum, as part of a sentence."""


def is_known(name: str) -> bool:
    """Whether a column of this name is one of the aliases."""
    return bare_name(name) in _KNOWN


def spectra_of(data: bytes, file_name: str, rejects: Rejects) -> pa.Table:
    """Spectra of one file.

    Parameters
    ----------
    data : bytes
        The whole file.
    file_name : str
        Its name; holds the object where nothing else does.
    rejects : Rejects
        Takes every spectrum, or the whole file, that cannot be used.

    Returns
    -------
    Table
        Schema ``spectra``: wavelength in Angstrom ascending, only finite points, at least two.
    """
    try:
        spectra = _read(data, file_name)
    except (UserError, NotASpectrumError) as error:
        message = error.message if isinstance(error, UserError) else f"'{file_name}': {error}."
        rejects.add(file_name, "not_a_spectrum", message, n_bytes=len(data))
        return load_table("spectra").empty()
    rows = []
    for spectrum in spectra:
        try:
            rows.append(_row(spectrum, rejects.source_id))
        except NotASpectrumError as error:
            where = spectrum.member if spectrum.member == file_name else f"{spectrum.member} of '{file_name}'"
            name = spectrum.facts.get("objectId")
            rejects.add(spectrum.member, "not_a_spectrum", f"{where}: {error}.", object_id=name)
    return load_table("spectra").conform(_table(rows))


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = load_table("spectra")
    columns: dict[str, pa.Array] = {}
    for column in schema.columns:
        values: list[Any] = [row.get(column.name) for row in rows]
        if column.type.startswith("list"):
            lengths = [len(v) for v in values]
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            flat = np.concatenate(values) if values else np.empty(0, np.float32)
            columns[column.name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
        elif column.name == "hash64":
            columns["hash64"] = pa.array(hash64([row["objectId"] for row in rows]))
        else:
            columns[column.name] = pa.array(values, column.arrow_type)
    return pa.table(columns)


def _read(data: bytes, file_name: str) -> list[Spectrum]:
    image = image_spectrum(data, file_name)
    if image is not None:
        facts = _facts_of_header(image.header, file_name)
        return [Spectrum(file_name, image.wavelength, image.flux, image.unit, facts)]
    raw = read_columns(data, file_name, is_known)
    wave, flux = raw.find(ALIASES["wavelength"]), raw.find(ALIASES["flux"])
    if (wave is None or flux is None) and raw.table.column_names[:2] == ["col1", "col2"]:
        first = [numbers(raw.table.column(c).slice(0, 1))[1].any() for c in ("col1", "col2")]
        if any(first):
            raise NotASpectrumError("its first line is neither two numbers nor names of wavelength and flux")
        wave, flux = "col1", "col2"
    if wave is None or flux is None:
        raise NotASpectrumError(f"no column for wavelength or flux; it has {raw.table.column_names}")
    if pa.types.is_nested(raw.table.schema.field(wave).type):
        return _from_lists(raw, wave, flux)
    return _from_columns(raw, wave, flux, file_name)


def _from_lists(raw: RawTable, wave: str, flux: str) -> list[Spectrum]:
    """One spectrum a row."""
    facts = _facts_of_columns(raw)
    waves, fluxes = (_list_numbers(raw.table.column(name)) for name in (wave, flux))
    unit = _unit_of(raw, wave)
    return [
        Spectrum(label, waves[i], fluxes[i], unit, {k: v[i] for k, v in facts.items()})
        for i, label in enumerate(raw.labels)
    ]


def _list_numbers(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Each row's list as numbers; a null row is an empty list."""
    arrays = []
    for chunk in column.chunks:
        try:
            lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
            flat = pc.list_flatten(chunk).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise NotASpectrumError(f"wavelength and flux must be lists of numbers ({error})") from error
        arrays += np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
    return arrays


def _from_columns(raw: RawTable, wave: str, flux: str, file_name: str) -> list[Spectrum]:
    """One spectrum a file, or one per object and date where the columns name them."""
    wavelength, bad_wave = numbers(raw.table.column(wave))
    # -999 may be a flux in counts, but is far more often a gap, and one point more or less is no harm.
    values, bad_flux = numbers(raw.table.column(flux))
    wavelength[bad_wave] = values[bad_flux] = np.nan
    unit = _unit_of(raw, wave)
    facts = _facts_of_columns(raw)
    if "objectId" not in facts:
        return [Spectrum(file_name, wavelength, values, unit, _facts_of_header(raw.header, file_name))]
    groups: dict[tuple[Any, Any], list[int]] = {}
    for i in range(len(wavelength)):
        groups.setdefault((facts["objectId"][i], facts.get("jd", [None] * len(wavelength))[i]), []).append(i)
    return [
        Spectrum(
            f"{name or 'unnamed'} from {raw.labels[index[0]]}",
            wavelength[index],
            values[index],
            unit,
            {k: v[index[0]] for k, v in facts.items()},
        )
        for (name, _), index in groups.items()
    ]


def _unit_of(raw: RawTable, wave: str) -> str | None:
    unit = raw.units.get(wave)
    return "log" if bare_name(wave) in ("loglam", "loglambda") else unit


def _facts_of_columns(raw: RawTable) -> dict[str, list[Any]]:
    """What the columns say about each row; a key is there only if a column is."""
    facts: dict[str, list[Any]] = {}
    for key in _TEXTS:
        if column := raw.find(ALIASES[key]):
            facts[key] = raw.texts(column)
    for key in ("redshift", "ra", "dec"):
        if column := raw.find(ALIASES[key]):
            facts[key] = _in_range(key, numbers(raw.table.column(column))[0])
    jd = raw.find(ALIASES["jd"])
    mjd = raw.find(ALIASES["mjd"])
    if jd or mjd:
        shift = 0.0 if jd else MJD_TO_JD
        facts["jd"] = _in_range("jd", numbers(raw.table.column(jd or mjd))[0] + shift)
    names = [raw.texts(c) for alias in ALIASES["name"] if (c := raw.find((alias,)))]
    if names:
        keys = [raw.texts(c) for c in [raw.find(ALIASES["key"])] if c]
        facts["object_name"] = [next((n for n in row if n), None) for row in zip(*names, strict=True)]
        rows = zip(*names, *keys, strict=True)
        ztf = [next((n for n in row if n and ZTF_NAME.fullmatch(n)), None) for row in rows]
        facts["objectId"] = [z or n for z, n in zip(ztf, facts["object_name"], strict=True)]
    return facts


def _in_range(key: str, values: np.ndarray) -> list[float | None]:
    low, high = _RANGES[key]
    return [v if low <= v <= high else None for v in values.tolist()]


def _facts_of_header(header: dict[str, str], file_name: str) -> dict[str, Any]:
    """What a header says about the one spectrum of its file."""
    facts: dict[str, Any] = {}
    for key in ("redshift", "ra", "dec", "jd", "mjd"):
        for alias in ALIASES[key]:
            try:
                number = float(header[alias.lower()])
            except (KeyError, ValueError):
                continue
            target = "jd" if key == "mjd" else key
            number += MJD_TO_JD if key == "mjd" else 0.0
            facts.setdefault(target, _in_range(target, np.array([number]))[0])
            break
    if "jd" not in facts and "date-obs" in header:
        facts["jd"] = _jd_of_date(header["date-obs"])
    for key in _TEXTS:
        facts[key] = next((header[a.lower()] for a in ALIASES[key] if header.get(a.lower())), None)
    facts["object_name"] = next((header[a.lower()] for a in ALIASES["name"] if header.get(a.lower())), None)
    in_name = ZTF_NAME.search(file_name)
    if facts["object_name"] is None:
        stem = file_name.rsplit("/", 1)[-1].split(".")[0]
        facts["object_name"] = in_name[0] if in_name else stem.split("__")[0]
    facts["objectId"] = in_name[0] if in_name else facts["object_name"]
    return facts


def _jd_of_date(text: str) -> float | None:
    try:
        day = np.datetime64(text.strip().replace("/", "-").rstrip("Z"), "us")
    except ValueError:
        return None
    jd = (day - np.datetime64("1970-01-01", "us")) / np.timedelta64(1, "D") + 2440587.5
    return _in_range("jd", np.array([jd]))[0]


def _row(spectrum: Spectrum, source_id: str) -> dict[str, Any]:
    """Clean a spectrum into a row of the contract, or say why it is none."""
    facts = spectrum.facts
    if not facts.get("objectId"):
        raise NotASpectrumError("no object name")
    if len(spectrum.wavelength) != len(spectrum.flux):
        raise NotASpectrumError(f"{len(spectrum.wavelength)} wavelengths but {len(spectrum.flux)} fluxes")
    wavelength = _angstrom(spectrum.wavelength, spectrum.unit).astype(np.float32)
    with np.errstate(over="ignore"):
        flux = spectrum.flux.astype(np.float32)
    good = np.isfinite(wavelength) & np.isfinite(flux) & (wavelength > 0)
    if good.sum() < 2:
        raise NotASpectrumError(f"only {good.sum()} of {len(good)} points are finite numbers")
    wavelength, flux = wavelength[good], flux[good]
    order = np.argsort(wavelength, kind="stable")
    wavelength, flux = wavelength[order], flux[order]
    if wavelength[0] == wavelength[-1]:
        raise NotASpectrumError("all points have the same wavelength")
    if flux.min() == flux.max():
        raise NotASpectrumError("the flux is the same number everywhere")
    kind = facts.get("flux_kind")
    if kind is None and np.median(np.abs(flux)) > PHYSICAL_FLUX_MAX:
        kind = "arbitrary"
    identity = f"{facts['objectId']}|{facts.get('jd')}|".encode()
    return {
        **facts,
        "wavelength": wavelength,
        "flux": flux,
        "flux_kind": kind,
        "spec_id": digest128(identity + wavelength.astype("<f4").tobytes() + flux.astype("<f4").tobytes()),
        "source_id": source_id,
    }


def _angstrom(wavelength: np.ndarray, unit: str | None) -> np.ndarray:
    if unit == "log":
        with np.errstate(over="ignore"):
            return 10.0**wavelength
    if unit is not None and unit.strip().lower() in _TO_ANGSTROM:
        return wavelength * _TO_ANGSTROM[unit.strip().lower()]
    finite = wavelength[np.isfinite(wavelength)]
    largest = finite.max() if finite.size else np.inf
    return wavelength * (1e4 if largest <= MICRON_MAX else 10.0 if largest <= NANOMETRE_MAX else 1.0)
