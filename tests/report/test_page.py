"""The page: what it says, that it needs nothing else, and how it behaves in a browser."""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidate_files import read_candidates
from applecider_batch.catalog.candidates import FindOptions, find_candidates
from applecider_batch.catalog.feedback import label_candidates
from applecider_batch.catalog.read import read_table
from applecider_batch.errors import UserError
from applecider_batch.inference.anomaly_reference import DESCRIPTIONS, Reason
from applecider_batch.report.page import links, reference_horizon, write_report
from applecider_batch.taxonomy import CLASSES
from tests.catalog.synthetic import commit_table, make_rows, object_names, write_run
from tests.report.conftest import Dom, MemoryArchive


@pytest.fixture
def page(catalogue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Archive, "open", lambda url, options=None: MemoryArchive(catalogue))
    out = tmp_path / "report.html"
    answer = write_report(catalogue, "memory", out, per_class=4)
    assert answer["bytes"] == out.stat().st_size
    assert (answer["trained"], answer["simulated"], answer["partial"]) == (False, True, False)
    return out


class _Reader(HTMLParser):
    """Open tags must close in order; notes what is fetched and the text."""

    VOID = frozenset(("meta", "link", "input", "img", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in named:
            self.ids.append(str(named["id"]))
        for key in ("src", "srcset", "data", "poster", "action"):
            if named.get(key):
                self.fetched.append(str(named[key]))
        if tag == "link":
            self.fetched.append(str(named["href"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open[-1:]):
            self.text.append(data)


def _read(page: Path) -> tuple[_Reader, str]:
    reader = _Reader()
    reader.feed(page.read_text())
    reader.close()
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())


def test_page_needs_nothing_else(page: Path) -> None:
    reader, _ = _read(page)
    assert reader.fetched
    assert all(url.startswith("data:") for url in reader.fetched)
    source = page.read_text()
    assert "default-src 'none'" in source
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|<iframe|WebSocket", source)
    assert len(reader.ids) == len(set(reader.ids))


def test_page_says_what_it_is_not(page: Path) -> None:
    reader, text = _read(page)
    assert {"untrained", "simulated"} <= set(reader.ids)
    assert "The networks are untrained." in text
    assert "The data are simulated." in text
    assert "UNTRAINED NETWORKS" in text
    assert "<title>UNTRAINED · SIMULATED ·" in page.read_text()


def test_trained_real_catalogue_has_no_banner(tmp_path: Path) -> None:
    names = object_names(20)
    run = write_run(tmp_path / "run", names, shards=1)
    table = make_rows(names, trained=True)
    real = table.set_column(
        table.schema.get_field_index("simulated"),
        table.schema.field("simulated"),
        pa.nulls(len(table), pa.bool_()),
    )
    commit_table(run, 0, real)
    build_catalog(str(run), str(tmp_path / "cat"))
    answer = write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")
    assert (answer["trained"], answer["simulated"]) == (True, False)
    reader, text = _read(tmp_path / "r.html")
    assert not {"untrained", "simulated", "partial"} & set(reader.ids)
    assert 'class="strip"' not in (tmp_path / "r.html").read_text()
    assert (
        "https://alerce.online/object/" + names[0] in (tmp_path / "r.html").read_text()
        or names[0] not in text
    )
    assert "No archive was given" in text


def test_anomaly_flags_and_reasons_show(tmp_path: Path) -> None:
    names = object_names(12)
    run = write_run(tmp_path / "run", names, shards=1)
    table = make_rows(names)
    said = {
        "anomaly_pvalue": 0.0042,
        "anomaly_flag": 1,
        "anomaly_reason": int(Reason.KNN | Reason.IMAGE),
        "anomaly_n_ref": 4711,
        "anomaly_ref_group": "SN II, photometry+image, 30 d",
    }
    for name, value in said.items():
        column = table.schema.field(name)
        filled = pa.repeat(pa.scalar(value, column.type), len(table))
        table = table.set_column(table.schema.get_field_index(name), column, filled)
    commit_table(run, 0, table)
    build_catalog(str(run), str(tmp_path / "cat"))
    write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")
    text = _read(tmp_path / "r.html")[1]
    assert "p 0.0042, flagged at 1 % (4711 known: SN II, photometry+image, 30 d)" in text
    for bit in (Reason.KNN, Reason.IMAGE):
        assert DESCRIPTIONS[bit] in text
    assert DESCRIPTIONS[Reason.JSD] not in text


def test_partial_catalogue_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", object_names(20), shards=4, commit={0, 2, 3})
    build_catalog(str(run), str(tmp_path / "cat"), allow_partial=True)
    assert write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")["partial"]
    assert "1 of 4 shards are missing" in _read(tmp_path / "r.html")[1]


def test_candidates_are_the_best_of_each_class(catalogue: str, page: Path) -> None:
    rows = [r for r in read_table(catalogue, horizon="full").to_pylist() if r["class_top1"]]
    shown = re.findall(r'<tr data-id="[^"]*" data-name="([^"]*)" data-class="([^"]*)"', page.read_text())
    for name in CLASSES:
        mine = sorted((r for r in rows if r["class_top1"] == name), key=lambda r: -r["prob_top1"])
        assert [n for n, c in shown if c == name] == [r["objectId"] for r in mine[:4]]


def test_card_shows_every_horizon_and_missing_modalities(catalogue: str, page: Path) -> None:
    source = page.read_text()
    cards = re.findall(r'<article class="card" id="([^"]+)".*?</article>', source, re.S)
    assert cards
    by_name = {r["objectId"]: r for r in read_table(catalogue, horizon="full").to_pylist()}
    for match in re.finditer(r'<article class="card" id="([^"]+)-1".*?</article>', source, re.S):
        row, card = by_name[match[1]], match[0]
        strip = card.split("What we would have said after")[1]
        assert re.findall(r'<th scope="row">\s*([\w.]+(?: d)?)', strip) == ["3 d", "10 d", "30 d", "full"]
        table = card.split("What we would have said after")[0]
        assert table.count("not available") == 3 - row["n_modalities"]
        assert f"<b>{row['class_top1']}</b> {row['prob_top1']:.2f}" in card
        assert ("<img" in card) == (row["candid_image"] is not None)
        assert 'class="pt r neg"' in card


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
    numbers = [int(n) for n in re.findall(r"<span>(\d+)</span>", cells[1])]
    tde = [r for i, r in enumerate(rows) if i % 2]
    assert sum(numbers) == len(tde)
    assert numbers[4] == sum(r["class_top1"] == "TDE" for r in tde)
    with pytest.raises(UserError, match="needs objectId and one of"):
        pq.write_table(pa.table({"name": ["a"]}), tmp_path / "bad.parquet")
        write_report(catalogue, None, tmp_path / "r.html", truth=str(tmp_path / "bad.parquet"))
    with pytest.raises(UserError, match="cannot be read"):
        write_report(catalogue, None, tmp_path / "r.html", truth=str(tmp_path / "none.parquet"))


def test_names_are_escaped(tmp_path: Path) -> None:
    names = object_names(12, prefix='<script>"x&')
    build_catalog(str(write_run(tmp_path / "run", names)), str(tmp_path / "cat"))
    write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")
    source = (tmp_path / "r.html").read_text()
    assert source.count("<script>") == 1
    assert "&lt;script&gt;" in source
    _read(tmp_path / "r.html")


def test_empty_catalogue_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", object_names(1), shards=1)
    commit_table(run, 0, make_rows(object_names(1)).slice(0, 0))
    build_catalog(str(run), str(tmp_path / "cat"))
    assert write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")["candidates"] == 0
    assert "there is nothing to rank" in _read(tmp_path / "r.html")[1]


def test_same_catalogue_same_page(catalogue: str, tmp_path: Path) -> None:
    write_report(catalogue, None, tmp_path / "a.html")
    write_report(catalogue, None, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_reference_horizon_and_links() -> None:
    assert reference_horizon({"horizons": ["3", "10"]}) == "10"
    assert reference_horizon({"horizons": ["10", "full"]}) == "full"
    assert [name for name, _ in links("ZTF20abc", 10.0, -5.0)] == ["ALeRCE", "Fink", "Fritz", "SNAD", "TNS"]
    assert links("mine", None, None) == []


def test_report_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a catalogue"):
        write_report(str(tmp_path), None, tmp_path / "r.html")


_PROBE = """
const out = {violations: 0};
addEventListener("securitypolicyviolation", () => { out.violations += 1; });
addEventListener("load", () => {
  const rows = () => [...document.querySelectorAll("#index tbody tr")].filter((r) => !r.hidden);
  const cards = () => [...document.querySelectorAll(".card")].filter((c) => !c.hidden).map((c) => c.id);
  const press = (key) => document.querySelector(`[data-key=${key}]`).click();
  const input = (id, value) => {
    const box = document.getElementById(id);
    box.value = value;
    box.dispatchEvent(new Event("input", {bubbles: true}));
  };
  out.all = rows().length;
  press("prob");
  out.probs = rows().map((r) => Number(r.dataset.prob));
  out.order = [rows().map((r) => r.dataset.id), cards()];
  out.sorted = document.querySelector("[data-key=prob]").closest("th").getAttribute("aria-sort");
  press("jsd"); press("jsd");
  out.jsd = rows().map((r) => r.dataset.jsd);
  document.querySelector("[value=AGN]").click();
  out.without = [...new Set(rows().map((r) => r.dataset.class))];
  out.cards = cards().length === rows().length;
  out.said = document.getElementById("shown").value;
  out.left = rows().length;
  document.querySelector("[value=AGN]").click();
  input("find", rows()[2].dataset.name.toUpperCase());
  out.found = rows().length;
  input("find", "");
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
  out.focus = document.activeElement.id === rows()[1].dataset.id;
  out.images = [...document.images].every((i) => i.naturalWidth === 61 && i.naturalHeight === 63);
  out.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const note = document.createElement("pre");
  note.id = "probe";
  note.textContent = JSON.stringify(out);
  document.body.append(note);
});
"""


_LABEL = """
addEventListener("load", () => {
  localStorage.clear();
  const cards = [...document.querySelectorAll(".card")];
  cards[0].querySelector("[data-label=yes]").click();
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "n", bubbles: true}));
  cards[2].querySelector("[data-label=unsure]").click();
  cards[3].querySelector("[data-label=no]").click();
  cards[3].querySelector("[data-label=no]").click();
  const out = {ids: cards.map((c) => c.id), csv: document.getElementById("save").href,
               count: document.getElementById("labelled").value,
               pressed: document.querySelectorAll("[aria-pressed=true]").length};
  const note = document.createElement("pre");
  note.id = "probe"; note.textContent = JSON.stringify(out); document.body.append(note);
});
"""


@pytest.fixture
def listed(tmp_path: Path) -> tuple[str, Path, pa.Table]:
    """Catalogue, file and rows of candidates."""
    build_catalog(str(write_run(tmp_path / "run", object_names(60))), str(tmp_path / "cat"))
    out = tmp_path / "candidates.parquet"
    find_candidates(str(tmp_path / "cat"), str(out), FindOptions(include_unchecked=True))
    return str(tmp_path / "cat"), out, read_candidates(str(out))[0]


def test_labels_of_the_page_rank_the_candidates_again(
    listed: tuple[str, Path, pa.Table], dom: Dom, tmp_path: Path
) -> None:
    catalogue, file, rows = listed
    page = tmp_path / "list.html"
    answer = write_report(catalogue, None, page, candidates=str(file))
    assert answer["candidates"] == rows.num_rows >= 4
    page.write_text(page.read_text().replace("<body>", f"<body><script>{_LABEL}</script>"))
    out = _probe(dom(page))
    keys = [
        f"{name}-{n}"
        for name, n in zip(*(rows.column(c).to_pylist() for c in ("objectId", "episode")), strict=True)
    ]
    assert out["ids"] == keys  # in the order of the list
    assert (out["count"], out["pressed"]) == ("3", 3)
    labels = tmp_path / "labels.csv"
    labels.write_text(urllib.parse.unquote(out["csv"].split(",", 1)[1]))
    again = tmp_path / "again.json"
    counted = label_candidates(catalogue, str(labels), str(again), FindOptions(include_unchecked=True))
    assert (counted["labels"], counted["labels_unsure"], counted["labels_unmatched"]) == (3, 1, 0)
    said = {(r["objectId"], r["episode"]): r["label"] for r in read_candidates(str(again))[0].to_pylist()}
    known = {f"{name}-{episode}": label for (name, episode), label in said.items() if label}
    assert known == {keys[0]: "yes", keys[1]: "no"}


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


def _probe(text: str) -> Any:
    found = re.search(r'<pre id="probe">(.*?)</pre>', text, re.S)
    assert found, text[-2000:]
    return json.loads(html.unescape(found[1]))


def test_sort_filter_find_and_keys_in_chromium(page: Path, dom: Dom, tmp_path: Path) -> None:
    probed = tmp_path / "probed.html"
    probed.write_text(
        page.read_text().replace('loading="lazy"', "").replace("<body>", f"<body><script>{_PROBE}</script>")
    )
    out = _probe(dom(probed))
    assert out["violations"] == 0
    assert out["all"] >= 8
    assert out["sorted"] == "descending"
    assert out["probs"] == sorted(out["probs"], reverse=True)
    assert out["order"][0] == out["order"][1]
    numbers = [float(x) for x in out["jsd"] if x]
    assert numbers == sorted(numbers)
    assert out["jsd"] == [x for x in out["jsd"] if x] + [x for x in out["jsd"] if not x]
    assert "AGN" not in out["without"]
    assert len(out["without"]) >= 2
    assert out["cards"]
    assert int(out["said"]) == out["left"] < out["all"]
    assert out["found"] == 1
    assert out["focus"]
    assert out["images"]
    assert out["wide"] <= 0


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_sticks_out(page: Path, dom: Dom, tmp_path: Path, width: int) -> None:
    frame = tmp_path / "frame.html"
    script = """
    document.querySelector("iframe").addEventListener("load", (event) => {
      const inner = event.target.contentDocument, root = inner.documentElement;
      const out = {width: root.clientWidth, over: root.scrollWidth - root.clientWidth,
                   curve: inner.querySelector(".lc").getBoundingClientRect().width,
                   cards: inner.querySelectorAll(".card").length};
      const note = document.createElement("pre");
      note.id = "probe"; note.textContent = JSON.stringify(out); document.body.append(note);
    });"""
    frame.write_text(
        f'<!doctype html><body><iframe style="border:0;width:{width}px;height:900px" '
        f'srcdoc="{html.escape(page.read_text())}"></iframe><script>{script}</script></body>'
    )
    out = _probe(dom(frame))
    assert width - 20 <= out["width"] <= width
    assert out["over"] <= 0
    assert out["cards"] >= 8
    assert out["curve"] > (300 if width == 390 else 450)
