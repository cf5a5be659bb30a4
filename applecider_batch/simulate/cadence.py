"""Where and when the simulated survey looks: fields, nights, weather, limits.

A field is the 7.4 deg square of ZTF's camera with 64 readout channels of 3072 x 3080 pixels (Bellm et al.
2019,
doi:10.1088/1538-3873/aaecbe).  The public survey visits a field in g and r about every second or third night;
Moon, seeing, airmass and clouds move the 5 sigma limit of a difference image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NID_ZERO_JD = 2457754.5  # ZTF's night number 0 begins here (2017-01-01 UTC)
SURVEY_START_JD = 2458197.5  # 2018-03-20, first light of the public survey
SWITCH_NID = 2481  # 2023-10-17 UTC: packets are schema 4.02 from this night on
PIXEL_SCALE_ARCSEC = 1.01
CHANNEL_X, CHANNEL_Y = 3072, 3080
HISTORY_NIGHTS = 150  # simulated before the season; longer histories are counts only
LOOKBACK_DAYS = 30.0

LIMIT_MEDIAN = {1: 20.62, 2: 20.47, 3: 19.95}  # mag, dark and clear
ZERO_POINT = {1: 26.32, 2: 26.32, 3: 25.7}
MOON_LOSS = {1: 1.0, 2: 0.6, 3: 0.35}  # mag at full Moon
SYNODIC_DAYS = 29.530588


@dataclass(frozen=True)
class Field:
    """A pointing of the camera; `ra`, `dec` in degrees."""

    number: int
    ra: float
    dec: float


@dataclass(frozen=True)
class Visits:
    """All exposures of one field, in time order; every array has length n.

    `jd` days, `fid` 1 = g, 2 = r, 3 = i, `seeing` FWHM in pixels, `zero_point` mag for 1 DN, `limit` the 5
    sigma limit of the difference image in mag, `sky` background level in DN, `dither_x`, `dither_y` pixels.
    """

    field: Field
    jd: FloatArray
    fid: IntArray
    nid: IntArray
    seeing: FloatArray
    zero_point: FloatArray
    limit: FloatArray
    sky: FloatArray
    dither_x: FloatArray
    dither_y: FloatArray


@dataclass(frozen=True)
class Season:
    """The nights that are written (`first_nid` .. `last_nid`) and what lies before them."""

    first_nid: int
    n_nights: int
    switch_nid: int

    @property
    def last_nid(self) -> int:
        return self.first_nid + self.n_nights - 1

    @property
    def history_nid(self) -> int:
        return self.first_nid - HISTORY_NIGHTS

    @property
    def start_jd(self) -> float:
        return NID_ZERO_JD + self.first_nid

    @property
    def end_jd(self) -> float:
        return NID_ZERO_JD + self.last_nid + 1.0


def make_season(n_nights: int) -> Season:
    """Season of `n_nights` UTC nights, with the change to schema 4.02 in its middle."""
    return Season(first_nid=SWITCH_NID - n_nights // 2, n_nights=n_nights, switch_nid=SWITCH_NID)


def night_date(nid: int) -> str:
    """UTC date of a night as ``YYYYMMDD`` (proleptic Gregorian, no leap seconds needed)."""
    return str(np.datetime64("2017-01-01") + np.timedelta64(int(nid), "D")).replace("-", "")


def galactic_b(ra_deg: float, dec_deg: float) -> float:
    """Galactic latitude in degrees of an ICRS position (pole at 192.85948, +27.12825)."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    pole_ra, pole_dec = np.radians(192.85948), np.radians(27.12825)
    sine = np.sin(dec) * np.sin(pole_dec) + np.cos(dec) * np.cos(pole_dec) * np.cos(ra - pole_ra)
    return float(np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0))))


def field_grid() -> list[Field]:
    """A grid like ZTF's primary one: rows of declination, numbered from 245 upward."""
    fields = []
    number = 245
    for dec in np.arange(-27.4, 80.0, 7.2):
        count = int(np.ceil(360.0 * np.cos(np.radians(dec)) / 7.0))
        for k in range(count):
            fields.append(Field(number, 360.0 * (k + 0.5) / count, float(dec)))
            number += 1
    return fields


