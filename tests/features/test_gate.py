"""The gate's rules one by one, and in which order they decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.features.quality import DESCRIPTIONS, Quality, describe
from tests.features.tables import JD0, alert, point, shard

STAR = {"sgscore1": 0.9, "distpsnr1": 0.5}


def rows(*alerts: dict[str, Any], points: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    data = shard(list(alerts), points)
    return prepare_shard(data, [None], get_profile("paper"), snapshot_jd_max=JD0 + 99).rows.to_pylist()


def pair(**fields: Any) -> list[dict[str, Any]]:
    """Two alerts a day apart with the same fields."""
    return [alert("ZTFa", JD0, 1, **fields), alert("ZTFa", JD0 + 1, 2, **fields)]


@pytest.mark.parametrize(
    ("fields", "gate", "reason"),
    [
        ({}, "in_scope", "passed"),
        ({"ssdistnr": 3.0, "ssmagnr": 18.0}, "moving", "solar_system_all"),
        ({**STAR}, "variable_star", "ps1_star"),
        ({"sgscore1": 0.76, "distpsnr1": 0.5}, "in_scope", "passed"),
        ({"sgscore1": 0.9, "distpsnr1": 2.1}, "in_scope", "passed"),
        ({"neargaiabright": 1.0, "maggaiabright": 13.0}, "variable_star", "gaia_star"),
        ({"neargaiabright": 15.0, "maggaiabright": 11.0}, "artefact", "bright_gaia_star"),
        ({"neargaiabright": 15.0, "maggaiabright": 13.0}, "in_scope", "passed"),
        ({"neargaiabright": 25.0, "maggaiabright": 9.0}, "in_scope", "passed"),
        ({"nbad": 1}, "artefact", "no_clean_alert"),
        ({"fwhm": 6.0}, "artefact", "no_clean_alert"),
        ({"drb": 0.3}, "artefact", "no_clean_alert"),
        ({"drb": None}, "in_scope", "passed"),
        ({"rb": 0.3}, "artefact", "rb_low"),
        ({"isdiffpos": -1}, "too_few_detections", "only_negative"),
        ({**STAR, "isdiffpos": -1}, "variable_star", "ps1_star"),
        # Difference flux 16 times the star's: 3 mag brighter than in quiescence.
        ({**STAR, "magpsf": 15.0, "distnr": 0.3, "magnr": 18.0}, "in_scope", "outburst_on_star"),
        ({**STAR, "magpsf": 18.0, "distnr": 0.3, "magnr": 18.0}, "variable_star", "ps1_star"),
        ({**STAR, "magpsf": 15.0, "distnr": 9.0, "magnr": 18.0}, "variable_star", "ps1_star"),
        ({**STAR, "magpsf": 15.0, "srmag1": 18.0}, "in_scope", "outburst_on_star"),
    ],
)
def test_rules(fields: dict[str, Any], gate: str, reason: str) -> None:
    row = rows(*pair(**fields))[0]
    assert (row["gate"], row["gate_reason"]) == (gate, reason)
    assert row["prob_in_scope"] is None, "only a learned gate gives probabilities"


def test_one_clean_alert_is_enough() -> None:
    assert rows(alert("ZTFa", JD0, 1, nbad=2), alert("ZTFa", JD0 + 1, 2))[0]["gate"] == "in_scope"


@pytest.mark.parametrize(("minutes", "gate"), [(29.0, "too_few_detections"), (31.0, "in_scope")])
def test_two_detections_half_an_hour_apart(minutes: float, gate: str) -> None:
    found = rows(alert("ZTFa", JD0, 1), alert("ZTFa", JD0 + minutes / 1440, 2))[0]
    assert found["gate"] == gate


def test_a_history_counts_as_the_second_detection() -> None:
    one = alert("ZTFa", JD0, 1)
    own = point("ZTFa", JD0, candid=1)
    before = point("ZTFa", JD0 - 3, origin=1, candid=5, known_jd=JD0)
    assert rows(one, points=[own])[0]["gate"] == "too_few_detections"
    assert rows(one, points=[own, before])[0]["gate"] == "in_scope"
    for wrong in ({"rb": 0.2}, {"isdiffpos": -1}, {"ssdistnr": 1.0}, {"magpsf": float("nan")}):
        assert rows(one, points=[own, {**before, **wrong}])[0]["gate"] == "too_few_detections"


def test_an_outburst_in_the_history_counts() -> None:
    quiet = [alert("ZTFa", JD0 + i, i + 1, **STAR, magpsf=18.5, srmag1=18.0, sgmag1=18.0) for i in (0, 1)]
    own = [point("ZTFa", a["jd"], candid=a["candid"], magpsf=18.5) for a in quiet]
    before = point("ZTFa", JD0 - 9, origin=1, candid=9, fid=1, magpsf=15.0, known_jd=JD0)
    assert rows(*quiet, points=own)[0]["gate"] == "variable_star"
    assert rows(*quiet, points=[*own, before])[0]["gate_reason"] == "outburst_on_star"
    for wrong in ({"isdiffpos": -1}, {"fid": 3}, {"rb": 0.2}, {"magpsf": 17.0}):
        assert rows(*quiet, points=[*own, {**before, **wrong}])[0]["gate"] == "variable_star"


def test_asteroids_are_rejected_per_detection() -> None:
    passing = alert("ZTFa", JD0 + 2, 3, ssdistnr=2.0)
    row = rows(*pair(), passing)[0]
    assert (row["gate"], row["ssdistnr_min"]) == ("in_scope", 2.0)
    assert row["frac_ss"] == pytest.approx(1 / 3)
    assert row["quality_flags"] & Quality.SOLAR_SYSTEM_DETECTIONS
    half = rows(alert("ZTFa", JD0, 1), alert("ZTFa", JD0 + 1, 2, ssdistnr=2.0))[0]
    assert (half["gate"], half["gate_reason"]) == ("moving", "solar_system_half")


def test_the_gate_knows_only_what_the_wall_shows() -> None:
    data = shard([alert("ZTFa", JD0, 1), alert("ZTFa", JD0 + 5, 2, **STAR)])
    made = prepare_shard(data, [3.0, None], get_profile("paper"), snapshot_jd_max=JD0 + 99)
    assert made.rows["gate"].to_pylist() == ["too_few_detections", "variable_star"]


def test_quality_flags_of_alerts() -> None:
    good = rows(*pair(rb=0.8, drb=0.95))[0]["quality_flags"]
    assert not good & (Quality.BRIGHT_STAR_NEAR | Quality.DRB_MISSING)
    bad = rows(*pair(drb=None, srmag2=14.0, distpsnr2=10.0, sgscore2=0.9))[0]["quality_flags"]
    assert bad & Quality.BRIGHT_STAR_NEAR
    assert bad & Quality.DRB_MISSING


def test_every_flag_is_described() -> None:
    assert set(DESCRIPTIONS) == set(Quality)
    assert describe(Quality.NO_T0 | Quality.NO_STAMPS) == [
        DESCRIPTIONS[Quality.NO_T0], DESCRIPTIONS[Quality.NO_STAMPS]
    ]  # fmt: skip


def test_the_flags_are_in_the_documentation() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
    for flag in Quality:
        assert f"| {flag.bit_length() - 1} | {int(flag)} | `{flag.name}` |" in text
