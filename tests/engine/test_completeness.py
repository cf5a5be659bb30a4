"""Completeness: what is injected, its packets, the counts, and the whole way on a simulated archive."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.injection import Curve, Sites, inject, packets_of, read_curve
from applecider_batch.catalog.recovery import STAGES, recovery_table, wilson
from applecider_batch.cli.main import run as command
from applecider_batch.engine.completeness import measure_completeness
from applecider_batch.errors import UserError
from applecider_batch.schema import load_answers, load_table
from tests.engine.conftest import Inputs

SPAN = (2458300.0, 2460800.0)


@pytest.fixture(scope="module")
def sites(inputs: Inputs) -> Sites:
    alerts = Archive.open(inputs.archive).read_alerts(0, 1 << 64)
    return Sites(alerts.filter(pa.array([s == 1 for s in alerts.column("isdiffpos").to_pylist()])))


def _curve(mag: float, n: int = 200, kind: str = "SN I") -> Curve:
    """A constant source with an upper limit at every fifth point."""
    flux = np.full(n, 10 ** (-0.4 * (mag - 23.9)))
    flux[4::5] = np.nan
    error = np.where(np.isfinite(flux), flux / 40.0, 5.0)
    return Curve("base", kind, 2459000.0 + np.arange(n) * 0.5, np.full(n, 2), flux, error, mag)


def test_dimming_and_noise(sites: Sites) -> None:
    curve = _curve(18.0)
    made = inject([curve], sites, 60, SPAN, seed=1)
    assert len({i.dimming for i in made}) == 60
    pulls = []
    for injection in made:
        assert 0 <= injection.dimming <= 3.5
        assert SPAN[0] - 1 <= injection.jd_first <= SPAN[1] + 1
        assert float(injection.jd[0] - curve.jd[0]).is_integer()
        assert injection.host in sites.hosts
        snr = injection.flux / injection.flux_err
        assert (snr[injection.detected] >= 5).all()
        assert not injection.detected[4::5].any()
        if injection.dimming < 1.0:
            expected = np.nanmax(curve.flux) * 10 ** (-0.4 * injection.dimming)
            pull = (injection.flux - expected) / injection.flux_err
            pulls.append(pull[injection.detected])
            assert (injection.flux_err >= curve.flux_err * 10 ** (-0.4 * injection.dimming)).all()
    joined = np.concatenate(pulls)
    assert abs(joined.mean()) < 0.1  # the base's own noise is missing here: it has none
    assert 0.7 < joined.std() < 1.1
    brightest = min(made, key=lambda i: i.dimming)
    faintest = max(made, key=lambda i: i.dimming)
    assert brightest.detected.sum() > faintest.detected.sum()


def test_packets_are_zfts_own(sites: Sites) -> None:
    injection = next(i for i in inject([_curve(19.0)], sites, 20, SPAN, seed=2) if i.detected.sum() > 20)
    packets = packets_of(injection, sites, 3, 2)
    again = packets_of(injection, sites, 3, 2)
    assert packets == again
    assert len(packets) == injection.detected.sum()
    for (name, data), k in zip(packets, np.flatnonzero(injection.detected), strict=True):
        (packet,) = fastavro.reader(io.BytesIO(data))
        candidate = packet["candidate"]
        assert name == f"{packet['candid']}.avro"
        assert "SIMULATED" in packet["publisher"]
        assert candidate["jd"] == injection.jd[k]
        assert candidate["magpsf"] == pytest.approx(23.9 - 2.5 * np.log10(injection.flux[k]), abs=1e-5)
        assert (candidate["ra"], candidate["dec"]) == (injection.host["ra"], injection.host["dec"])
        for field in ("distpsnr1", "sgscore1", "neargaiabright", "magnr"):
            assert candidate[field] == pytest.approx(injection.host[field])
        assert (candidate["drb"] is None) == (injection.jd[k] < 2458664.5)
        assert candidate["ndethist"] == injection.detected[: k + 1].sum()
        before = (injection.jd < injection.jd[k]) & (injection.jd >= injection.jd[k] - 30)
        history = packet["prv_candidates"]
        assert [h["jd"] for h in history] == injection.jd[before].tolist()
        assert [h["magpsf"] is not None for h in history] == injection.detected[before].tolist()


def test_wilson_is_scipys() -> None:
    for k, n in ((0, 5), (5, 5), (3, 17), (250, 1000)):
        interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_counts_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(4)
    rows: list[dict[str, Any]] = [
        {"peak_mag": float(rng.uniform(15, 22)), "n_detections": int(rng.integers(0, 60)), "class5": "SN I",
         "abs_galactic_b": float(rng.uniform(0, 90)), "year": int(rng.integers(2018, 2022)),
         "class_top1": str(rng.choice(["SN I", "TDE"])), "stage": str(rng.choice(STAGES))}
        for _ in range(300)
    ]  # fmt: skip
    table = recovery_table(rows)
    for by in ("peak_mag", "n_detections", "abs_galactic_b", "year", "class"):
        assert sum(r["injected"] for r in table if r["by"] == by) == 300
    for row in table:
        if row["by"] in ("peak_mag", "year"):
            inside = [r for r in rows if row["low"] <= r[row["by"]] < row["high"]]
            for number, stage in enumerate(STAGES):
                assert row[stage] == sum(STAGES.index(r["stage"]) >= number for r in inside)
            assert row["share"] == row["recovered"] / len(inside)
    bins = {r["bin"] for r in table if r["by"] == "n_detections"}
    assert {"0", "1", "2", "3 to 4", "50 and more"} <= bins


def _labels(archive: Archive, path: Path) -> dict[str, str]:
    """Classes for the objects with the most detections, whatever they are."""
    kinds = ("SN I", "SN II", "TDE")
    good = [n for n in archive.object_names(0, 1 << 64) if read_curve(archive, n, "SN I") is not None]
    said = {name: kinds[i % 3] for i, name in enumerate(good)}
    lines = ["objectId,class5", *(f"{name},{kind}" for name, kind in said.items())]
    path.write_text("\n".join(lines) + "\n")
    return said


def test_the_whole_way(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = _labels(Archive.open(inputs.archive), tmp_path / "labels.csv")
    assert len(said) >= 3
    line = ["candidates", "completeness", "--archive", inputs.archive, "--models", inputs.models, "--labels",
            str(tmp_path / "labels.csv"), "--injections", "30", "--format", "json", "--out"]  # fmt: skip
    answers = []
    for name in ("one", "two"):
        assert command([*line, str(tmp_path / name)]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    one, two = answers
    assert set(one) == set(load_answers()["candidates completeness"])
    assert {**one, "out": ""} == {**two, "out": ""}
    for file in ("injections.parquet", "recovery.csv", "recovery.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    rows = pq.read_table(tmp_path / "one" / "injections.parquet").to_pylist()
    assert len(rows) == 30
    assert {row["light_curve"] for row in rows} <= set(said)
    assert all(said[row["light_curve"]] == row["class5"] for row in rows)
    assert sum(row["n_detections"] for row in rows) == one["packets"]
    assert one["stages"]["alerts"] == sum(row["n_detections"] > 0 for row in rows) > 5
    assert one["stages"]["t0"] > 0
    assert Counter(row["lost_by"] for row in rows if row["lost_by"]) == Counter(one["lost_at"])
    assert sum(row["lost_by"] is None for row in rows) == one["stages"]["recovered"]
    with (tmp_path / "one" / "recovery.csv").open() as file:
        assert list(next(csv.reader(file))) == load_table("recovery").names
    with pytest.raises(UserError, match="other inputs or options"):
        measure_completeness(
            inputs.archive, inputs.models, str(tmp_path / "labels.csv"), str(tmp_path / "one"), count=31
        )


def test_nothing_to_inject(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("objectId,class5\nZTF99nothere,SN I\n")
    with pytest.raises(UserError, match="light curve that can be injected"):
        measure_completeness(
            inputs.archive, inputs.models, str(tmp_path / "labels.csv"), str(tmp_path / "out")
        )
