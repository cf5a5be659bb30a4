"""The page: what it says, and that it needs nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.known import read_known
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.side import read_side_table
from applecider_batch.errors import UserError
from applecider_batch.inference.anomaly_reference import DESCRIPTIONS, Reason
from applecider_batch.report.cards import links, number
from applecider_batch.report.page import reference_horizon, write_report
from applecider_batch.taxonomy import CLASSES
from tests.catalog.synthetic import add_embeddings, commit_table, make_rows, object_names, write_run
from tests.report.reading import read_page


def test_page_needs_nothing_else(page: Path) -> None:
    reader, _ = read_page(page)
    assert reader.fetched
    assert all(url.startswith("data:") for url in reader.fetched)
    source = page.read_text()
    assert "default-src 'none'" in source
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|<iframe|WebSocket", source)
    assert len(reader.ids) == len(set(reader.ids))


def test_page_says_what_it_is_not(page: Path) -> None:
    reader, text = read_page(page)
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
    reader, text = read_page(tmp_path / "r.html")
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
    text = read_page(tmp_path / "r.html")[1]
    assert "p 0.0042, flagged at 1 % (4711 known: SN II, photometry+image, 30 d)" in text
    for bit in (Reason.KNN, Reason.IMAGE):
        assert DESCRIPTIONS[bit] in text
    assert DESCRIPTIONS[Reason.JSD] not in text


def test_partial_catalogue_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", object_names(20), shards=4, commit={0, 2, 3})
    build_catalog(str(run), str(tmp_path / "cat"), allow_partial=True)
    assert write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")["partial"]
    assert "1 of 4 shards are missing" in read_page(tmp_path / "r.html")[1]


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
        assert 'class="lim g"' in card
        assert f"{row['run_id']}, shard {row['shard_id']}" in card
        assert "redshift" in card


def test_names_are_escaped(tmp_path: Path) -> None:
    names = object_names(12, prefix='<script>"x&')
    build_catalog(str(write_run(tmp_path / "run", names)), str(tmp_path / "cat"))
    write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")
    source = (tmp_path / "r.html").read_text()
    assert source.count("<script>") == 1
    assert "&lt;script&gt;" in source
    read_page(tmp_path / "r.html")


def test_empty_catalogue_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", object_names(1), shards=1)
    commit_table(run, 0, make_rows(object_names(1)).slice(0, 0))
    build_catalog(str(run), str(tmp_path / "cat"))
    assert write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")["candidates"] == 0
    assert "there is nothing to rank" in read_page(tmp_path / "r.html")[1]


def test_same_catalogue_same_page(catalogue: str, tmp_path: Path) -> None:
    write_report(catalogue, None, tmp_path / "a.html")
    write_report(catalogue, None, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_reference_horizon_and_links() -> None:
    assert reference_horizon({"horizons": ["3", "10"]}) == "10"
    assert reference_horizon({"horizons": ["10", "full"]}) == "full"
    assert [name for name, _ in links("ZTF20abc", 10.0, -5.0)] == [
        "ALeRCE", "Fink", "Fritz", "SNAD", "TNS", "Legacy",
    ]  # fmt: skip
    assert links("mine", None, None) == []


def test_report_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a catalogue"):
        write_report(str(tmp_path), None, tmp_path / "r.html")


def test_numbers_that_are_none_are_dashes() -> None:
    assert [number(v) for v in (None, float("nan"), float("inf"), -1.234)] == ["–", "–", "–", "−1.23"]


def test_a_redshift_without_a_source_says_so(tmp_path: Path) -> None:
    names = object_names(12)
    run = write_run(tmp_path / "run", names, shards=1)
    table = make_rows(names)
    at = table.schema.get_field_index("redshift_used")
    given = pa.repeat(pa.scalar(0.0321, table.schema.field(at).type), len(table))
    commit_table(run, 0, table.set_column(at, table.schema.field(at), given))
    build_catalog(str(run), str(tmp_path / "cat"))
    write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")
    text = read_page(tmp_path / "r.html")[1]
    assert "0.0321 (no source)" in text
    assert "None" not in text


@pytest.fixture
def surrounded(tmp_path: Path) -> str:
    """A catalogue with latents, three sources listed at each object, and the first two objects siblings."""
    names = object_names(60)
    places = {name: (10.0 + i, 20.0) for i, name in enumerate(names)}
    places[names[1]] = (10.0, 20.0 + 1.0 / 3600)
    run = write_run(tmp_path / "run", names, positions=places)
    add_embeddings(run)
    build_catalog(str(run), str(tmp_path / "plain"))
    lines = ["name,ra,dec,discovery_jd,type"]
    for row in read_table(str(tmp_path / "plain"), horizon="full").to_pylist():
        if row["t0"] is not None:
            for number, step in enumerate((0.3, 1.4, 2.8)):
                when = row["t0"] + (5 if number < 2 else 900)
                lines.append(
                    f"{row['objectId']}-{number},{row['ra']},{row['dec'] + step / 3600},{when},SN Ia"
                )
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    build_catalog(str(run), str(tmp_path / "cat"), known=[read_known(str(tmp_path / "list.csv"))])
    return str(tmp_path / "cat")


def test_a_card_shows_siblings_all_matches_and_nearest_latents(surrounded: str, tmp_path: Path) -> None:
    write_report(surrounded, None, tmp_path / "r.html", per_class=60)
    source = (tmp_path / "r.html").read_text()
    rows = {r["objectId"]: r for r in read_table(surrounded, horizon="full").to_pylist()}
    matches = read_side_table(surrounded, "crossmatches").to_dicts()
    latents = {r["objectId"]: r for r in read_side_table(surrounded, "embeddings").to_dicts()
               if r["horizon_days"] is None}  # fmt: skip
    cards = {
        m[1]: m[0] for m in re.finditer(r'<article class="card" id="([^"]+)-1".*?</article>', source, re.S)
    }
    assert len(cards) > 15
    lonely = 0
    for name, card in cards.items():
        mine = [m for m in matches if m["objectId"] == name]
        assert len(mine) >= 3
        shown = re.search(r'class="flags matches">(.*?)</ul>', card, re.S)
        assert shown
        assert [f"{m['name']} (SN Ia) at {m['sep']:.2f}″" in shown[1] for m in mine] == [True] * len(mine)
        assert shown[1].count("another event") == sum(not m["in_window"] for m in mine) >= 1
        group = rows[name]["sibling_group"]
        others = [n for n, r in rows.items() if r["sibling_group"] == group and n != name] if group else []
        assert f"<dt>siblings in 2″</dt><dd>{', '.join(others) or 'none'}</dd>" in card
        lonely += not others
        near = card.split("Nearest known objects")[1] if "Nearest known objects" in card else ""
        said = re.findall(r"<dt>([^<]*)</dt><dd><b>5 SN Ia</b>", near)
        words = {"latent_phot": "light curve", "latent_img": "image + metadata"}
        assert said == [text for column, text in words.items() if latents[name][column] is not None]
        assert name not in re.findall(r"<li>(\S+) SN Ia <span>", near)
    assert 0 < len(cards) - lonely <= 2


def test_without_a_known_object_a_card_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", object_names(20))
    add_embeddings(run)
    build_catalog(str(run), str(tmp_path / "cat"))
    write_report(str(tmp_path / "cat"), None, tmp_path / "r.html")
    assert "No known object to compare the latents with." in read_page(tmp_path / "r.html")[1]
