"""Drafts: what is drafted and what is not, the documented layouts, and that a wrong document is seen."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidate_files import read_candidates, write_candidates
from applecider_batch.catalog.candidates import FindOptions, find_candidates
from applecider_batch.catalog.draft_layouts import check_skyportal, check_tns
from applecider_batch.catalog.drafts import write_drafts
from applecider_batch.errors import UserError
from applecider_batch.schema import load_answers, load_table
from tests.catalog.synthetic import object_names, write_run

SETTINGS = """
[tns]
reporting_group_id = 7
discovery_data_source_id = 48
reporter = "A. Person (Institute)"
[skyportal]
taxonomy_id = 3
group_ids = [2]
classification = {"SN I" = "Ia"}
"""


def _real(rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    fit = {"simulated": False, "trained": True, "known_status": "unreported", "tns_eligible": True}
    return [{**row, **fit, **changes} for row in rows]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """An archive with the candidates' photometry, the candidates, and the answer about them."""
    folder = tmp_path_factory.mktemp("drafts")
    build_catalog(str(write_run(folder / "run", object_names(60))), str(folder / "cat"))
    find_candidates(str(folder / "cat"), str(folder / "c.parquet"), FindOptions(include_unchecked=True))
    table, answer = read_candidates(str(folder / "c.parquet"))
    rows = _real([r for r in table.to_pylist() if r["class_top1"] not in ("CV", "AGN")])
    points = []
    for row in rows[:-1]:
        mjd = row["t0"] - 2400000.5
        for dt, mag, seen in ((-3.0, 20.5, False), (0.0, 19.0, True), (4.0, 18.2, True), (9.0, 18.9, True)):
            points.append({"objectId": row["objectId"], "mjd": mjd + dt, "band": "r", "is_detection": seen,
                           "mag": mag if seen else None, "mag_err": 0.1 if seen else None,
                           "limiting_mag": None if seen else mag})  # fmt: skip
    pl.DataFrame(points).write_parquet(folder / "points.parquet")
    ingest([], str(folder / "archive"), photometry=[str(folder / "points.parquet")])
    (folder / "settings.toml").write_text(SETTINGS)
    return str(folder), rows, {**answer, "trained": True}


def _draft(
    given: tuple[str, Any, Any], rows: list[dict[str, Any]], out: Path, **change: Any
) -> dict[str, Any]:
    folder, _, answer = given
    table = pa.Table.from_pylist(rows, load_table("candidates").arrow)
    write_candidates(table, str(out / "c.json"), {**answer, **change})
    return write_drafts(
        str(out / "c.json"), f"{folder}/archive", f"{folder}/settings.toml", str(out / "drafts")
    )


def test_drafts_follow_the_layouts(given: tuple[str, Any, Any], tmp_path: Path) -> None:
    rows = given[1]
    answer = _draft(given, rows, tmp_path)
    assert set(answer) == set(load_answers()["candidates drafts"])
    assert (answer["drafted"], answer["left_out"]) == (len(rows) - 1, {"no_photometry": 1})
    document = json.loads((tmp_path / "drafts" / "tns_bulk_report.json").read_text())
    payloads = json.loads((tmp_path / "drafts" / "skyportal_classifications.json").read_text())
    assert check_tns(document) == []
    assert len(rows) > 11
    for number, row in enumerate(rows[:-1]):
        report, payload = document["at_report"][str(number)], payloads[number]
        assert report["internal_name"] == payload["obj_id"] == row["objectId"]
        assert report["at_type"] == ("4" if row["class_top1"] == "TDE" else "1")
        assert float(report["ra"]["value"]) == pytest.approx(row["ra"], abs=1e-6)
        group = report["photometry"]["photometry_group"]
        assert [p["flux"] for p in group.values()] == ["19.000", "18.200", "18.900"]
        assert {p["filter_value"] for p in group.values()} == {"111"}
        assert report["discovery_datetime"] == group["0"]["obsdate"]
        assert report["non_detection"]["limiting_flux"] == "20.500"
        assert (payload["vote"], payload["label"], payload["ml"]) == (False, False, True)
        assert check_skyportal(payload) == []
        words = {"SN I": "Ia", "SN II": "Type II", "TDE": "Tidal Disruption Event"}
        assert payload["classification"] == words[row["class_top1"]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"simulated": True}, "simulated"),
        ({"tns_eligible": False}, "not_tns_eligible"),
        ({"class_top1": "CV"}, "not_tns_eligible"),
        ({"known_status": "unchecked", "tns_eligible": None}, "unchecked"),
        ({"label": "no"}, "labelled_no"),
    ],
)
def test_what_is_never_drafted(
    given: tuple[str, Any, Any], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    rows = given[1][:3]
    answer = _draft(given, [*_real(rows[:1], **change), *rows[1:]], tmp_path)
    assert (answer["drafted"], answer["left_out"]) == (2, {reason: 1})


def test_untrained_networks_report_nothing(given: tuple[str, Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="untrained"):
        _draft(given, given[1], tmp_path, trained=False)
    assert not (tmp_path / "drafts").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("", "neither a table"),
        ("[tns]\nreporter = 'x'", "reporting_group_id as int"),
        ("[skyportal]\ntaxonomy_id = 1", "group_ids as list"),
        ("[tns", "no TOML"),
    ],
)
def test_settings_that_are_refused(
    given: tuple[str, Any, Any], tmp_path: Path, settings: str, words: str
) -> None:
    _draft(given, given[1][:1], tmp_path)
    (tmp_path / "s.toml").write_text(settings)
    with pytest.raises(UserError, match=words):
        write_drafts(
            str(tmp_path / "c.json"), f"{given[0]}/archive", str(tmp_path / "s.toml"), str(tmp_path / "d")
        )


def test_the_checks_see_what_is_wrong(given: tuple[str, Any, Any], tmp_path: Path) -> None:
    _draft(given, given[1][:2], tmp_path)
    good = json.loads((tmp_path / "drafts" / "tns_bulk_report.json").read_text())

    def broken(change: Any) -> list[str]:
        document = copy.deepcopy(good)
        change(document["at_report"]["1"])
        return check_tns(document)

    assert broken(lambda r: r.pop("reporter")) == ["at_report 1: reporter is missing"]
    assert "at_type is '7'" in broken(lambda r: r.update(at_type="7"))[0]
    assert "discovery_datetime is 'soon'" in broken(lambda r: r.update(discovery_datetime="soon"))[0]
    assert "wish is not in the layout" in broken(lambda r: r.update(wish="x"))[0]
    assert "ra.value is 1.5" in broken(lambda r: r["ra"].update(value=1.5))[0]
    assert "must hold a point" in broken(lambda r: r["photometry"].update(photometry_group={}))[0]
    assert "flux is missing" in broken(lambda r: r["photometry"]["photometry_group"]["0"].pop("flux"))[0]
    assert "limiting_flux is missing" in broken(lambda r: r["non_detection"].pop("limiting_flux"))[0]
    assert (
        "archival_remarks is ''"
        in broken(lambda r: r.update(non_detection={"archiveid": "0", "archival_remarks": ""}))[0]
    )
    assert "0, 1, 2" in check_tns({"at_report": {"1": good["at_report"]["0"]}})[0]
    payload = json.loads((tmp_path / "drafts" / "skyportal_classifications.json").read_text())[0]
    assert check_skyportal({**payload, "vote": True}) == ["vote and label must be false"]
    assert check_skyportal({**payload, "group_ids": []})
    assert check_skyportal({**payload, "probability": 2.0})
    assert check_skyportal({k: v for k, v in payload.items() if k != "obj_id"})
