"""The columns of `candidate`, `prv_candidates` and `fp_hists`, consistent with exposure, scene and stamps."""

from __future__ import annotations

from typing import Any

import numpy as np

from applecider_batch.simulate.cadence import (
    CHANNEL_X,
    CHANNEL_Y,
    NID_ZERO_JD,
    PIXEL_SCALE_ARCSEC,
    FloatArray,
    IntArray,
    night_date,
)
from applecider_batch.simulate.environment import MISSING, Environment
from applecider_batch.simulate.observe import GAIN, Observations
from applecider_batch.simulate.packets import encode_record
from applecider_batch.simulate.source import Source
from applecider_batch.simulate.stamps import APERTURES, PIXEL_NOISE, Stamps, effective_pixels

RBVERSION = "simulated"
DRBVERSION = "simulated"
PROGRAM_PI = "simulated"
FORCED_MISSING = -99999.0
MAX_REVISIONS = 12
_FORCED_SHARED = (
    "fid",
    "pid",
    "magzpsci",
    "magzpsciunc",
    "magzpscirms",
    "clrcoeff",
    "clrcounc",
    "diffmaglim",
    "jd",
)
Columns = dict[str, list[Any]]


def processing_id(nid: int, jd: float, rcid: int) -> int:
    """ZTF's `pid`: night, fraction of the UTC day in 1e-5, readout channel, 15."""
    fraction = int(((jd - NID_ZERO_JD) - nid) * 1e5)
    return int(f"{nid:04d}{fraction:05d}{rcid:02d}15")


def candidate_id(pid: int, slot: int) -> int:
    """`candid` of the `slot`-th source of an exposure's channel (1 .. 9999)."""
    return pid * 1_000_000 + 10_000 + slot


def reference_id(seen: Observations, k: int) -> int:
    """`rfid` of the reference image of exposure `k`."""
    v = seen.visits
    return int(f"{v.field.number}{int(v.fid[k])}{seen.rcid:02d}01")


def image_name(seen: Observations, k: int) -> str:
    """Name of the difference image, as in `pdiffimfilename` of histories."""
    v = seen.visits
    nid = int(v.nid[k])
    date = night_date(nid)
    fraction = f"{int((v.jd[k] - NID_ZERO_JD - nid) * 1e6):06d}"
    ccd, quadrant = divmod(seen.rcid, 4)
    band = "gri"[int(v.fid[k]) - 1]
    place = f"{v.field.number:06d}_z{band}_c{ccd + 1:02d}_o_q{quadrant + 1}"
    return f"ztf_{date}{fraction}_{place}_scimrefdiffimg.fits"


def exposure_columns(seen: Observations) -> Columns:
    """What is known of every exposure of the field, detection or not; lists of length n.

    Drawn from the exposure alone, so all objects of a channel see the same calibration.
    """
    v = seen.visits
    n = len(v.jd)
    rng = np.random.default_rng([int(v.field.number), seen.rcid, n])
    unc = 10 ** rng.normal(-5.1, 0.35, n)
    color = {1: -0.06, 2: 0.09, 3: 0.01}
    pid = [processing_id(int(v.nid[k]), float(v.jd[k]), seen.rcid) for k in range(n)]
    return {
        "jd": v.jd.tolist(),
        "fid": v.fid.tolist(),
        "pid": pid,
        "diffmaglim": seen.limit.tolist(),
        "pdiffimfilename": [image_name(seen, k) for k in range(n)],
        "nid": v.nid.tolist(),
        "magzpsci": v.zero_point.tolist(),
        "magzpsciunc": unc.tolist(),
        "magzpscirms": np.clip(rng.normal(0.035, 0.009, n), 0.015, 0.09).tolist(),
        "clrcoeff": [color[int(f)] + float(d) for f, d in zip(v.fid, rng.normal(0, 0.022, n), strict=True)],
        "clrcounc": (unc * 1.6).tolist(),
    }


