"""A small catalogue, an archive in memory, and Chromium where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.read import read_table
from applecider_batch.digest import hash64_one
from applecider_batch.schema import load_table
from tests.catalog.synthetic import object_names, write_run

NAMES = object_names(90)
Dom = Callable[[Path], str]


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    build_catalog(str(write_run(folder / "run", NAMES)), str(folder / "cat"))
    return str(folder / "cat")


def photometry_of(name: str, t0: float) -> pa.Table:
    """A rise and fall in g and r, one negative r detection, limits before, a revised forced point."""
    rows = []
    common = {"hash64": hash64_one(name), "objectId": name}
    for day in (-9.0, -6.0, -3.0):
        rows.append({**common, "jd": t0 + day, "known_jd": t0, "fid": 1, "pid": int(day + 100), "origin": 1,
                     "is_detection": False, "diffmaglim": 20.5})  # fmt: skip
    for number, day in enumerate((0.0, 2.0, 5.0, 9.0, 20.0, 40.0)):
        rows.append({**common, "jd": t0 + day, "known_jd": t0 + day, "candid": number, "fid": 1 + number % 2,
                     "pid": number, "origin": 0, "is_detection": True, "isdiffpos": 1,
                     "magpsf": 19.0 + abs(day - 9) / 20, "sigmapsf": 0.05})  # fmt: skip
    rows.append({**common, "jd": t0 + 60, "known_jd": t0 + 60, "candid": 77, "fid": 2, "pid": 77, "origin": 0,
                 "is_detection": True, "isdiffpos": -1, "magpsf": 19.5, "sigmapsf": 0.1})  # fmt: skip
    for known, flux in ((t0 + 1, 100.0), (t0 + 30, 200.0)):
        rows.append({**common, "jd": t0 - 1, "known_jd": known, "fid": 1, "pid": 500, "origin": 2,
                     "is_detection": False, "forcediffimflux": flux, "forcediffimfluxunc": 10.0,
                     "magzpsci": 26.0, "procstatus": "0"})  # fmt: skip
    schema = load_table("photometry").arrow
    return pa.Table.from_pylist(rows, schema=pa.schema([f.with_nullable(True) for f in schema]))


class MemoryArchive:
    """What the report asks of an archive, made up for every object of a catalogue."""

    def __init__(self, catalogue: str) -> None:
        rows = read_table(catalogue, ["hash64", "objectId", "t0"], "full").to_pylist()
        self.objects = {row["hash64"]: (row["objectId"], row["t0"]) for row in rows}

    def read_photometry(self, lo: int, hi: int) -> pa.Table:
        assert hi == lo + 1
        return photometry_of(*self.objects[lo])

    def read_stamps(self, lo: int, hi: int, candids: Iterable[int]) -> pa.Table:
        (candid,) = candids
        image = np.random.default_rng(candid % 1000).normal(0, 1, (63, 61)).astype(np.float32)
        image[30, 30], image[0, :] = 50.0, np.nan
        row = {"hash64": lo, "objectId": self.objects[lo][0], "jd": 0.0, "candid": candid, "stamp_status": 0,
               "packet_digest": ""}  # fmt: skip
        for name in ("Science", "Template"):
            row |= {f"cutout{name}": image.ravel().tolist(), f"height{name}": 63, f"width{name}": 61}
        return pa.Table.from_pylist([row], schema=load_table("stamps").arrow)

    def read_spectra(self, lo: int, hi: int) -> pa.Table:
        return load_table("spectra").empty()


@pytest.fixture(scope="session")
def dom(tmp_path_factory: pytest.TempPathFactory) -> Dom:
    """Opens a page in headless Chromium and returns its document after the scripts ran."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        message = "Chromium is not installed: the page was not opened in a browser"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    profile = tmp_path_factory.mktemp("chromium")

    def open_page(path: Path) -> str:
        done = subprocess.run(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             f"--user-data-dir={profile}", "--window-size=1400,1200", "--virtual-time-budget=8000",
             "--dump-dom", path.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout

    return open_page
