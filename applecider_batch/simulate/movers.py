"""What is in single exposures only: asteroids and artefacts."""

from __future__ import annotations

import numpy as np

from applecider_batch.simulate.cadence import FloatArray, IntArray, Season, Visits
from applecider_batch.simulate.source import Source, ujy

ARTEFACTS = ("residual", "cosmic_ray", "streak", "ghost")


def season_visits(visits: Visits, season: Season) -> IntArray:
    """Indices of the exposures that lie in the nights that are written."""
    return np.flatnonzero((visits.nid >= season.first_nid) & (visits.nid <= season.last_nid))


def night_groups(visits: Visits, season: Season) -> list[IntArray]:
    """Indices of the exposures of each night of the season, nights with exposures only."""
    inside = season_visits(visits, season)
    return [inside[visits.nid[inside] == nid] for nid in np.unique(visits.nid[inside])]


def asteroid(
    rng: np.random.Generator, visits: Visits, season: Season, which: int
) -> tuple[Source, float, float]:
    """One apparition of an asteroid: the `which`-th exposure of a night, or both when it hardly moves.

    Both apparitions of a pair are drawn from the same `rng` state, so they share name, night and track.  A
    main-belt asteroid moves 20-45 arcsec an hour (Jedicke et al. 2002, Asteroids III), so the next exposure
    sees it at another place and gives it another objectId.

    Returns
    -------
    source : Source
    east, north : float
        Offset in arcsec of this apparition from the track's first position.
    """
    groups = night_groups(visits, season)
    group = groups[int(rng.integers(0, len(groups)))]
    mag = float(20.1 - rng.exponential(0.9))
    number = int(rng.integers(1, 560000))
    known = rng.random() < 0.93
    speed = float(rng.uniform(20.0, 45.0)) if rng.random() < 0.9 else float(rng.uniform(0.0, 0.6))
    angle = float(rng.normal(0.4, 0.3))
    if speed < 1.0 and which == 1:  # the slow one keeps its place; its partner is another body
        speed = 30.0
    error = float(rng.choice([0.0, 0.0, 0.0, 1.0, 2.0]))
    first = group[0]
    pick = group[min(which, len(group) - 1)]
    if which >= len(group):  # only one exposure that night: take another night for the second apparition
        pick = groups[int(rng.integers(0, len(groups)))][0]
    slow = speed < 1.0 and which == 0
    only = group if slow else np.array([pick])
    hours = (visits.jd[pick] - visits.jd[first]) * 24.0
    shift = 0.0 if slow else speed * hours
    gr = 0.45

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        return ujy(mag + np.where(fid == 1, gr / 2, -gr / 2))

    source = Source(
        kind="asteroid", class5=None, gate="moving", flux=flux, only_visits=only,
        moving=(str(number), round(mag, 1), error) if known else None,
    )  # fmt: skip
    return source, shift * np.cos(angle), shift * np.sin(angle)


def artefact(rng: np.random.Generator, visits: Visits, season: Season) -> Source:
    """A spurious detection: bad subtraction of a bright star, cosmic ray, satellite streak, or a ghost.

    Kinds as in Duev et al. 2019 (doi:10.1093/mnras/stz2357), whose classifier gives them low `drb`.
    """
    what = str(rng.choice(ARTEFACTS, p=[0.5, 0.2, 0.15, 0.15]))
    inside = season_visits(visits, season)
    many = int(rng.integers(2, 6)) if what == "residual" else 1
    only = np.sort(rng.permutation(inside)[:many])
    mag = {"residual": (16.5, 1.3), "cosmic_ray": (18.5, 0.8), "streak": (17.5, 1.0), "ghost": (18.0, 1.2)}[
        what
    ]
    level = float(np.clip(rng.normal(*mag), 13.5, 19.8))
    sign_seed = int(rng.integers(0, 2**31))

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        draw = np.random.default_rng([sign_seed, len(jd)])
        sign = np.where(draw.random(len(jd)) < (0.45 if what == "residual" else 0.03), -1.0, 1.0)
        return np.asarray(sign * ujy(level + draw.normal(0.0, 0.3, len(jd))))

    source = Source(kind="artefact", class5=None, gate="artefact", flux=flux, only_visits=only, artefact=what)
    if what == "residual":
        star = float(rng.uniform(11.5, 14.5))
        source.star_mag = {1: star + 0.7, 2: star, 3: star - 0.3}
        source.past_detection_rate = float(rng.uniform(0.0, 0.1))
    return source