def _quality(source: Source, snr: FloatArray, rng: np.random.Generator) -> Columns:
    """Real/bogus scores, shape and bad pixels: good for real sources, poor for artefacts."""
    n = len(snr)
    if source.artefact is None:
        rb = rng.beta(9.0, 1.4, n) - 0.1 * np.exp(-(snr - 5.0) / 4.0)
        drb = 1.0 - np.minimum(10 ** rng.normal(-4.3, 1.3, n) * (1 + 6 * np.exp(-(snr - 5) / 3.0)), 1.0) * 0.6
        worse = rng.random(n) < 0.02
        drb = np.where(worse, rng.uniform(0.1, 0.95, n), drb)
        elong = 1.0 + np.abs(rng.normal(0.0, 0.08, n)) + rng.exponential(0.035, n)
        nbad = (rng.random(n) < 0.01).astype(int)
        classtar = 1.0 - np.minimum(rng.exponential(0.03, n), 0.5)
        # SExtractor gives most isolated point sources nearly the same value.
        classtar = np.where(rng.random(n) < 0.4, rng.normal(0.983, 0.001, n), classtar)
        chi = np.exp(rng.normal(0.35, 0.4, n)) * (1.0 + (snr / 30.0) ** 1.5)
    else:
        rb = rng.beta(2.2, 4.0, n)
        drb = np.where(rng.random(n) < 0.85, rng.beta(0.35, 3.0, n), rng.uniform(0.3, 0.95, n))
        elong = 1.1 + rng.exponential(0.5 if source.artefact == "streak" else 0.25, n)
        nbad = rng.poisson(1.0 if source.artefact == "cosmic_ray" else 0.25, n)
        classtar = np.clip(rng.beta(3.0, 2.0, n), 0.0, 1.0)
        chi = np.exp(rng.normal(2.0, 0.9, n))
    return {
        "rb": np.clip(rb, 0.0, 1.0).tolist(),
        "drb": np.clip(drb, 1e-6, 1.0).tolist(),
        "elong": elong.tolist(),
        "nbad": nbad.tolist(),
        "classtar": classtar.tolist(),
        "chipsf": chi.tolist(),
    }


def _aperture(
    seen: Observations, index: IntArray, stamps: dict[int, int], rendered: Stamps, rng: np.random.Generator
) -> Columns:
    """Aperture magnitudes: measured on the stamp where there is one, drawn with the same noise otherwise."""
    v = seen.visits
    flux = np.abs(seen.flux_dn[index])
    zero = v.zero_point[index]
    lim_sigma = 10.0 ** (0.4 * (zero - seen.limit[index])) / 5.0
    pixel = PIXEL_NOISE * lim_sigma / np.sqrt(effective_pixels(v.seeing[index]))
    out: Columns = {}
    rows = np.array([stamps.get(int(k), -1) for k in index])
    for j, (name, error) in enumerate((("magap", "sigmagap"), ("magapbig", "sigmagapbig"))):
        sigma = np.sqrt(np.pi * APERTURES[j] ** 2 * pixel**2 + flux / GAIN)
        total = flux + rng.normal(size=len(index)) * sigma
        has = rows >= 0
        total[has] = rendered.aperture_dn[rows[has], j]
        total = np.maximum(total, 0.15 * flux)  # a negative sum has no magnitude
        out[name] = (zero - 2.5 * np.log10(total)).tolist()
        out[error] = np.maximum(1.0857 * sigma / np.maximum(total, sigma * 0.4), 0.004).tolist()
    core = np.clip(rng.normal(3.0, 2.0, len(index)), 0, 9).astype(int)
    rat = np.clip(1.0 - rng.exponential(0.02, len(index)), 0.5, 1.0)
    has = rows >= 0
    core[has] = rendered.nneg[rows[has]]
    rat[has] = rendered.sumrat[rows[has]]
    out["nneg"], out["sumrat"] = core.tolist(), rat.tolist()
    return out


def detection_columns(
    source: Source, environment: Environment, seen: Observations, index: IntArray, slot: int,
    stamp_row: dict[int, int], rendered: Stamps, exposures: Columns, rng: np.random.Generator,
) -> Columns:  # fmt: skip
    """Columns that `candidate` and a detected `prv_candidate` share, for exposures `index` (n,)."""
    v = seen.visits
    n = len(index)
    snr = np.abs(seen.flux_dn[index]) / seen.sigma_dn[index]
    scatter = np.clip(0.9 / snr, 0.01, 0.18) * v.seeing[index]
    d_east, d_north = rng.normal(size=(2, n)) * scatter * PIXEL_SCALE_ARCSEC
    ra = environment.ra + d_east / 3600.0 / np.cos(np.radians(environment.dec))
    dec = environment.dec + d_north / 3600.0
    xpos, ypos = seen.xpos[index], seen.ypos[index]
    columns: Columns = {name: [exposures[name][k] for k in index] for name in exposures}
    columns.update(_quality(source, snr, rng))
    columns.update(_aperture(seen, index, stamp_row, rendered, rng))
    nearest = environment.ref
    if nearest >= 0:
        distance = np.hypot(environment.east[nearest] - d_east, environment.north[nearest] - d_north)
        mag = environment.mag[nearest, v.fid[index] - 1]
        extended = bool(environment.score[nearest] < 0.5 and environment.mag[nearest, 1] < 21.5)
        if environment.is_host[nearest]:  # a PSF's magnitude misses what lies outside of it
            mag = mag + 2.5 * np.log10(1.0 + (source.host_radius_arcsec / 1.5) ** 2)
        ranr = environment.ra + environment.east[nearest] / 3600.0 / np.cos(np.radians(environment.dec))
        decnr = environment.dec + environment.north[nearest] / 3600.0
    else:  # the catalogue of the reference image always holds some faint peak nearby
        place = rng.uniform(-12.0, 12.0, 2)
        distance, mag, extended = np.full(n, float(np.hypot(*place))), np.full(n, 22.9), False
        ranr, decnr = environment.ra + place[0] / 3600.0, environment.dec + place[1] / 3600.0
    mag = np.clip(mag, 11.5, 23.4)
    faint = np.clip((mag - 19.0) / 4.0, 0.0, 1.0)
    sharp = 0.6 if source.artefact == "cosmic_ray" else 1.0
    fwhm = np.clip(sharp * v.seeing[index] * rng.lognormal(0.08, 0.24, n), 0.9, 9.0)
    elong = np.array(columns["elong"])
    bimage = 0.79 * (fwhm / 2.3) ** 0.35 / elong**0.5 * rng.lognormal(-0.01, 0.1, n)
    columns.update(
        programpi=[PROGRAM_PI] * n,
        programid=[1] * n,
        candid=[candidate_id(p, slot) for p in columns["pid"]],
        isdiffpos=["t" if f > 0 else "f" for f in seen.flux_dn[index]],
        tblid=[slot] * n,
        rcid=[seen.rcid] * n,
        field=[v.field.number] * n,
        xpos=xpos.tolist(),
        ypos=ypos.tolist(),
        ra=np.round(ra, 7).tolist(),
        dec=np.round(dec, 7).tolist(),
        magpsf=seen.magpsf[index].tolist(),
        sigmapsf=seen.sigmapsf[index].tolist(),
        distnr=(distance / PIXEL_SCALE_ARCSEC).tolist(),
        magnr=np.round(mag, 3).tolist(),
        sigmagnr=np.round(
            0.016 * rng.lognormal(0.4 if extended else 0.05, 0.3, n)
            + 0.33 * np.clip((mag - 17.0) / 6.0, 0.0, 1.1) ** 4,
            3,
        ).tolist(),
        chinr=np.round(
            np.exp(rng.normal(1.4 if extended else -0.25, 0.65 if extended else 0.5, n)), 3
        ).tolist(),
        sharpnr=np.round(
            rng.normal(0.33 if extended else 0.0, 0.2 if extended else 0.03, n) - 0.3 * faint * rng.random(n),
            3,
        ).tolist(),
        sky=(0.4 * rng.standard_t(2.5, n)).tolist(),
        fwhm=fwhm.tolist(),
        mindtoedge=np.minimum.reduce([xpos, ypos, CHANNEL_X - xpos, CHANNEL_Y - ypos]).tolist(),
        seeratio=np.clip(rng.lognormal(0.1, 0.26, n), 0.45, 2.0).tolist(),
        bimage=bimage.tolist(),
        aimage=(bimage * elong).tolist(),
        aimagerat=(bimage * elong / fwhm).tolist(),
        bimagerat=(bimage / fwhm).tolist(),
        magdiff=[a - p for a, p in zip(columns["magap"], seen.magpsf[index], strict=True)],
        magfromlim=[lim - a for lim, a in zip(columns["diffmaglim"], columns["magap"], strict=True)],
        ranr=[float(np.round(ranr, 7))] * n,
        decnr=[float(np.round(decnr, 7))] * n,
        scorr=(snr / (1.0 + snr / 120.0) * rng.lognormal(0.3, 0.22, n)).tolist(),
        rbversion=[RBVERSION] * n,
    )
    name, mag_ss, dist_ss = source.moving or ("null", MISSING, MISSING)
    columns.update(ssdistnr=[dist_ss] * n, ssmagnr=[mag_ss] * n, ssnamenr=[name] * n)
    return columns


def candidate_columns(
    environment: Environment, seen: Observations, index: IntArray, shared: Columns, rng: np.random.Generator
) -> Columns:
    """All columns of `candidate` for the exposures `index`: the shared ones plus history counts and
    catalogues."""
    v = seen.visits
    n = len(index)
    ndet, ncov, first = seen.counts()
    snr = np.abs(seen.flux_dn[index]) / seen.sigma_dn[index]
    columns = dict(shared)
    # Distances are from where this packet saw the object, not from where it is.
    d_east = (np.array(shared["ra"]) - environment.ra) * 3600.0 * np.cos(np.radians(environment.dec))
    d_north = (np.array(shared["dec"]) - environment.dec) * 3600.0
    near_gaia = environment.neargaia
    if near_gaia != MISSING:
        near_gaia = np.hypot(near_gaia + d_east, d_north)
    apart = np.hypot(environment.east[:, None] - d_east, environment.north[:, None] - d_north)
    nearest = np.argsort(apart, axis=0, kind="stable")
    limits = np.array([22.6, 22.4, 22.1, 21.6])  # PS1 has no magnitude below its limit
    for j in (1, 2, 3):
        if len(nearest) >= j:
            k = nearest[j - 1]
            mags = np.where(environment.mag[k] > limits, MISSING, np.round(environment.mag[k], 4))
            score, ids = environment.score[k].tolist(), environment.ps1_id[k].tolist()
            distance = apart[k, np.arange(n)].tolist()
        else:
            mags, score, ids, distance = np.full((n, 4), MISSING), [MISSING] * n, [None] * n, [MISSING] * n
        for band, values in zip("griz", mags.T, strict=True):
            columns[f"s{band}mag{j}"] = values.tolist()
        columns[f"sgscore{j}"], columns[f"objectidps{j}"], columns[f"distpsnr{j}"] = score, ids, distance
    dsn = snr * rng.lognormal(-0.1, 0.25, n)
    ssn = dsn * rng.lognormal(0.58, 0.15, n)
    fixed = np.random.default_rng([int(v.field.number), seen.rcid, 7])
    frames = int(fixed.choice([15, 15, 15, 15, 15, 15, 16, 17, 20, 25, 40]))
    start = 2458190.0 + float(np.round(fixed.uniform(0, 60), 6))
    zpmed = [z + float(d) for z, d in zip(columns["magzpsci"], rng.normal(0.01, 0.04, n), strict=True)]
    density = max(environment.mag.shape[0], 1)
    matches = np.clip(density * 120 * rng.lognormal(0.0, 0.1, n), 60, 2200).astype(int)
    columns.update(
        ndethist=ndet[index].tolist(),
        ncovhist=ncov[index].tolist(),
        jdstarthist=first[index].tolist(),
        jdendhist=v.jd[index].tolist(),
        tooflag=[0] * n,
        nmtchps=[len(environment.distance)] * n,
        rfid=[reference_id(seen, int(k)) for k in index],
        jdstartref=[start] * n,
        jdendref=[start + 40.0 + frames * 6.0] * n,
        nframesref=[frames] * n,
        dsnrms=dsn.tolist(),
        ssnrms=ssn.tolist(),
        dsdiff=(dsn - ssn).tolist(),
        nmatches=matches.tolist(),
        zpclrcov=[-1.3 * u for u in columns["magzpsciunc"]],
        zpmed=zpmed,
        clrmed=np.clip(rng.normal(0.62, 0.11, n), 0.4, 1.3).tolist(),
        clrrms=np.clip(rng.normal(0.24, 0.06, n), 0.12, 0.36).tolist(),
        neargaia=np.broadcast_to(near_gaia, n).tolist(),
        maggaia=[environment.maggaia] * n,
        neargaiabright=[environment.neargaiabright] * n,
        maggaiabright=[environment.maggaiabright] * n,
        exptime=[30.0] * n,
        drbversion=[DRBVERSION] * n,
    )
    return columns


