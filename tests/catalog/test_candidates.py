"""Missed transients: the ranking against a plain loop, what is left out, evidence, neighbours, files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidate_files import read_candidates
from applecider_batch.catalog.candidates import FindOptions, find_candidates
from applecider_batch.catalog.known import read_known
from applecider_batch.catalog.neighbours import neighbour_columns
from applecider_batch.catalog.ranking import score_rows
from applecider_batch.catalog.read import read_table
from applecider_batch.errors import UsageError, UserError
from applecider_batch.schema import load_answers, load_table
from tests.catalog.synthetic import make_rows, object_names, write_run

NAMES = object_names(120)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    offsets = (0.0, 1.5, 3.0, 8.0)
    positions = {name: (10.0, 5.0 + d / 3600) for name, d in zip(NAMES[:4], offsets, strict=True)}
    return write_run(tmp_path_factory.mktemp("run") / "run", NAMES, positions=positions)


@pytest.fixture(scope="module")
def known_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A list with every fifth in-scope object of the run, discovered two days after t0."""
    folder = tmp_path_factory.mktemp("known")
    build_catalog(str(run), str(folder / "plain"))
    rows = [r for r in read_table(str(folder / "plain"), horizon="full").to_pylist() if r["t0"]]
    lines = ["name,ra,dec,discovery_jd"]
    lines += [f"S{i},{r['ra']},{r['dec']},{r['t0'] + 2}" for i, r in enumerate(rows) if i % 5 == 4]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "list.csv")


@pytest.fixture(scope="module")
def catalogue(run: Path, known_file: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("catalogue") / "cat")
    build_catalog(str(run), url, known=[read_known(known_file)])
    return url


def _score(row: dict[str, Any]) -> float:
    quality = next(v for v in (row["drb_median"], row["rb_max"], 0.8) if v is not None)
    anomaly = min(row["anomaly_consensus"] or 0.0, 4.0) / 4.0
    transient = row["prob_sni"] + row["prob_snii"] + 2 * row["prob_tde"]
    count = max(row["n_det"] - row["n_neg"], 1)
    gate = 1.0 if row["prob_in_scope"] is None else row["prob_in_scope"]
    history = 1 / (1 + (row["n_det_before_t0"] or 0) / 100)
    return gate * quality * (1 - math.exp(-count / 4)) * history * (transient + anomaly)


def test_ranking_equals_a_plain_loop(catalogue: str, tmp_path: Path) -> None:
    out = str(tmp_path / "c.parquet")
    answer = find_candidates(catalogue, out)
    table, kept = read_candidates(out)
    rows = [r for r in read_table(catalogue, horizon="full").to_pylist() if r["known_status"] == "unreported"]
    rows = [r for r in rows if r["t0"] and r["gate"] == "in_scope" and r["prob_top1"] is not None]
    rows = [r for r in rows if r["error_code"] is None]
    rows.sort(key=lambda r: (-_score(r), r["hash64"], r["objectId"], r["episode"]))
    assert len(rows) > 20
    assert table.column("objectId").to_pylist() == [r["objectId"] for r in rows]
    assert table.column("score").to_pylist() == pytest.approx([_score(r) for r in rows], rel=1e-6)
    assert table.column("rank").to_pylist() == list(range(1, len(rows) + 1))
    assert set(answer) == set(load_answers()["candidates find"])
    assert kept == {k: v for k, v in answer.items() if k != "out"}
    assert answer["candidates"] == answer["eligible"] == len(rows)
    assert sum(answer["left_out"].values()) + answer["eligible"] == answer["episodes"] == len(NAMES)
    assert answer["lists_checked"] == ["transient:list.csv"]
    assert "agn" in answer["kinds_not_checked"]
    assert "agn" in answer["note"]


def test_only_the_best_and_every_horizon(catalogue: str, tmp_path: Path) -> None:
    find_candidates(catalogue, str(tmp_path / "all.json"))
    find_candidates(catalogue, str(tmp_path / "few.json"), FindOptions(top=7, threshold=0.9))
    everything, few = (json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("all", "few"))
    same = [k for k in few[0] if k != "first_horizon"]
    assert [[r[k] for k in same] for r in few] == [[r[k] for k in same] for r in everything[:7]]
    by_key: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in read_table(catalogue).to_pylist():
        by_key.setdefault((row["objectId"], row["episode"]), []).append(row)
    first = set()
    for threshold, rows in ((0.5, everything), (0.9, few)):
        for row in rows:
            horizons = by_key[row["objectId"], row["episode"]]
            assert row["replay_horizon"] == ["3", "10", "30", "full"]
            assert row["replay_class"] == [h["class_top1"] for h in horizons]
            assert row["replay_prob_tde"] == pytest.approx([h["prob_tde"] for h in horizons])
            passed = [
                name
                for name, h in zip(row["replay_horizon"], horizons, strict=True)
                if h["prob_sni"] is not None
                and h["gate"] == "in_scope"
                and h["prob_sni"] + h["prob_snii"] + h["prob_tde"] >= threshold
            ]
            assert row["first_horizon"] == (passed[0] if passed else None)
            first.add(row["first_horizon"])
    assert len(first) > 2


def test_the_reference_horizon_changes_the_ranking(catalogue: str, tmp_path: Path) -> None:
    find_candidates(catalogue, str(tmp_path / "3.json"), FindOptions(horizon="3"))
    rows = json.loads((tmp_path / "3.json").read_text())["rows"]
    assert {r["horizon_days"] for r in rows} == {3.0}
    early = read_table(catalogue, horizon=3).to_pylist()
    expected = {r["objectId"]: _score(r) for r in early if r["prob_top1"]}
    assert [r["score"] for r in rows] == pytest.approx([expected[r["objectId"]] for r in rows])
    with pytest.raises(UserError, match="no horizon '7'"):
        find_candidates(catalogue, str(tmp_path / "7.json"), FindOptions(horizon="7"))


def test_unchecked_episodes_are_never_called_missed(run: Path, catalogue: str, tmp_path: Path) -> None:
    plain = str(tmp_path / "plain")
    build_catalog(str(run), plain)
    with pytest.raises(UserError, match="matched with no list"):
        find_candidates(plain, str(tmp_path / "c.csv"))
    answer = find_candidates(plain, str(tmp_path / "c.csv"), FindOptions(include_unchecked=True))
    assert answer["unchecked"] == answer["candidates"] > 0
    assert "none of these is known to be missed" in answer["note"]
    assert find_candidates(catalogue, str(tmp_path / "d.csv"))["unchecked"] == 0