def choose_fields(season: Season, count: int, rng: np.random.Generator) -> list[Field]:
    """Draw `count` fields that are up at night in the middle of the season, half of them near the Galaxy."""
    middle = (season.start_jd + season.end_jd) / 2.0
    # Right ascension on the meridian at local midnight: opposite the mean Sun.
    sun_ra = (280.46 + 0.9856474 * (middle - 2451545.0)) % 360.0
    midnight_ra = (sun_ra + 180.0) % 360.0
    up = [
        f for f in field_grid() if abs((f.ra - midnight_ra + 180.0) % 360.0 - 180.0) < 80.0 and f.dec < 72.0
    ]
    near = [f for f in up if abs(galactic_b(f.ra, f.dec)) < 20.0]
    far = [f for f in up if abs(galactic_b(f.ra, f.dec)) >= 20.0]
    n_near = max(1, min(len(near), count // 3))
    n_far = max(1, min(len(far), count - n_near))
    picked = [near[i] for i in rng.permutation(len(near))[:n_near]]
    picked += [far[i] for i in rng.permutation(len(far))[:n_far]]
    return sorted(picked, key=lambda f: f.number)


def nightly_weather(season: Season, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
    """Nights on which the dome opened, and the loss by clouds in mag, for history and season together.

    Returns
    -------
    open_nights : bool array as int64, shape (n,)
    cloud_loss : float64 array, shape (n,)
        Extinction and lost depth in mag, with a long tail.
    """
    n = season.last_nid - season.history_nid + 1
    state = np.empty(n)
    state[0] = rng.normal()
    for k in range(1, n):  # weather comes in spells of a few nights
        state[k] = 0.55 * state[k - 1] + np.sqrt(1 - 0.55**2) * rng.normal()
    opened = state < 0.75
    opened[n - season.n_nights] = True  # a season never starts closed: its first night has packets
    cloud = np.where(state > 0.2, rng.exponential(0.9, n), rng.exponential(0.06, n))
    return opened.astype(np.int64), np.minimum(cloud, 4.0)


def field_visits(
    field: Field, season: Season, opened: IntArray, cloud: FloatArray, rng: np.random.Generator
) -> Visits:
    """Exposures of one field over history and season."""
    rows: list[tuple[float, int, int, float, float, float, float]] = []
    cadence = 2 if rng.random() < 0.65 else 3
    phase = int(rng.integers(0, cadence))
    middle = (season.start_jd + season.end_jd) / 2.0
    sun_ra = (280.46 + 0.9856474 * (middle - 2451545.0)) % 360.0
    hour = ((field.ra - sun_ra - 180.0 + 180.0) % 360.0 - 180.0) / 15.0
    # Palomar's local midnight is about 08:00 UTC; a field is taken within +-1.5 h of where it is highest.
    best = 8.0 / 24.0 + np.clip(hour, -4.0, 4.0) / 24.0
    for k, nid in enumerate(range(season.history_nid, season.last_nid + 1)):
        first = k == season.last_nid - season.history_nid + 1 - season.n_nights
        if not opened[k] or not (first or (nid + phase) % cadence == 0 or rng.random() < 0.12):
            continue
        start = best + rng.normal(0.0, 0.8) / 24.0
        order = [1, 2] if rng.random() < 0.5 else [2, 1]
        if not first and rng.random() < 0.15:
            order = order[:1]
        if rng.random() < 0.08:
            order.append(3)
        jd = NID_ZERO_JD + nid + start
        illum = 0.5 * (1.0 - np.cos(2.0 * np.pi * (jd - 2451550.1) / SYNODIC_DAYS))
        base_seeing = float(np.clip(rng.lognormal(np.log(2.05), 0.16), 1.5, 4.5))
        airmass_loss = 0.12 * abs(hour) / 4.0 + 0.2 * max(0.0, -field.dec / 30.0)
        for j, fid in enumerate(order):
            seeing = base_seeing * {1: 1.06, 2: 1.0, 3: 0.96}[fid] * float(rng.lognormal(0.0, 0.04))
            loss = MOON_LOSS[fid] * illum**1.5 + 1.9 * np.log10(seeing / 1.9) + airmass_loss + cloud[k]
            limit = LIMIT_MEDIAN[fid] - loss + rng.normal(0.0, 0.09)
            zero_point = ZERO_POINT[fid] - 0.55 * cloud[k] - 0.08 * airmass_loss + rng.normal(0.0, 0.05)
            sky = {1: 90.0, 2: 190.0, 3: 330.0}[fid] * (1.0 + {1: 4.0, 2: 2.0, 3: 1.0}[fid] * illum**1.5)
            when = jd + j * rng.uniform(0.6, 1.9) / 24.0 * 1.0 + (0.021 if j else 0.0)
            rows.append((when, fid, nid, seeing, zero_point, float(limit), float(sky)))
    rows.sort()
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    n = len(table)
    return Visits(
        field=field,
        jd=np.round(table[:, 0], 7),
        fid=table[:, 1].astype(np.int64),
        nid=table[:, 2].astype(np.int64),
        seeing=table[:, 3],
        zero_point=np.round(table[:, 4], 4),
        limit=np.round(table[:, 5], 4),
        sky=table[:, 6],
        dither_x=rng.normal(0.0, 12.0, n),
        dither_y=rng.normal(0.0, 12.0, n),
    )


def channel_offset_deg(rcid: int, xpos: float, ypos: float) -> tuple[float, float]:
    """Tangent-plane offset (east, north) in degrees of a pixel of readout channel `rcid` from the field
    centre."""
    ccd, quadrant = divmod(rcid, 4)
    column = 2 * (ccd % 4) + (1 if quadrant in (0, 3) else 0)
    row = 2 * (ccd // 4) + (1 if quadrant in (0, 1) else 0)
    scale = PIXEL_SCALE_ARCSEC / 3600.0
    east = (column - 3.5) * 0.925 + (xpos - CHANNEL_X / 2) * scale
    north = (row - 3.5) * 0.925 + (ypos - CHANNEL_Y / 2) * scale
    return east, north


def sky_position(field: Field, east_deg: float, north_deg: float) -> tuple[float, float]:
    """Inverse gnomonic projection: ICRS position in degrees of an offset from the field centre."""
    x, y = np.radians(east_deg), np.radians(north_deg)
    dec0 = np.radians(field.dec)
    rho = np.hypot(x, y)
    if rho == 0.0:
        return field.ra, field.dec
    c = np.arctan(rho)
    dec = np.arcsin(np.cos(c) * np.sin(dec0) + y * np.sin(c) * np.cos(dec0) / rho)
    ra = np.radians(field.ra) + np.arctan2(
        x * np.sin(c), rho * np.cos(dec0) * np.cos(c) - y * np.sin(dec0) * np.sin(c)
    )
    return float(np.degrees(ra) % 360.0), float(np.degrees(dec))
