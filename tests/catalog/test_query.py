"""SQL over a catalogue: the documented questions against plain loops, files, refusals."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.query import MAX_ROWS, query_catalog
from applecider_batch.catalog.read import read_table
from applecider_batch.errors import UsageError, UserError
from applecider_batch.schema import load_answers
from tests.catalog.synthetic import object_names, write_run

QUERIES = re.findall(
    r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs" / "queries.md").read_text(encoding="utf-8"), re.S
)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("query")
    run = write_run(folder / "run", object_names(90))
    build_catalog(str(run), str(folder / "cat"), rows_per_part=100)
    return str(folder / "cat")


@pytest.mark.parametrize("sql", QUERIES)
def test_documented_questions_run(catalogue: str, sql: str) -> None:
    answer = query_catalog(catalogue, sql)
    assert set(answer) == set(load_answers()["catalog query"])
    assert len(answer["table"]) == answer["rows"]


def test_answers_equal_plain_loops(catalogue: str) -> None:
    rows = read_table(catalogue).to_pylist()
    counted = Counter((r["gate"], r["class_top1"]) for r in rows if r["horizon_days"] is None)
    answer = query_catalog(catalogue, QUERIES[0])["table"]
    assert {(r["gate"], r["class_top1"]): r["n"] for r in answer} == counted
    late = {(r["objectId"], r["episode"]): r["class_top1"] for r in rows if r["horizon_days"] is None}
    agree: dict[float, list[bool]] = {}
    for r in rows:
        last = late.get((r["objectId"], r["episode"]))
        if r["horizon_days"] is not None and r["class_top1"] and last:
            agree.setdefault(r["horizon_days"], []).append(r["class_top1"] == last)
    found = {
        r["horizon_days"]: (r["n"], r["as_at_the_end"]) for r in query_catalog(catalogue, QUERIES[2])["table"]
    }
    assert found == {days: (len(v), pytest.approx(sum(v) / len(v))) for days, v in agree.items()}


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_all_rows_to_a_file(catalogue: str, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"q.{ending}"
    answer = query_catalog(catalogue, "SELECT objectId, horizon_days, prob_tde FROM catalogue", str(out))
    readers: dict[str, Any] = {
        "parquet": pl.read_parquet,
        "csv": pl.read_csv,
        "json": lambda path: pl.read_json(path)["rows"].explode().struct.unnest(),
    }
    frame = readers[ending](out)
    whole = pl.DataFrame(pl.from_arrow(read_table(catalogue, ["objectId", "horizon_days", "prob_tde"])))
    assert answer["table"] == []
    assert answer["rows"] == frame.height == whole.height
    assert frame["objectId"].to_list() == whole["objectId"].to_list()
    assert frame["prob_tde"].to_list() == pytest.approx(whole["prob_tde"].to_list(), nan_ok=True)


def test_a_long_answer_is_cut_and_says_so(catalogue: str) -> None:
    answer = query_catalog(
        catalogue, "SELECT a.objectId FROM catalogue AS a JOIN catalogue AS b ON a.gate = b.gate"
    )
    assert answer["rows"] > MAX_ROWS == len(answer["table"])
    assert answer["truncated"]


def test_refusals(catalogue: str, tmp_path: Path) -> None:
    for sql in ("SELECT wrong FROM catalogue", "SELEC", "SELECT * FROM other"):
        with pytest.raises(UserError, match="cannot be answered") as caught:
            query_catalog(catalogue, sql)
        assert "catalogue" in str(caught.value.hint)
    with pytest.raises(UsageError, match="xlsx"):
        query_catalog(catalogue, "SELECT 1", str(tmp_path / "x.xlsx"))
    with pytest.raises(UserError, match="not a catalogue"):
        query_catalog(str(tmp_path), "SELECT 1")
