"""A small catalogue, an archive in memory, and Chromium where it is installed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidate_files import read_candidates
from applecider_batch.catalog.candidates import FindOptions, find_candidates
from applecider_batch.catalog.read import read_table
from applecider_batch.digest import hash64_one
from applecider_batch.report.page import write_report
from applecider_batch.schema import load_table
from benchmarks.browser import Browser, find_chromium
from tests.catalog.synthetic import object_names, write_run

NAMES = object_names(90)


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
        name, t0 = self.objects[lo]
        return photometry_of(name, 2459000.5 if t0 is None else t0)

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


@pytest.fixture
def page(catalogue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Archive, "open", lambda url, options=None: MemoryArchive(catalogue))
    out = tmp_path / "report.html"
    answer = write_report(catalogue, "memory", out, per_class=4)
    assert answer["bytes"] == out.stat().st_size
    assert (answer["trained"], answer["simulated"], answer["partial"]) == (False, True, False)
    return out


@pytest.fixture
def listed(tmp_path: Path) -> tuple[str, Path, pa.Table]:
    """Catalogue, file and rows of candidates."""
    build_catalog(str(write_run(tmp_path / "run", object_names(60))), str(tmp_path / "cat"))
    out = tmp_path / "candidates.parquet"
    find_candidates(str(tmp_path / "cat"), str(out), FindOptions(include_unchecked=True))
    return str(tmp_path / "cat"), out, read_candidates(str(out))[0]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium with one page."""
    if find_chromium() is None:
        message = "Chromium is not installed: the page was not opened in a browser"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened
