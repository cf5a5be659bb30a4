"""Real light curves, re-injected at other epochs, magnitudes and hosts, as alert packets in ZTF's format.

Real are: the light curve (times between its points, fluxes, bands, upper limits), the host (position and the
catalogue context of a real alert: PS1 and Gaia neighbours, the reference source), and the quality of each
detection (rb, drb, shape, bad pixels, from a real alert of about that magnitude).  Changed are: the epoch (by
whole days), the brightness (dimmed only) and with it the noise.  Not simulated are: stamps (so the image
network has nothing), forced photometry, spectra, other weather and cadence than the light curve had.

Noise of a dimmed point: the variance of the background, from a real upper limit of the band, plus the
source's own, which scales with its flux; what the dimmed measurement lacks of it is added.  Points of 5 sigma
and more become alerts, the others upper limits, known from the next alert within 30 days on, as in ZTF.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.read import Archive
from applecider_batch.digest import hash64_one
from applecider_batch.features.points import DETECTION_SNR, ZERO_POINT_UJY, load_points
from applecider_batch.simulate.avro_schema import CANDIDATE, PRV_CANDIDATE, field_names
from applecider_batch.simulate.packets import encode_record, packet_bytes

MIN_DETECTIONS = 8
HISTORY_DAYS = 30.0
DRB_FROM_JD = 2458664.5  # 2019-07: older packets have no drb
V4_FROM_JD = 2460218.5  # 2023-10: schema 4.02
FAINTEST = 21.5
MAX_DIMMING = 4.0
DONOR_MAG = 0.3
#: Fields of a packet that say how well a detection was measured, taken from a donor together.
_QUALITY = (
    "rb", "drb", "nbad", "fwhm", "elong", "magdiff", "classtar", "chipsf", "nneg", "sumrat", "seeratio",
    "aimage", "bimage", "aimagerat", "bimagerat", "mindtoedge", "magfromlim", "sky", "scorr",
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A real light curve, by time.

    Attributes
    ----------
    name, kind : str
        Object and its class.
    jd, fid, flux, flux_err : ndarray, shape (n,)
        µJy; NaN flux for an upper limit, whose error is a fifth of the limit.
    peak_mag : float
        Of the brightest point of 5 sigma.
    """

    name: str
    kind: str
    jd: np.ndarray
    fid: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    peak_mag: float


@dataclass(frozen=True)
class Injection:
    """One re-injected light curve; ``flux`` NaN where it is below 5 sigma.

    ``jd_first`` is where the first detection of the light curve came to lie, dimmed away or not.
    """

    name: str
    curve: Curve
    host: dict[str, Any]
    dimming: float
    jd_first: float
    jd: np.ndarray
    fid: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    limit_err: np.ndarray

    @property
    def detected(self) -> np.ndarray:
        """Points that become alerts, bool (n,)."""
        return np.isfinite(self.flux)


def read_curve(archive: Archive, name: str, kind: str) -> Curve | None:
    """The light curve of an object; None with fewer than :data:`MIN_DETECTIONS` positive detections."""
    position = hash64_one(name)
    points = load_points(archive.read_photometry(position, position + 1), pa.array([name]))
    mine = points.obj == 0
    limit = ~np.isfinite(points.flux) & np.isfinite(points.limit_err)
    usable = mine & np.isin(points.fid, (1, 2, 3)) & (np.isfinite(points.flux) | limit)
    _, once = np.unique(np.round(points.jd[usable], 4) * 10 + points.fid[usable], return_index=True)
    keep = np.flatnonzero(usable)[once]
    keep = keep[np.argsort(points.jd[keep], kind="stable")]
    flux, error = points.flux[keep], np.where(limit[keep], points.limit_err[keep], points.flux_err[keep])
    good = np.isfinite(flux) & (flux >= DETECTION_SNR * error)
    if good.sum() < MIN_DETECTIONS:
        return None
    peak = float(ZERO_POINT_UJY - 2.5 * np.log10(flux[good].max()))
    return Curve(name, kind, points.jd[keep], points.fid[keep], flux, error, peak)


