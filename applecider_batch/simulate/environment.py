"""What surrounds an object on the sky: PS1 and Gaia neighbours, host galaxy, reference-image sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from applecider_batch.simulate.cadence import FloatArray, galactic_b
from applecider_batch.simulate.source import Source

MISSING = -999.0
SEARCH_RADIUS_ARCSEC = 30.0
GAIA_RADIUS_ARCSEC = 90.0


@dataclass(frozen=True)
class Environment:
    """Catalogue sources around one object, nearest first.

    `east`, `north`, `distance` arcsec (m,); `mag` true mags in g, r, i, z (m, 4); `score` PS1 star/galaxy
    score (m,), 1 = star; `is_host` marks the host galaxy (its light is a Sersic profile, not a point). `ref`
    is the index of the nearest source of the reference image's catalogue, -1 when there is none.
    """

    ra: float
    dec: float
    east: FloatArray
    north: FloatArray
    distance: FloatArray
    mag: FloatArray
    score: FloatArray
    ps1_id: npt.NDArray[np.int64]
    is_host: npt.NDArray[np.bool_]
    own_star: int
    ref: int
    neargaia: float
    maggaia: float
    neargaiabright: float
    maggaiabright: float
    host_pa: float
    host_ratio: float


def _four(mags: dict[int, float]) -> list[float]:
    return [mags[1], mags[2], mags[3], mags[3] - 0.15]


def build_environment(source: Source, ra: float, dec: float, rng: np.random.Generator) -> Environment:
    """Draw the surroundings of `source` at `ra`, `dec` (degrees).

    The density of field stars falls with Galactic latitude, as the counts of PS1 matches in real packets do
    (median 14 within 30 arcsec near the plane, 6 far from it).
    """
    latitude = abs(galactic_b(ra, dec))
    density = (3.5 + 26.0 * np.exp(-latitude / 13.0)) * float(rng.lognormal(0.0, 0.5))
    count = int(rng.poisson(density))
    radius = SEARCH_RADIUS_ARCSEC * np.sqrt(rng.random(count))
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    east, north = radius * np.cos(angle), radius * np.sin(angle)
    r = np.maximum(22.4 - rng.exponential(2.1, count), 12.0)
    is_star = rng.random(count) < 0.35 + 0.6 * np.exp(-latitude / 25.0)
    gr = np.where(is_star, rng.uniform(0.3, 1.4, count), rng.normal(0.9, 0.35, count))
    mag = np.stack([r + gr, r, r - 0.45 * gr, r - 0.65 * gr], axis=1)
    certain = np.clip((22.3 - r) / 2.0, 0.15, 1.0)  # faint sources get scores near 0.5
    score = np.where(is_star, 1.0 - 0.5 * (1 - certain), 0.5 * (1 - certain))
    score = np.clip(score + rng.normal(0.0, 0.12, count) * (1.2 - certain), 0.0, 1.0)
    bright = r < 19.0
    score = np.where(bright & is_star, 1.0 - rng.exponential(0.012, count), score)
    host = np.zeros(count, bool)

    parts_e, parts_n, parts_m, parts_s, parts_h = [east], [north], [mag], [score], [host]
    pa, ratio = float(rng.uniform(0.0, np.pi)), float(rng.uniform(0.35, 1.0))
    bearing = float(rng.uniform(0.0, 2.0 * np.pi))
    own = -1
    total = count
    if source.host_mag is not None:
        light = dict(source.host_mag)
        if source.core_mag is not None:
            light = {
                k: float(-2.5 * np.log10(10 ** (-0.4 * m) + 10 ** (-0.4 * source.core_mag[k])))
                for k, m in light.items()
            }
        if light[2] < 22.6:
            east_h, north_h = (
                source.host_offset_arcsec * np.cos(bearing),
                source.host_offset_arcsec * np.sin(bearing),
            )
            compact = source.core_mag is not None and source.core_mag[2] < source.host_mag[2] - 0.3
            value = rng.beta(5.0, 0.5) if compact else rng.beta(0.6, 9.0)
            if light[2] > 21.3:
                value = 0.5 + rng.normal(0.0, 0.15)
            parts_e.append(np.array([east_h]))
            parts_n.append(np.array([north_h]))
            parts_m.append(np.array([_four(light)]))
            parts_s.append(np.clip(np.array([value]), 0.0, 1.0))
            parts_h.append(np.array([True]))
            total += 1
            # Catalogues split a large galaxy into its nucleus and its knots.
            knots = 0 if compact else int(rng.poisson(1.3 if light[2] < 19.5 else 0.3))
            if knots:
                spread = source.host_radius_arcsec * rng.gamma(2.0, 0.6, knots) + 0.8
                turn = rng.uniform(0.0, 2.0 * np.pi, knots)
                parts_e.append(east_h + spread * np.cos(turn))
                parts_n.append(north_h + spread * np.sin(turn))
                fainter = rng.uniform(2.0, 4.5, knots)
                parts_m.append(np.array([_four(light)]) + fainter[:, None])
                parts_s.append(rng.beta(0.8, 1.2, knots))
                parts_h.append(np.zeros(knots, bool))
                total += knots
    if source.star_mag is not None and source.star_mag[2] < 22.4:
        parts_e.append(rng.normal(0.0, 0.12, 1))
        parts_n.append(rng.normal(0.0, 0.12, 1))
        parts_m.append(np.array([_four(source.star_mag)]))
        faint = source.star_mag[2] > 20.8
        parts_s.append(
            np.clip(np.array([rng.normal(0.7, 0.2) if faint else 1.0 - rng.exponential(0.02)]), 0.0, 1.0)
        )
        parts_h.append(np.array([False]))
        own = total
    distance = np.hypot(np.concatenate(parts_e), np.concatenate(parts_n))
    order = np.argsort(distance, kind="stable")
    order = order[distance[order] <= SEARCH_RADIUS_ARCSEC]
    own = int(np.flatnonzero(order == own)[0]) if own in order else -1
    distance = distance[order]
    east, north = np.concatenate(parts_e)[order], np.concatenate(parts_n)[order]
    mag, score = np.concatenate(parts_m)[order], np.concatenate(parts_s)[order]
    host = np.concatenate(parts_h)[order].astype(np.bool_)
    in_reference = np.flatnonzero(mag[:, 1] < 23.1)
    gaia = np.flatnonzero((mag[:, 1] < 20.6) & (~host | (score > 0.5) | (mag[:, 1] < 15.5)))
    near, near_mag = MISSING, MISSING
    if len(gaia):
        near, near_mag = float(distance[gaia[0]]), float(mag[gaia[0], 1] + 0.02)
    else:
        far = float(SEARCH_RADIUS_ARCSEC + rng.exponential(70.0 / (1.0 + density / 6.0)))
        if far < GAIA_RADIUS_ARCSEC:
            near, near_mag = far, float(20.6 - rng.exponential(1.2))
    bright_near, bright_mag = MISSING, MISSING
    bright_ones = np.flatnonzero(mag[:, 1] < 14.0)
    if len(bright_ones):
        bright_near, bright_mag = float(distance[bright_ones[0]]), float(mag[bright_ones[0], 1])
    else:
        far = float(np.sqrt(rng.exponential(5600.0 * 7.0 / density)) + 8.0)
        if far < GAIA_RADIUS_ARCSEC:
            bright_near, bright_mag = far, float(14.0 - rng.exponential(0.9))
    ids = np.int64(10**17) + rng.integers(0, 9 * 10**16, len(distance))
    return Environment(
        ra=ra, dec=dec, east=east, north=north, distance=distance, mag=mag,
        score=np.round(score, 6).astype(np.float64),
        ps1_id=ids,
        is_host=host, own_star=own, ref=int(in_reference[0]) if len(in_reference) else -1, neargaia=near,
        maggaia=near_mag, neargaiabright=bright_near, maggaiabright=bright_mag, host_pa=pa, host_ratio=ratio,
    )  # fmt: skip
