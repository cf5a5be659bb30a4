"""A small survey in ZTF's own format, with truth.

Everything it writes says that it is simulated:

    DIR/simulation.json              parameters, counts, seed (written last)
    DIR/README.md
    DIR/alerts/ztf_public_YYYYMMDD.tar.gz   one per UTC night, packets as <candid>.avro
    DIR/truth.parquet                one row per objectId
    DIR/spectra.parquet              one row per spectrum
    DIR/known_transients.csv         known-transient list, some left out

Objects are made one by one from generators of their own, so memory does not grow with the survey.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from applecider_batch.errors import UsageError, UserError
from applecider_batch.simulate import movers, transients, variables
from applecider_batch.simulate.avro_schema import CANDIDATE, field_names
from applecider_batch.simulate.cadence import (
    CHANNEL_X,
    CHANNEL_Y,
    LOOKBACK_DAYS,
    PIXEL_SCALE_ARCSEC,
    Field,
    Season,
    Visits,
    channel_offset_deg,
    choose_fields,
    field_visits,
    galactic_b,
    make_season,
    night_date,
    nightly_weather,
    sky_position,
)
from applecider_batch.simulate.environment import build_environment
from applecider_batch.simulate.measure import (
    ForcedHistory,
    candidate_columns,
    detection_columns,
    exposure_columns,
    non_detection,
)
from applecider_batch.simulate.observe import Observations, observe
from applecider_batch.simulate.outputs import SIMULATION_FILE, Catalogues
from applecider_batch.simulate.packets import NightTar, encode_record, fits_gz, packet_bytes
from applecider_batch.simulate.source import Source
from applecider_batch.simulate.stamps import Stamps, crop_bounds, render

MAX_NIGHTS = 400
MAX_ATTEMPTS = 40
# Shares of the objects; a real archive is mostly variable stars, asteroids and artefacts.
MIX: dict[str, float] = {
    "SN Ia": 0.085, "SN Ib": 0.015, "SN Ic": 0.02, "SN IIP": 0.045, "SN IIn": 0.02, "SN IIb": 0.02,
    "CV": 0.07, "AGN": 0.075, "TDE": 0.03, "RR Lyrae": 0.06, "eclipsing binary": 0.06,
    "long-period variable": 0.05, "irregular variable": 0.04, "asteroid": 0.27, "artefact": 0.14,
}  # fmt: skip
GALACTIC = {"CV", "RR Lyrae", "eclipsing binary", "long-period variable", "irregular variable"}


@dataclass(frozen=True)
class Slot:
    """The place of one object in the plan: what it is, where, and its number among the objects of a channel."""

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
    """Kinds of `n_objects` objects: shares of `MIX` by largest remainder, each kind at least once if possible."""
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
        galactic = rng.random() < (0.7 if kind in GALACTIC else 0.1)
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
    }
    return makers[kind]()


class Survey:
    """A planned survey: fields, nights and slots; objects are made when asked for."""

    def __init__(self, n_objects: int, n_nights: int, seed: int) -> None:
        self.seed = seed
        self.season = make_season(n_nights)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        self.opened, cloud = nightly_weather(self.season, rng)
        self.fields = choose_fields(self.season, int(np.clip(n_objects // 40, 4, 60)), rng)
        self.visits = [field_visits(f, self.season, self.opened, cloud, rng) for f in self.fields]
        self.slots = make_plan(n_objects, self.fields, rng)
        self._first_asteroid = next((s.index for s in self.slots if s.kind == "asteroid"), 0)

    def observe(self, slot: Slot) -> SimulatedObject:
        """Make the object of a slot; draws again until the survey detects it (an object without alert has no name)."""
        for attempt in range(MAX_ATTEMPTS):
            made = self._attempt(slot, attempt)
            if len(made.alert_index):
                break
        return made

    def _attempt(self, slot: Slot, attempt: int) -> SimulatedObject:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1, slot.index, attempt)))
        visits = self.visits[slot.field]
        asteroid, apparition = divmod(slot.index - self._first_asteroid, 2)
        if slot.kind == "asteroid":
            # Both apparitions are drawn from the same track.
            track = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(2, asteroid, attempt)))
            source, east, north = movers.asteroid(track, visits, self.season, apparition)
        else:
            source, east, north = make_source(slot.kind, visits, self.season, rng), 0.0, 0.0
        field_east, field_north = channel_offset_deg(slot.rcid, slot.xpos, slot.ypos)
        ra, dec = sky_position(visits.field, field_east + east / 3600.0, field_north + north / 3600.0)
        environment = build_environment(source, ra, dec, rng)
        x, y = slot.xpos + east / PIXEL_SCALE_ARCSEC, slot.ypos + north / PIXEL_SCALE_ARCSEC
        seen = observe(source, environment, visits, slot.rcid, x, y, rng)
        return SimulatedObject(slot, source, environment, seen, self.season, rng)


class SimulatedObject:
    """One object with its observations; `packets` yields its alert packets in time order."""

    def __init__(
        self,
        slot: Slot,
        source: Source,
        environment: Any,
        seen: Observations,
        season: Season,
        rng: np.random.Generator,
    ) -> None:
        self.slot, self.source, self.environment, self.seen = slot, source, environment, seen
        self._season, self._rng = season, rng
        nid = seen.visits.nid
        self.alert_index = np.flatnonzero(seen.alert & (nid >= season.first_nid) & (nid <= season.last_nid))

    def packets(self) -> list[tuple[int, str, bytes]]:
        """(night number, member name, packet) of every alert of the season."""
        index = self.alert_index
        if not len(index):
            return []
        seen, rng, season = self.seen, self._rng, self._season
        rendered = render(self.source, self.environment, seen, index, rng)
        exposures = exposure_columns(seen)
        # Histories of the first packet reach back a month: those detections have columns too, without stamps.
        earliest = seen.visits.jd[index[0]] - LOOKBACK_DAYS
        detected = np.flatnonzero(seen.in_history & (seen.visits.jd >= earliest))
        stamp_row = {int(k): row for row, k in enumerate(index)}
        shared = detection_columns(
            self.source,
            self.environment,
            seen,
            detected,
            self.slot.tblid,
            stamp_row,
            rendered,
            exposures,
            rng,
        )
        columns = candidate_columns(self.environment, seen, detected, shared, rng)
        row_of = {int(k): row for row, k in enumerate(detected)}
        forced = ForcedHistory(exposures, seen, self.environment, rng)
        hidden = rng.random(len(seen.visits.jd)) < 0.04  # limits that the pipeline never reported
        no_stamps = rng.random(len(index)) < 0.004
        borders = rng.random(len(index)) < 0.012
        points: dict[tuple[str, int], bytes] = {}
        names = field_names(CANDIDATE)
        out = []
        for row, k in enumerate(index):
            version = "4.02" if seen.visits.nid[k] >= season.switch_nid else "3.3"
            record = {name: columns[name][row_of[int(k)]] for name in names}
            window = np.flatnonzero(
                (seen.visits.jd < seen.visits.jd[k]) & (seen.visits.jd >= seen.visits.jd[k] - LOOKBACK_DAYS)
            )
            history = []
            for j in window.tolist():
                if not seen.covered[j] or (hidden[j] and not seen.in_history[j]):
                    continue
                key = (version, j)
                if key not in points:
                    if seen.in_history[j]:
                        point = {name: values[row_of[j]] for name, values in shared.items()}
                    else:
                        point = non_detection(exposures, seen, j)
                    points[key] = encode_record("prv_candidate", version, point)
                history.append(points[key])
            fp = None
            if version.startswith("4"):
                fp = [forced.point(j, row // 4, version) for j in window[::-1].tolist() if seen.covered[j]]
            candid = int(record["candid"])
            stamps = (
                [None] * 3
                if no_stamps[row]
                else self._stamps(rendered, row, int(k), candid, record["pid"], bool(borders[row]))
            )
            data = packet_bytes(
                version, self.slot.object_id, candid, encode_record("candidate", version, record), history or None,
                fp, stamps,
            )  # fmt: skip
            out.append((int(seen.visits.nid[k]), f"{candid}.avro", data))
        return out

    def _stamps(
        self, rendered: Stamps, row: int, k: int, candid: int, pid: int, border: bool
    ) -> list[tuple[str, bytes] | None]:
        y0, y1, x0, x1 = crop_bounds(self.seen.xpos[k], self.seen.ypos[k], CHANNEL_X, CHANNEL_Y)
        side = "scimref" if self.seen.flux_dn[k] > 0 else "refmsci"
        names = (
            f"candid{candid}_pid{pid}_targ_sci.fits.gz",
            f"candid{candid}_ref.fits.gz",
            f"candid{candid}_pid{pid}_targ_{side}.fits.gz",
        )
        images = [
            rendered.science[row, y0:y1, x0:x1],
            rendered.template[row, y0:y1, x0:x1],
            rendered.difference[row, y0:y1, x0:x1],
        ]
        if border:  # the reference does not cover the last columns
            for which in (1, 2):
                images[which] = images[which].copy()
                images[which][:, -int(3 + candid % 14) :] = np.nan
        return [(name, fits_gz(image)) for name, image in zip(names, images, strict=True)]


def simulate(
    out_dir: str | Path,
    *,
    n_objects: int = 200,
    n_nights: int = 60,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a simulated survey to `out_dir` (layout in the module's docstring).

    Parameters
    ----------
    out_dir : str or Path
        Local folder; made if absent, must be empty or an earlier simulation, which is replaced.
    n_objects : int
        Objects planned, at least 1; from 15 on every kind is there.  An object is
        drawn again until it has an alert; one that never gets any stands in the truth with ``n_alerts = 0``.
    n_nights : int
        UTC nights of the season, 1 to 400; schema 4.02 begins in the middle.
    seed : int
        Equal arguments give equal bytes.
    progress : callable, optional
        Called with (objects done, objects in all).

    Returns
    -------
    dict
        What ``simulation.json`` holds, plus ``out_dir``, ``alerts_dir``, ``nights`` (paths).

    Raises
    ------
    UsageError
        A number out of range.
    UserError
        `out_dir` holds something else.
    """
    if not 1 <= n_objects <= 26**4:
        raise UsageError(f"--objects is {n_objects}; allowed are 1 to {26**4}.")
    if not 1 <= n_nights <= MAX_NIGHTS:
        raise UsageError(f"--nights is {n_nights}; allowed are 1 to {MAX_NIGHTS}.")
    if seed < 0:
        raise UsageError(f"--seed is {seed}; allowed are 0 and above.")
    out = Path(out_dir)
    alerts_dir = _prepare(out)
    survey = Survey(n_objects, n_nights, seed)
    season = survey.season
    nights = range(season.first_nid, season.last_nid + 1)
    tars = {nid: NightTar(alerts_dir / f"ztf_public_{night_date(nid)}.tar.gz") for nid in nights}
    catalogues = Catalogues(seed)
    for done, slot in enumerate(survey.slots, start=1):
        made = survey.observe(slot)
        for nid, name, data in made.packets():
            tars[nid].add(name, data)
        catalogues.add(made)
        if progress is not None:
            progress(done, n_objects)
    for tar in tars.values():
        tar.close()
    summary = catalogues.write(
        out, parameters={"n_objects": n_objects, "n_nights": n_nights, "seed": seed}, season=season,
        packets_per_night={tar.path.name: tar.packets for tar in tars.values()},
    )  # fmt: skip
    paths = [str(tar.path) for tar in tars.values()]
    return {**summary, "out_dir": str(out), "alerts_dir": str(alerts_dir), "nights": paths}


def _prepare(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; a simulation needs a folder.", hint="Give another folder.")
    if (
        out.is_dir()
        and any(out.iterdir())
        and not (out / SIMULATION_FILE).exists()
        and not (out / ".simulating").exists()
    ):
        raise UserError(
            f"{out} is not empty and holds no earlier simulation ({SIMULATION_FILE}).",
            hint="Give an empty folder.",
        )
    alerts_dir = out / "alerts"
    alerts_dir.mkdir(parents=True, exist_ok=True)
    (out / ".simulating").write_text("being written by applecider-batch simulate\n")
    (out / SIMULATION_FILE).unlink(missing_ok=True)
    for stale in [*alerts_dir.glob("ztf_public_*.tar.gz"), *alerts_dir.glob("*.part")]:
        stale.unlink()
    return alerts_dir
