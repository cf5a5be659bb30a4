"""Against the truth: confusion and reliability by hand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.store import open_catalog
from applecider_batch.errors import UserError
from applecider_batch.report.page import write_report
from applecider_batch.report.reliability import reliability_svg
from applecider_batch.report.truth import compare, read_truth
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES
from tests.catalog.synthetic import commit_table, make_rows, object_names, write_run
from tests.report.reading import read_page


def test_truth_gives_a_confusion_matrix(catalogue: str, tmp_path: Path) -> None:
    rows = read_table(catalogue, horizon="full").to_pylist()
    truth = [
        {"objectId": r["objectId"], "class": "TDE" if i % 2 else None, "gate": "moving"}
        for i, r in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(truth), tmp_path / "truth.parquet")
    write_report(catalogue, None, tmp_path / "r.html", truth=str(tmp_path / "truth.parquet"))
    source = (tmp_path / "r.html").read_text()
    block = re.search(r'id="confusion".*?</table>', source, re.S)
    assert block
    cells = re.search(r'<th scope="row">TDE</th>(.*?)</tr>', block[0], re.S)
    assert cells
    numbers = [int(n) for n in re.findall(r"p num[^>]*>(\d+)</td>", cells[1])]
    tde = [r for i, r in enumerate(rows) if i % 2]
    assert sum(numbers) == len(tde)
    assert numbers[4] == sum(r["class_top1"] == "TDE" for r in tde)
    with pytest.raises(UserError, match="needs objectId and one of"):
        pq.write_table(pa.table({"name": ["a"]}), tmp_path / "bad.parquet")
        write_report(catalogue, None, tmp_path / "r.html", truth=str(tmp_path / "bad.parquet"))
    with pytest.raises(UserError, match="is not there"):
        write_report(catalogue, None, tmp_path / "r.html", truth=str(tmp_path / "none.parquet"))


def test_reliability_is_of_the_classified_whose_class_is_known(catalogue: str, tmp_path: Path) -> None:
    rows = read_table(catalogue, horizon="full").to_pylist()
    truth = {r["objectId"]: ("SN I", "TDE", "moving")[i % 3] for i, r in enumerate(rows)}
    store, info = open_catalog(catalogue)
    found = compare(store, info, "full", truth)
    mine = [r for r in rows if r["class_top1"] and truth[r["objectId"]] in CLASSES]
    assert len(mine) > 10
    assert found.trained_on == 0
    assert found.label.tolist() == [CLASSES.index(truth[r["objectId"]]) for r in mine]
    assert found.prob == pytest.approx(np.array([[r[f"prob_{k}"] for k in CLASS_KEYS] for r in mine]))
    lines = ["objectId,type", *(f"{name},{kind}" for name, kind in truth.items())]
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
    write_report(catalogue, None, tmp_path / "r.html", truth=str(tmp_path / "truth.csv"))
    source = (tmp_path / "r.html").read_text()
    figure = re.search(r'<figure id="reliability">.*?</figure>', source, re.S)
    assert figure
    tops = np.array([max(r[f"prob_{k}"] for k in CLASS_KEYS) for r in mine])
    right = [r["class_top1"] == truth[r["objectId"]] for r in mine]
    edges = np.arange(0.1, 1.0, 0.1)
    number = np.searchsorted(edges, tops)
    ece = sum(abs((tops - right)[number == b].sum()) for b in range(10)) / len(mine)
    assert f"ECE) {ece:.2f}" in figure[0]
    assert f"{len(mine)} episodes in scope" in figure[0]


def test_reliability_diagram_puts_each_bin_at_its_place() -> None:
    bins = {"count": [0, 20, 5], "confidence": [0.0, 0.5, 0.9], "accuracy": [0.0, 0.25, 1.0]}
    svg = ElementTree.fromstring(reliability_svg(bins, "title"))
    frame = next(r for r in svg.iter("rect")).attrib
    left, top, width, height = (float(frame[k]) for k in ("x", "y", "width", "height"))
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.iter("circle")]
    expected = [(left + x * width, top + (1 - y) * height) for x, y in ((0.5, 0.25), (0.9, 1.0))]
    assert dots == [pytest.approx(e, abs=0.1) for e in expected]
    assert [t.text for t in svg.iter("text") if t.attrib["class"] == "count"] == ["20", "5"]


def test_objects_that_trained_a_network_are_left_out(tmp_path: Path) -> None:
    names = object_names(30)
    run = write_run(tmp_path / "run", names, shards=1)
    table = make_rows(names)
    at = table.schema.get_field_index("in_training_set")
    trained = set(names[:20])
    marks = pa.array([name in trained for name in table.column("objectId").to_pylist()])
    commit_table(run, 0, table.set_column(at, table.schema.field(at), marks))
    build_catalog(str(run), str(tmp_path / "cat"))
    store, info = open_catalog(str(tmp_path / "cat"))
    found = compare(store, info, "full", dict.fromkeys(names, "SN I"))
    assert found.trained_on == 20
    assert sum(sum(counts.values()) for _, counts in found.confusion) == 10
    truth = tmp_path / "truth.csv"
    truth.write_text("objectId,class\n" + "".join(f"{name},SN I\n" for name in sorted(trained)))
    write_report(str(tmp_path / "cat"), None, tmp_path / "r.html", truth=str(truth))
    text = read_page(tmp_path / "r.html")[1]
    assert "20 episodes of objects that trained a network are left out" in text
    assert "No object of the truth table is in the catalogue and trained no network." in text


def test_truth_is_read_from_ecsv_as_well(tmp_path: Path) -> None:
    from astropy.table import Table

    Table({"objectId": ["a", "b"], "class": ["SN Ia", "TDE"]}).write(tmp_path / "t.ecsv")
    assert read_truth(str(tmp_path / "t.ecsv")) == {"a": "SN I", "b": "TDE"}
