"""Candidates on the page: the files of the search, and lists of one's own."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidates import FindOptions, find_candidates
from applecider_batch.catalog.read import read_table
from applecider_batch.errors import UserError
from applecider_batch.report.page import write_report
from tests.catalog.synthetic import object_names, write_run
from tests.report.conftest import NAMES, MemoryArchive
from tests.report.reading import read_page


def _rows(page: Path) -> list[dict[str, str]]:
    """data-… of every row of the index."""
    found = re.findall(r"<tr (data-id=[^>]*)>", page.read_text())
    return [{k: html.unescape(v) for k, v in re.findall(r'data-(\w+)="([^"]*)"', row)} for row in found]


def test_a_listed_card_says_why(listed: tuple[str, Path, pa.Table], tmp_path: Path) -> None:
    catalogue, file, rows = listed
    page = tmp_path / "list.html"
    write_report(catalogue, None, page, candidates=str(file))
    text = html.unescape(page.read_text())
    first = rows.slice(0, 1).to_pylist()[0]
    assert f"{first['score']:.2f}: transient {first['score_transient']:.2f}" in text
    assert "first said so" in text


def test_an_empty_list_says_so(listed: tuple[str, Path, pa.Table], tmp_path: Path) -> None:
    catalogue, file, _ = listed
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), empty)
    write_report(catalogue, None, tmp_path / "none.html", candidates=str(empty))
    text = (tmp_path / "none.html").read_text()
    assert "The list of candidates is empty" in text
    assert "nothing to rank" not in text


def test_candidates_of_another_catalogue_are_refused(
    listed: tuple[str, Path, pa.Table], tmp_path: Path
) -> None:
    build_catalog(
        str(write_run(tmp_path / "other-run", object_names(5, prefix="ZTF21bbbb"))), str(tmp_path / "other")
    )
    with pytest.raises(UserError, match="are not in the catalogue"):
        write_report(str(tmp_path / "other"), None, tmp_path / "x.html", candidates=str(listed[1]))


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_csv_of_the_search_is_shown_as_its_other_files(
    listed: tuple[str, Path, pa.Table], tmp_path: Path, ending: str
) -> None:
    catalogue, file, _ = listed
    other = tmp_path / f"c.{ending}"
    find_candidates(catalogue, str(other), FindOptions(include_unchecked=True))
    write_report(catalogue, None, tmp_path / "a.html", candidates=str(file))
    write_report(catalogue, None, tmp_path / "b.html", candidates=str(other))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_list_of_another_horizon_is_shown_at_that_horizon(
    listed: tuple[str, Path, pa.Table], tmp_path: Path
) -> None:
    out = tmp_path / "c.parquet"
    find_candidates(listed[0], str(out), FindOptions(horizon="10", include_unchecked=True))
    write_report(listed[0], None, tmp_path / "r.html", candidates=str(out))
    assert "Probabilities, 10 d" in read_page(tmp_path / "r.html")[1]


def test_a_list_of_ones_own(catalogue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any gate, no t0, an error, no stamps, a label; in its order, what is missing named."""
    monkeypatch.setattr(Archive, "open", lambda url, options=None: MemoryArchive(catalogue))
    rows = read_table(catalogue, horizon="full").to_pylist()
    kinds = {
        "classified": next(r for r in rows if r["class_top1"] and r["candid_image"]),
        "star": next(r for r in rows if r["gate"] == "variable_star"),
        "no t0": next(r for r in rows if r["t0"] is None),
        "failed": next(r for r in rows if r["error_code"] and r["t0"]),
    }
    names = [r["objectId"] for r in kinds.values()]
    lines = [
        "remark,objectId,label",
        *(f"x,{name}," for name in names[:3]),
        "x,ZTF00missing,no",
        f"x,{names[3]},yes",
    ]
    (tmp_path / "mine.csv").write_text("\n".join([*lines, f"again,{names[0]},no"]) + "\n")
    answer = write_report(catalogue, "memory", tmp_path / "r.html", candidates=str(tmp_path / "mine.csv"))
    assert (answer["candidates"], answer["not_in_catalogue"]) == (4, 1)
    shown = _rows(tmp_path / "r.html")
    assert [r["name"] for r in shown] == names
    assert [r["class"] for r in shown] == [kinds["classified"]["class_top1"], "none", "none", "none"]
    assert [r["label"] for r in shown] == ["", "", "", "yes"]
    assert shown[3]["prob"] == shown[3]["score"] == ""  # NaN and null are empty, so that they sort last
    text = read_page(tmp_path / "r.html")[1]
    assert "1 of the list is not in this catalogue: ZTF00missing." in text
    for said in ("variable star", "No stamps.", "No spectrum.", "not available"):
        assert said in text
    assert not re.search(r"\b(nan|None|inf)\b", text)
    cards = re.findall(r'<article class="card".*?</article>', (tmp_path / "r.html").read_text(), re.S)
    assert ["<img" in card for card in cards] == [r["candid_image"] is not None for r in kinds.values()]


def test_lists_in_ecsv_and_by_episode(catalogue: str, tmp_path: Path) -> None:
    from astropy.table import Table

    chosen = [NAMES[5], NAMES[0], NAMES[1]]
    Table({"objectId": chosen, "episode": [1, 1, 2]}).write(tmp_path / "mine.ecsv")
    answer = write_report(catalogue, None, tmp_path / "r.html", candidates=str(tmp_path / "mine.ecsv"))
    assert (answer["candidates"], answer["not_in_catalogue"]) == (2, 1)
    assert [r["name"] for r in _rows(tmp_path / "r.html")] == chosen[:2]
    assert f"{chosen[2]} (episode 2)" in read_page(tmp_path / "r.html")[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name\na\n", "no column objectId; its columns are name"),
        ("objectId,episode\nZTF1,first\n", "Row 1 of the list"),
        ("objectId\nZTF00a\nZTF00b\n", "None of the 2 objects of the list"),
        ("", "cannot be read"),
    ],
)
def test_lists_that_cannot_be_shown(catalogue: str, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(catalogue, None, tmp_path / "r.html", candidates=str(tmp_path / "bad.csv"))
    assert not (tmp_path / "r.html").exists()


def test_a_list_without_lines_is_empty(catalogue: str, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("objectId,episode\n")
    answer = write_report(catalogue, None, tmp_path / "r.html", candidates=str(tmp_path / "none.csv"))
    assert answer["candidates"] == 0
    assert "The list of candidates is empty." in read_page(tmp_path / "r.html")[1]


def test_scores_that_are_not_numbers_are_dashes(listed: tuple[str, Path, pa.Table], tmp_path: Path) -> None:
    catalogue, file, _ = listed
    table = pq.read_table(file)
    at = table.schema.get_field_index("score")
    column = pa.repeat(pa.scalar(float("nan"), table.schema.field(at).type), len(table))
    pq.write_table(table.set_column(at, table.schema.field(at), column), tmp_path / "nan.parquet")
    write_report(catalogue, None, tmp_path / "r.html", candidates=str(tmp_path / "nan.parquet"))
    assert {r["score"] for r in _rows(tmp_path / "r.html")} == {""}
    assert "–: transient" in read_page(tmp_path / "r.html")[1]
