"""Alerts and photometry points of a shard as arrays, each point with its signed flux.

Fluxes are in µJy (zero-point 23.9: m_AB = 23.9 - 2.5 log10 f). A detection's ``magpsf`` is the magnitude of
the absolute difference flux, its sign is ``isdiffpos``. A forced point's ``forcediffimflux`` (DN, signed)
becomes f = DN * 10^(-0.4 (magzpsci - 23.9)) (Masci et al. 2023, arXiv:2305.16279).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.compiled import compiled
from applecider_batch.features.order import order_within
from applecider_batch.features.segments import (
    bool_column,
    float_column,
    int_column,
    starts_of,
    text_column,
)

ZERO_POINT_UJY = 23.9
LN10 = float(np.log(10.0))
#: Magnitudes outside and errors above these are no photometry (a broken packet), and are left out of every
#: sum.
MAG_RANGE = (5.0, 30.0)
SIGMA_MAG_MAX = 5.0
FLUX_MAX_UJY = 10 ** (-0.4 * (MAG_RANGE[0] - ZERO_POINT_UJY))

RB_MIN = 0.55  # Fink's cut on rb
SOLAR_SYSTEM_ARCSEC = 12.0  # BOOM's radius for a known solar-system object

SAME_EXPOSURE_DAYS = 1e-4

CANDIDATE, PRV_CANDIDATE, FORCED, TABLE = 0, 1, 2, 3
NO_ID = -1
#: Signal-to-noise ratio of a detection, that of the alert stream (Masci et al. 2019, arXiv:1902.01872).
DETECTION_SNR = 5.0
#: Forced photometry without complaint; 57 says only that the reference has no source within 5 arcsec.
GOOD_PROCSTATUS = ("0", "57")


def index_of_objects(table: pa.Table, objects: pa.Array) -> np.ndarray:
    """Position of each row's objectId in the sorted ``objects``, int64 (n,); -1 for one that is not there."""
    found = pc.index_in(text_column(table, "objectId"), value_set=objects)
    return pc.fill_null(found, NO_ID).to_numpy(zero_copy_only=False).astype(np.int64)