class Sites:
    """Real alerts, as hosts of injections and as donors of measured quality.

    Parameters
    ----------
    alerts : pyarrow.Table
        Schema ``alerts``: positive detections, without a solar-system match, off known stars.
    """

    def __init__(self, alerts: pa.Table) -> None:
        rows = alerts.to_pylist()
        last = {row["objectId"]: row for row in rows}  # in row order: the latest of each object
        self.hosts = [last[name] for name in sorted(last)]
        self._donors = sorted(rows, key=lambda row: (row["magpsf"], row["candid"]))
        self._mags = np.array([row["magpsf"] for row in self._donors])
        self._has_drb = np.array([row["drb"] is not None for row in self._donors])
        self._limits = {
            fid: np.array([r["diffmaglim"] for r in rows if r["fid"] == fid and r["diffmaglim"] is not None])
            for fid in (1, 2, 3)
        }

    def limit_errors(self, fid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """1-sigma errors of the background, µJy, drawn from the band's real limits (else from r's)."""
        out = np.empty(len(fid))
        for band in np.unique(fid):
            pool = self._limits[int(band)] if len(self._limits[int(band)]) else self._limits[2]
            mine = fid == band
            mags = rng.choice(pool, mine.sum())
            out[mine] = 10.0 ** (-0.4 * (mags - ZERO_POINT_UJY)) / DETECTION_SNR
        return out

    def donor(self, mag: float, with_drb: bool, rng: np.random.Generator) -> dict[str, Any]:
        """A real alert within 0.3 mag, else the nearest in magnitude; with drb or without."""
        fit = self._has_drb == with_drb
        distance = np.where(fit if fit.any() else True, np.abs(self._mags - mag), np.inf)
        near = np.flatnonzero(distance <= max(DONOR_MAG, distance.min()))
        return self._donors[int(rng.choice(near))]


def inject(
    curves: Sequence[Curve], sites: Sites, count: int, span: tuple[float, float], seed: int
) -> list[Injection]:
    """Draw light curve, host, epoch and dimming of ``count`` injections.

    Parameters
    ----------
    span : (float, float)
        JD between which the first detection of the light curve is put, uniformly.
    """
    by_kind: dict[str, list[Curve]] = {}
    for curve in curves:
        by_kind.setdefault(curve.kind, []).append(curve)
    kinds = sorted(by_kind)
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        pool = by_kind[kinds[number % len(kinds)]]
        curve = pool[int(rng.integers(len(pool)))]
        host = sites.hosts[int(rng.integers(len(sites.hosts)))]
        detected = curve.flux >= DETECTION_SNR * curve.flux_err
        first = float(curve.jd[detected][0])
        shift = round(float(rng.uniform(*span)) - first)
        dimming = float(rng.uniform(0.0, max(min(MAX_DIMMING, FAINTEST - curve.peak_mag), 0.0)))
        limit = sites.limit_errors(curve.fid, rng)
        scale = 10.0 ** (-0.4 * dimming)
        limit = np.where(np.isfinite(curve.flux), limit, curve.flux_err)  # an upper limit keeps its depth
        variance = limit**2 + scale * np.maximum(curve.flux_err**2 - limit**2, 0.0)
        missing = np.maximum(variance - (scale * curve.flux_err) ** 2, 0.0)
        flux = scale * curve.flux + rng.normal(size=len(curve.jd)) * np.sqrt(missing)
        error = np.sqrt(variance)
        with np.errstate(invalid="ignore"):
            seen = flux >= DETECTION_SNR * error
        made.append(
            Injection(
                f"INJ{seed}x{number:06d}", curve, host, dimming, first + shift, curve.jd + shift, curve.fid,
                np.where(seen, flux, np.nan), error, limit,
            )
        )  # fmt: skip
    return made


def packets_of(injection: Injection, sites: Sites, number: int, seed: int) -> list[tuple[str, bytes]]:
    """The alert packets of an injection: (file name, Avro bytes), by time."""
    rng = np.random.default_rng([seed, number, 1])
    base = 900_000_000_000_000_000 + number * 100_000
    records = [_record(injection, sites, k, base + k, rng) for k in range(len(injection.jd))]
    encoded: dict[tuple[int, str], bytes] = {}
    packets = []
    for k in np.flatnonzero(injection.detected).tolist():
        jd = injection.jd[k]
        version = "4.02" if jd >= V4_FROM_JD else "3.3"
        history = np.flatnonzero((injection.jd >= jd - HISTORY_DAYS) & (injection.jd < jd)).tolist()
        for h in history:
            if (h, version) not in encoded:
                encoded[h, version] = encode_record(
                    "prv_candidate", version, _only(records[h], PRV_CANDIDATE)
                )
        candidate = {
            **_only(records[k], CANDIDATE),
            "ndethist": int(injection.detected[: k + 1].sum()),
            "ncovhist": k + 1,
            "jdstarthist": float(injection.jd[0]),
            "jdendhist": float(jd),
        }
        packets.append(
            (
                f"{base + k}.avro",
                packet_bytes(
                    version, injection.name, base + k, encode_record("candidate", version, candidate),
                    [encoded[h, version] for h in history], None, [None, None, None],
                ),
            )
        )  # fmt: skip
    return packets


def _only(record: dict[str, Any], fields: str) -> dict[str, Any]:
    return {name: record.get(name) for name in field_names(fields)}


_DEFAULTS: dict[str, Any] = {
    "ranr": 0.0, "decnr": 0.0, "nmtchps": 0, "rfid": 0, "jdstartref": 0.0, "jdendref": 0.0, "nframesref": 0,
    "rbversion": "injected", "drbversion": "injected", "nmatches": 0, "tooflag": 0,
}  # fmt: skip


def _record(
    injection: Injection, sites: Sites, k: int, candid: int, rng: np.random.Generator
) -> dict[str, Any]:
    """All fields of one exposure: the host's, what was measured, and the donor's quality."""
    host = injection.host
    depth = float(ZERO_POINT_UJY - 2.5 * np.log10(DETECTION_SNR * injection.limit_err[k]))
    record: dict[str, Any] = {
        "jd": float(injection.jd[k]), "fid": int(injection.fid[k]), "pid": candid, "programid": 1,
        "diffmaglim": depth, "candid": None, "isdiffpos": None, "rbversion": "injected",
    }  # fmt: skip
    if not injection.detected[k]:
        return record
    flux, error = float(injection.flux[k]), float(injection.flux_err[k])
    mag = float(ZERO_POINT_UJY - 2.5 * np.log10(flux))
    with_drb = record["jd"] >= DRB_FROM_JD
    donor = sites.donor(mag, with_drb, rng)
    measured = {
        "candid": candid, "isdiffpos": "t", "ra": host["ra"], "dec": host["dec"], "magpsf": mag,
        "sigmapsf": float(2.5 / np.log(10.0) * error / flux),
        "ssdistnr": None, "ssmagnr": None, "ssnamenr": None,
    }  # fmt: skip
    quality = {name: donor[name] for name in _QUALITY}
    if not with_drb:
        quality["drb"] = None
    missing = {name: value for name, value in _DEFAULTS.items() if host.get(name) is None}
    return {**host, **missing, **record, **quality, **measured}
