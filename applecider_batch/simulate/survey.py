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
from pathlib import Path
from typing import Any

import numpy as np

from applecider_batch.errors import UsageError, UserError
from applecider_batch.simulate import movers
from applecider_batch.simulate.cadence import (
    PIXEL_SCALE_ARCSEC,
    channel_offset_deg,
    choose_fields,
    field_visits,
    make_season,
    night_date,
    nightly_weather,
    sky_position,
)
from applecider_batch.simulate.environment import build_environment
from applecider_batch.simulate.objects import SimulatedObject
from applecider_batch.simulate.observe import observe
from applecider_batch.simulate.outputs import SIMULATION_FILE, Catalogues
from applecider_batch.simulate.packets import NightTar
from applecider_batch.simulate.plan import Slot, make_plan, make_source, rare_slots

MAX_NIGHTS = 400
MAX_ATTEMPTS = 40
MAX_RARE = 900


class Survey:
    """A planned survey: fields, nights and slots; objects are made when asked for."""

    def __init__(self, n_objects: int, n_nights: int, seed: int, n_rare: int = 0) -> None:
        self.seed = seed
        self.season = make_season(n_nights)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        self.opened, cloud = nightly_weather(self.season, rng)
        self.fields = choose_fields(self.season, int(np.clip(n_objects // 40, 4, 60)), rng)
        self.visits = [field_visits(f, self.season, self.opened, cloud, rng) for f in self.fields]
        self.slots = make_plan(n_objects, self.fields, rng)
        rare = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3,)))
        self.slots += rare_slots(n_rare, n_objects, self.fields, rare)
        self._first_asteroid = next((s.index for s in self.slots if s.kind == "asteroid"), 0)

    def observe(self, slot: Slot) -> SimulatedObject:
        """Make the object of a slot; draws again until the survey detects it (an object without alert has no
        name)."""
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


def simulate(
    out_dir: str | Path,
    *,
    n_objects: int = 200,
    n_nights: int = 60,
    seed: int = 0,
    n_rare: int = 0,
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
    n_rare : int
        Rare events (fast blue transients) beside the others, 0 to 900; no list of known transients has them.
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
    most = 26**4 - MAX_RARE
    if not 1 <= n_objects <= most:
        raise UsageError(f"--objects is {n_objects}; allowed are 1 to {most}.")
    if not 1 <= n_nights <= MAX_NIGHTS:
        raise UsageError(f"--nights is {n_nights}; allowed are 1 to {MAX_NIGHTS}.")
    if not 0 <= n_rare <= MAX_RARE:
        raise UsageError(f"--rare is {n_rare}; allowed are 0 to {MAX_RARE}.")
    if seed < 0:
        raise UsageError(f"--seed is {seed}; allowed are 0 and above.")
    out = Path(out_dir)
    alerts_dir = _prepare(out)
    survey = Survey(n_objects, n_nights, seed, n_rare)
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
            progress(done, len(survey.slots))
    for tar in tars.values():
        tar.close()
    summary = catalogues.write(
        out, season=season,
        parameters={"n_objects": n_objects, "n_nights": n_nights, "seed": seed, "n_rare": n_rare},
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