def mag_to_flux(mag: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AB magnitude and error to flux and error in µJy: f = 10^(-0.4 (m - 23.9)), sigma_f = sigma f
    ln(10)/2.5."""
    with np.errstate(over="ignore"):
        flux = 10.0 ** (-0.4 * (mag - ZERO_POINT_UJY))
        return flux, sigma / (2.5 / LN10) * flux


def solar_system_match(ssdistnr: np.ndarray) -> np.ndarray:
    """True where a known solar-system object lies within 12 arcsec (negative and NaN: none)."""
    return (ssdistnr >= 0.0) & (ssdistnr <= SOLAR_SYSTEM_ARCSEC)


@dataclass(frozen=True)
class Alerts:
    """Packets of a shard, sorted by (object, jd, candid); packets without a finite jd are not in it.

    Attributes
    ----------
    table : pyarrow.Table
        The same rows in the same order, for the columns that are needed rarely.
    obj, jd, candid, fid : ndarray, shape (n,)
        Position of the object, days, identifier, band.
    positive, solar_system, eligible, stamps_ok : ndarray of bool, shape (n,)
        Sign of the subtraction; match within 12 arcsec; the rule for t0; three decodable stamps.
    """

    table: pa.Table
    obj: np.ndarray
    jd: np.ndarray
    candid: np.ndarray
    fid: np.ndarray
    positive: np.ndarray
    solar_system: np.ndarray
    eligible: np.ndarray
    stamps_ok: np.ndarray
    _floats: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def floats(self, name: str) -> np.ndarray:
        """A column as float64 with NaN for null, (n,); not to be written to."""
        if name not in self._floats:
            self._floats[name] = float_column(self.table, name)
        return self._floats[name]

    def __len__(self) -> int:
        return len(self.jd)


def load_alerts(table: pa.Table, objects: pa.Array) -> Alerts:
    """Alerts table (schema ``alerts``) to :class:`Alerts`.

    Eligible is an alert with positive subtraction, rb >= 0.55 where given, and no solar-system match within
    12".
    """
    obj = index_of_objects(table, objects)
    jd = float_column(table, "jd")
    candid = int_column(table, "candid", NO_ID)
    order = order_within(obj, jd, candid)
    order = order[np.isfinite(jd[order]) & (obj[order] >= 0)]
    table = table.take(pa.array(order))
    positive = int_column(table, "isdiffpos", 0) > 0
    solar_system = solar_system_match(float_column(table, "ssdistnr"))
    bogus = float_column(table, "rb") < RB_MIN  # NaN: not given
    return Alerts(
        table=table,
        obj=obj[order],
        jd=jd[order],
        candid=candid[order],
        fid=int_column(table, "fid", 0),
        positive=positive,
        solar_system=solar_system,
        eligible=positive & ~bogus & ~solar_system,
        stamps_ok=int_column(table, "stamp_status", NO_ID) == 0,
    )


@dataclass(frozen=True)
class Points:
    """Photometry points of a shard, sorted by (object, known_jd, jd, fid, origin, candid, pid, …).

    Attributes
    ----------
    obj, jd, known_jd, fid, origin, candid, pid, known_candid : ndarray, shape (n,)
    detection, forced : ndarray of bool, shape (n,)
        A detection of the alert pipeline or of a table, of either sign; a measurement of whatever size was
        there (fp_hists, and tables of fluxes, which are detections as well from a signal-to-noise ratio of 5
        on).
    sign : ndarray of int8, shape (n,)
        1, -1, or 0 where not said.
    mag : ndarray, shape (n,)
        Magnitude of the absolute flux of detections, NaN where unusable.
    flux, flux_err : ndarray, shape (n,)
        Signed, µJy; NaN where the point holds no usable measurement (upper limits included).
    limit_err : ndarray, shape (n,)
        µJy: 1-sigma error of a flux of 0, of upper limits (a fifth of diffmaglim's flux) and of forced points
        that are no detections; NaN elsewhere.
    ra, dec : ndarray, shape (n,)
        Degrees, NaN where absent.
    good : ndarray of bool, shape (n,)
        Eligible as a detection by itself: positive, rb >= 0.55 where given, no solar-system match.
    solar_system : ndarray of bool, shape (n,)
    absurd : ndarray of bool, shape (n,)
        A detection or forced point whose numbers cannot be used.
    """

    obj: np.ndarray
    jd: np.ndarray
    known_jd: np.ndarray
    fid: np.ndarray
    origin: np.ndarray
    candid: np.ndarray
    pid: np.ndarray
    known_candid: np.ndarray
    detection: np.ndarray
    forced: np.ndarray
    sign: np.ndarray
    mag: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    limit_err: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    good: np.ndarray
    solar_system: np.ndarray
    absurd: np.ndarray

    def __len__(self) -> int:
        return len(self.jd)


def load_points(table: pa.Table, objects: pa.Array) -> Points:
    """Photometry table (schema ``photometry``) to :class:`Points`."""
    obj = index_of_objects(table, objects)
    jd, known_jd = float_column(table, "jd"), float_column(table, "known_jd")
    fid, origin = int_column(table, "fid", 0), int_column(table, "origin", CANDIDATE)
    candid, pid = int_column(table, "candid", NO_ID), int_column(table, "pid", NO_ID)
    known_candid = int_column(table, "known_candid", NO_ID)
    is_detection = bool_column(table, "is_detection")
    sign = np.sign(int_column(table, "isdiffpos", 0))
    mag, sigma = float_column(table, "magpsf"), float_column(table, "sigmapsf")
    flux, flux_err, usable = _fluxes(table, origin, is_detection, sign, mag, sigma)
    # Points of other surveys (a table's PTF rows, say) were taken through other filters.
    other_survey = text_column(table, "survey").is_valid().to_numpy(zero_copy_only=False)
    keep = np.isfinite(jd) & np.isfinite(known_jd) & (obj >= 0) & (known_jd >= jd) & ~other_survey
    ties = (origin, candid, pid, known_candid, sign, mag, flux, flux_err)
    order = _in_order(np.flatnonzero(keep), (obj, known_jd, jd, fid), ties)
    table_flux = (origin == TABLE) & np.isfinite(float_column(table, "flux_ujy"))
    forced = (origin == FORCED) | table_flux
    with np.errstate(divide="ignore", invalid="ignore"):
        significant = usable & (np.abs(flux) >= DETECTION_SNR * flux_err)
    detection = np.where(table_flux, significant, is_detection & ~forced)
    limit_err = _limit_errors(table, forced, is_detection, np.where(usable & ~significant, flux_err, np.nan))
    sign = np.where(table_flux & np.isfinite(flux), np.sign(flux), sign).astype(np.int64)
    solar_system = solar_system_match(float_column(table, "ssdistnr"))
    bogus = float_column(table, "rb") < RB_MIN
    # A table that says nothing of signs gives detections of a brightening; packets always say.
    positive = (sign > 0) | ((sign == 0) & (origin == TABLE))
    columns = {
        "obj": obj,
        "jd": jd,
        "known_jd": known_jd,
        "fid": fid,
        "origin": origin,
        "candid": candid,
        "pid": pid,
        "known_candid": known_candid,
        "detection": detection,
        "forced": forced,
        "sign": np.where(positive, 1, sign),
        "mag": np.where(detection & usable, _flux_to_mag(flux), np.nan),
        "flux": np.where(usable, flux, np.nan),
        "flux_err": np.where(usable, flux_err, np.nan),
        "limit_err": limit_err,
        "ra": float_column(table, "ra"),
        "dec": float_column(table, "dec"),
        "good": detection & usable & positive & ~bogus & ~solar_system,
        "solar_system": solar_system,
        "absurd": (detection | forced) & ~usable,
    }
    return Points(**{name: values[order] for name, values in columns.items()})


def _in_order(rows: np.ndarray, keys: tuple[np.ndarray, ...], ties: tuple[np.ndarray, ...]) -> np.ndarray:
    """Rows sorted by ``keys`` (none is NaN), most important first; those that agree in these by ``ties``.

    The last of the ties only settle those between points that agree in everything that identifies them.
    """
    order = rows[order_within(*(key[rows] for key in keys))]
    starts = starts_of(*(key[order] for key in keys))
    size = np.diff(np.append(starts, len(order)))
    tied = np.repeat(size > 1, size)
    some = np.sort(order[tied])
    order[tied] = some[np.lexsort([key[some] for key in reversed((*keys, *ties))])]
    return order


def _flux_to_mag(flux: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return ZERO_POINT_UJY - 2.5 * np.log10(np.abs(flux))


def _limit_errors(
    table: pa.Table, forced: np.ndarray, is_detection: np.ndarray, forced_err: np.ndarray
) -> np.ndarray:
    limit = float_column(table, "diffmaglim")
    given = ~is_detection & (limit >= MAG_RANGE[0]) & (limit <= MAG_RANGE[1])
    error = mag_to_flux(np.where(given, limit, np.nan), limit)[0] / DETECTION_SNR
    return np.where(forced, forced_err, error)


def _plausible(mag: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return (mag >= MAG_RANGE[0]) & (mag <= MAG_RANGE[1]) & (sigma > 0) & (sigma <= SIGMA_MAG_MAX)


def _fluxes(
    table: pa.Table,
    origin: np.ndarray,
    is_detection: np.ndarray,
    sign: np.ndarray,
    mag: np.ndarray,
    sigma: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signed flux, its error (µJy) and which of them can be used."""
    forced = origin == FORCED
    size, size_err = mag_to_flux(mag, sigma)
    flux = np.where(sign < 0, -size, size)
    # A packet's detection without a sign has no flux that could be trusted.
    usable = is_detection & ~forced & _plausible(mag, sigma) & ((sign != 0) | (origin == TABLE))

    given, given_err = float_column(table, "flux_ujy"), float_column(table, "flux_err_ujy")
    has_flux = (origin == TABLE) & np.isfinite(given)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = 10.0 ** (-0.4 * (float_column(table, "magzpsci") - ZERO_POINT_UJY))
        dn, dn_err = float_column(table, "forcediffimflux"), float_column(table, "forcediffimfluxunc")
        flux = np.where(forced, dn * scale, np.where(has_flux, given, flux))
        flux_err = np.where(forced, dn_err * scale, np.where(has_flux, given_err, size_err))
    good_status = pc.fill_null(
        pc.is_in(text_column(table, "procstatus"), value_set=pa.array([*GOOD_PROCSTATUS])), False
    ).to_numpy(zero_copy_only=False)
    unsaid = text_column(table, "procstatus").is_null().to_numpy(zero_copy_only=False)
    usable = np.where(has_flux, True, usable) | (forced & (good_status | unsaid))
    # An absurd error would weigh nothing or everything.
    usable &= np.isfinite(flux) & np.isfinite(flux_err) & (flux_err > 0) & (flux_err <= FLUX_MAX_UJY)
    usable &= np.abs(flux) <= FLUX_MAX_UJY
    return flux, flux_err, usable


def latest_revisions(points: Points, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Which (sequence, point) pairs stay when every forced measurement keeps its latest revision only.

    Parameters
    ----------
    points : Points
    sequence, position : ndarray of int64, shape (p,)
        Sequence number (ascending) and position in ``points``; a pair is a point visible to that sequence.

    Returns
    -------
    ndarray of bool, shape (p,)
        All points that are not forced, and of forced points of one (jd, fid, pid) the one known last.
    """
    keep = np.ones(len(sequence), bool)
    pairs = np.flatnonzero(points.forced[position])
    if not len(pairs):
        return keep
    where = position[pairs]
    keys = (sequence[pairs], points.jd[where], points.fid[where], points.pid[where])
    order = order_within(*keys, points.known_jd[where], where)
    starts = starts_of(*(key[order] for key in keys))
    last = np.append(starts[1:], len(order)) - 1
    keep[pairs] = False
    keep[pairs[order[last]]] = True
    return keep


def repeated_measurements(points: Points, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Which (sequence, point) pairs measure an exposure that the alert pipeline has measured already.

    A forced point beside a usable detection, and any point of a table beside the alert pipeline's detection
    or upper limit: the same photons would count twice. Points of a band within 9 s of each other are one
    exposure (ZTF exposes for 30 s or more; tables round their dates).

    Parameters
    ----------
    points : Points
    sequence, position : ndarray of int64, shape (p,)

    Returns
    -------
    ndarray of bool, shape (p,)
    """
    from_table = points.origin == TABLE
    later = points.forced | from_table
    if not later[position].any():
        return np.zeros(len(sequence), bool)
    order = order_within(sequence, points.fid[position], points.jd[position])
    detected = points.detection & np.isfinite(points.flux)
    return _beside(sequence, position, order, points.fid, points.jd, from_table, later, detected)


@compiled
def _beside(
    sequence: np.ndarray,
    position: np.ndarray,
    order: np.ndarray,
    fid: np.ndarray,
    jd: np.ndarray,
    from_table: np.ndarray,
    later: np.ndarray,
    detected: np.ndarray,
) -> np.ndarray:
    """Pairs, in ``order`` by (sequence, band, time), whose exposure has a point that goes before theirs."""
    repeated = np.zeros(len(order), np.bool_)
    start = 0
    while start < len(order):
        stop, beside_any, beside_detection = start, False, False
        while stop < len(order):
            here = position[order[stop]]
            if stop > start:
                before = position[order[stop - 1]]
                if (
                    sequence[order[stop]] != sequence[order[start]]
                    or fid[here] != fid[before]
                    or jd[here] - jd[before] > SAME_EXPOSURE_DAYS
                ):
                    break
            if not later[here]:
                beside_any = True
                beside_detection = beside_detection or detected[here]
            stop += 1
        for i in range(start, stop):
            here = position[order[i]]
            repeated[order[i]] = later[here] and (beside_any if from_table[here] else beside_detection)
        start = stop
    return repeated