def non_detection(exposures: Columns, seen: Observations, k: int) -> dict[str, Any]:
    """A history entry of an exposure without detection: a limit, everything measured null."""
    record = {name: values[k] for name, values in exposures.items()}
    record.update(
        programpi=PROGRAM_PI, programid=1, candid=None, isdiffpos=None, rcid=seen.rcid,
        field=seen.visits.field.number,
        ra=None, dec=None, magpsf=None, sigmapsf=None, ranr=None, decnr=None, rbversion=RBVERSION,
    )  # fmt: skip
    return record


class ForcedHistory:
    """Forced photometry of one object as its packets report it, encoded once per exposure and revision.

    The position is refined with every few alerts, so the same exposure's flux changes a little between
    packets; revision 0 is the first measurement.
    """

    def __init__(
        self, exposures: Columns, seen: Observations, environment: Environment, rng: np.random.Generator
    ) -> None:
        n = len(seen.visits.jd)
        self._exposures, self._seen, self._environment = exposures, seen, environment
        self._bad = rng.random(n) < 0.04
        self._noise = rng.normal(0.0, 0.15, (n, MAX_REVISIONS))
        self._noise[:, 0] = 0.0
        self._astrometry = rng.uniform(0.055, 0.11, (n, 2))
        self._cache: dict[tuple[int, int], bytes] = {}

    def point(self, k: int, revision: int, version: str) -> bytes:
        """Encoded ``fp_hist`` record of exposure `k`."""
        revision = min(revision, MAX_REVISIONS - 1)
        key = (k, revision)
        if key not in self._cache:
            self._cache[key] = encode_record("fp_hist", version, self.record(k, revision))
        return self._cache[key]

    def record(self, k: int, revision: int) -> dict[str, Any]:
        """The record of exposure `k` as revision `revision` reports it."""
        seen, environment = self._seen, self._environment
        v = seen.visits
        sigma = float(seen.forced_sigma[k])
        bad = bool(self._bad[k])
        nearest = environment.ref
        missing = dict.fromkeys(
            ("distnr", "ranr", "decnr", "magnr", "sigmagnr", "chinr", "sharpnr"), FORCED_MISSING
        )
        record: dict[str, Any] = {name: self._exposures[name][k] for name in _FORCED_SHARED}
        record.update(missing)
        record.update(
            field=v.field.number, rcid=seen.rcid, rfid=reference_id(seen, k), sciinpseeing=float(v.seeing[k]),
            scibckgnd=float(v.sky[k]), scisigpix=sigma / float(np.sqrt(effective_pixels(v.seeing[k]))) / 0.9,
            exptime=30.0, adpctdif1=float(self._astrometry[k, 0]), adpctdif2=float(self._astrometry[k, 1]),
            programid=1, procstatus="61" if bad else "0",
            forcediffimflux=FORCED_MISSING if bad else float(seen.forced_dn[k] + sigma * self._noise[k,
            revision]),
            forcediffimfluxunc=FORCED_MISSING if bad else sigma * (1.0 + 0.01 * revision),
        )  # fmt: skip
        if nearest >= 0 and not bad:
            east_deg = float(environment.east[nearest] / np.cos(np.radians(environment.dec))) / 3600.0
            record.update(
                distnr=float(environment.distance[nearest]),
                ranr=environment.ra + east_deg,
                decnr=environment.dec + float(environment.north[nearest]) / 3600.0,
                magnr=float(environment.mag[nearest, v.fid[k] - 1]), sigmagnr=0.05, chinr=0.8, sharpnr=0.0,
            )  # fmt: skip
        return record
