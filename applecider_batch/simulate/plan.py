"""What the survey will hold: kinds, names and places of all objects, drawn before any light curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from applecider_batch.simulate import movers, transients, variables
from applecider_batch.simulate.cadence import CHANNEL_X, CHANNEL_Y, Field, Season, Visits, galactic_b
from applecider_batch.simulate.source import Source

# Shares of the objects; a real archive is mostly variable stars, asteroids and artefacts.
MIX: dict[str, float] = {
    "SN Ia": 0.085, "SN Ib": 0.015, "SN Ic": 0.02, "SN IIP": 0.045, "SN IIn": 0.02, "SN IIb": 0.02,
    "CV": 0.07, "AGN": 0.075, "TDE": 0.03, "RR Lyrae": 0.06, "eclipsing binary": 0.06,
    "long-period variable": 0.05, "irregular variable": 0.04, "asteroid": 0.27, "artefact": 0.14,
}  # fmt: skip
# Share in fields near the Galactic plane; 0.1 of all other kinds. Faint CV are near, so less in the plane.
GALACTIC = {
    "CV": 0.35, "RR Lyrae": 0.7, "eclipsing binary": 0.7, "long-period variable": 0.7,
    "irregular variable": 0.7,
}  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """The place of one object in the plan: what it is, where, and its number among the objects of a
    channel."""

    index: int
    kind: str
    object_id: str
    field: int
    rcid: int
    xpos: float
    ypos: float
    tblid: int


def object_name(number: int, year: int) -> str:
    """``ZTFyyaaaaaaa``: seven letters, base 26, as ZTF's own; simulated ones begin with ``sim``.

    Raises
    ------
    ValueError
        When `number` does not fit four letters (456,976 objects).
    """
    if not 0 <= number < 26**4:
        raise ValueError(f"object number {number} does not fit four letters")
    letters = ""
    for _ in range(4):
        number, digit = divmod(number, 26)
        letters = chr(97 + digit) + letters
    return f"ZTF{year:02d}sim{letters}"


def allocate(n_objects: int) -> list[str]:
    """Kinds of `n_objects` objects: shares of `MIX` by largest remainder, each kind at least once if
    possible."""
    kinds = list(MIX)
    if n_objects < len(kinds):
        return sorted(kinds, key=lambda k: -MIX[k])[:n_objects]
    free = n_objects - len(kinds)
    exact = np.array([MIX[k] for k in kinds]) * n_objects
    want = np.maximum(exact - 1.0, 0.0)
    want = want / want.sum() * free
    count = np.floor(want).astype(int)
    for k in np.argsort(-(want - count), kind="stable")[: free - int(count.sum())]:
        count[k] += 1
    return [kind for kind, c in zip(kinds, count + 1, strict=True) for _ in range(int(c))]


def make_plan(n_objects: int, fields: list[Field], rng: np.random.Generator) -> list[Slot]:
    """Kinds and places of all objects; cheap, so it is made at once."""
    kinds = allocate(n_objects)
    near = [k for k, f in enumerate(fields) if abs(galactic_b(f.ra, f.dec)) < 20.0] or list(
        range(len(fields))
    )
    far = [k for k in range(len(fields)) if k not in near] or list(range(len(fields)))
    names = rng.permutation(n_objects)
    used: dict[tuple[int, int], int] = {}
    slots: list[Slot] = []
    first_asteroid = kinds.index("asteroid") if "asteroid" in kinds else 0
    for index, kind in enumerate(kinds):
        galactic = rng.random() < GALACTIC.get(kind, 0.1)
        pool = near if galactic else far
        place = (pool[int(rng.integers(0, len(pool)))], int(rng.integers(0, 64)))
        xy = rng.uniform(60.0, CHANNEL_X - 60.0), rng.uniform(60.0, CHANNEL_Y - 60.0)
        if rng.random() < 0.02:  # so close to the edge that stamps are cut
            xy = 38.0, xy[1]
        if kind == "asteroid" and (index - first_asteroid) % 2 == 1:  # the same asteroid, a little later
            place, xy = (slots[-1].field, slots[-1].rcid), (slots[-1].xpos, slots[-1].ypos)
        used[place] = used.get(place, 0) + 1
        slots.append(
            Slot(
                index,
                kind,
                object_name(int(names[index]), 18 + index % 6),
                place[0],
                place[1],
                *xy,
                used[place],
            )
        )
    return slots


def rare_slots(n_rare: int, n_objects: int, fields: list[Field], rng: np.random.Generator) -> list[Slot]:
    """Places of rare events beside the `n_objects` others, which do not change by them."""
    return [
        Slot(
            index=n_objects + k,
            kind=transients.RARE,
            object_id=object_name(n_objects + k, 18 + k % 6),
            field=int(rng.integers(0, len(fields))),
            rcid=int(rng.integers(0, 64)),
            xpos=rng.uniform(60.0, CHANNEL_X - 60.0),
            ypos=rng.uniform(60.0, CHANNEL_Y - 60.0),
            tblid=9000 + k,
        )
        for k in range(n_rare)
    ]


def make_source(kind: str, visits: Visits, season: Season, rng: np.random.Generator) -> Source:
    """An object of any kind but asteroids."""
    start, end = season.start_jd, season.end_jd
    t_peak = float(rng.uniform(start - 25.0, end + 3.0))
    makers: dict[str, Callable[[], Source]] = {
        "artefact": lambda: movers.artefact(rng, visits, season),
        "CV": lambda: variables.dwarf_nova(rng, start, end),
        "AGN": lambda: variables.agn(rng, start, end),
        "irregular variable": lambda: variables.irregular(rng, start, end),
        "RR Lyrae": lambda: variables.rr_lyrae(rng),
        "eclipsing binary": lambda: variables.eclipsing(rng),
        "long-period variable": lambda: variables.long_period(rng),
        "SN Ia": lambda: transients.sn_ia(rng, t_peak),
        "SN Ib": lambda: transients.sn_ibc(kind, rng, t_peak),
        "SN Ic": lambda: transients.sn_ibc(kind, rng, t_peak),
        "SN IIP": lambda: transients.sn_iip(rng, t_peak),
        "SN IIn": lambda: transients.sn_iin(rng, t_peak),
        "SN IIb": lambda: transients.sn_iib(rng, t_peak),
        "TDE": lambda: transients.tde(rng, t_peak),
        transients.RARE: lambda: transients.fast_blue(
            rng, start + (end - start) * float(rng.uniform(0.1, 0.8))
        ),
    }
    return makers[kind]()