def test_csv_and_equal_bytes(catalogue: str, tmp_path: Path) -> None:
    for ending in ("csv", "json", "parquet"):
        for name in ("a", "b"):
            find_candidates(catalogue, str(tmp_path / f"{name}.{ending}"))
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    with (tmp_path / "a.csv").open() as file:
        lines = list(csv.DictReader(file))
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert list(lines[0]) == load_table("candidates").names
    assert set(lines[0]) == set(rows[0])
    for line, row in zip(lines, rows, strict=True):
        assert line["objectId"] == row["objectId"]
        assert line["replay_class"].split(";") == [name or "" for name in row["replay_class"]]
    assert read_candidates(str(tmp_path / "a.json"))[0].equals(
        read_candidates(str(tmp_path / "a.parquet"))[0], check_metadata=False
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [({"top": 0}, "--top"), ({"threshold": 1.5}, "--threshold"), ({"neighbour_radius_arcsec": 0}, "radius")],
)
def test_refused_options(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        FindOptions(**options)


def test_refused_files(catalogue: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="csv"):
        find_candidates(catalogue, str(tmp_path / "c.xlsx"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="no candidates of this program"):
        read_candidates(str(tmp_path / "x.json"))
    with pytest.raises(UserError, match="is not there"):
        read_candidates(str(tmp_path / "y.json"))


def test_neighbours_against_astropy() -> None:
    from astropy import units
    from astropy.coordinates import SkyCoord

    rng = np.random.default_rng(5)
    n = 300
    ra, dec = 359.99 + rng.uniform(0, 0.02, n), rng.uniform(-0.01, 0.01, n)
    names = [f"Z{i:03d}" for i in rng.permutation(n)]
    table = pa.table({
        "objectId": names, "ra": ra % 360, "dec": dec, "gate": ["moving"] * n,
        "class_top1": pa.nulls(n, pa.string()), "known_status": ["known"] * n,
    })  # fmt: skip
    found = neighbour_columns(table.slice(0, 40), [table.slice(0, 100), table.slice(100)], radius_arcsec=10)
    sky = SkyCoord(ra, dec, unit="deg")
    links = 0
    for i in range(40):
        sep = sky[i].separation(sky).to_value(units.arcsec)
        near = sorted((s, name) for s, name in zip(sep, names, strict=True) if s <= 10 and name != names[i])
        assert found["neighbour_objectId"][i].as_py() == [name for _, name in near]
        assert found["neighbour_sep"][i].as_py() == pytest.approx([s for s, _ in near], abs=1e-4)
        links += len(near)
    assert links > 100


def test_a_chain_of_siblings_is_one_group(catalogue: str, tmp_path: Path) -> None:
    find_candidates(catalogue, str(tmp_path / "c.json"))
    rows = {r["objectId"]: r for r in json.loads((tmp_path / "c.json").read_text())["rows"]}
    chained = [rows[name] for name in NAMES[:3] if name in rows]
    assert chained
    for row in chained:
        assert row["sibling_group"] == min(NAMES[:3])
        assert set(NAMES[:4]) - {row["objectId"]} == set(row["neighbour_objectId"])


def test_score_without_anything_but_probabilities() -> None:
    rows = make_rows(NAMES[:30])
    bare = rows
    for name in ("prob_in_scope", "drb_median", "rb_max", "anomaly_consensus", "n_neg"):
        at = bare.schema.get_field_index(name)
        bare = bare.set_column(at, bare.schema.field(at), pa.nulls(bare.num_rows, bare.schema.field(at).type))
    score = score_rows(bare)
    known = np.isfinite(score.total)
    assert known.any()
    assert set(score.quality.tolist()) == {0.8}
    assert set(score.anomaly.tolist()) == {0.0}
    anomalous = bare.set_column(
        bare.schema.get_field_index("anomaly_consensus"),
        "anomaly_consensus",
        pa.array([2.0] * bare.num_rows, pa.float32()),
    )
    in_scope = known & (score.total > 0)
    at = bare.schema.get_field_index("n_det_before_t0")
    busy = bare.set_column(at, bare.schema.field(at), pa.array([300] * bare.num_rows, pa.int32()))
    assert score_rows(busy).total[known] == pytest.approx(score.total[known] / 4)
    assert (score_rows(anomalous).total[in_scope] > score.total[in_scope]).all()


def test_an_empty_list_is_an_answer(tmp_path: Path) -> None:
    url = str(tmp_path / "cat")
    build_catalog(str(write_run(tmp_path / "run", NAMES[10:11], shards=1)), url)
    rows = read_table(url, horizon="full").to_pylist()
    (tmp_path / "all.csv").write_text("name,ra,dec\n" + "".join(f"S,{r['ra']},{r['dec']}\n" for r in rows))
    build_catalog(str(tmp_path / "run"), url, known=[read_known(str(tmp_path / "all.csv"))])
    for ending in ("json", "csv", "parquet"):
        answer = find_candidates(url, str(tmp_path / f"c.{ending}"))
        assert (answer["candidates"], answer["first"]) == (0, [])
    assert read_candidates(str(tmp_path / "c.parquet"))[0].num_rows == 0
    assert (tmp_path / "c.csv").read_text().startswith('"rank","objectId"')
