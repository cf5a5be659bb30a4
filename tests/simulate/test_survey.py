"""The survey as a whole: bytes, sums, classes, refusals."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from applecider_batch import taxonomy
from applecider_batch.errors import UsageError, UserError
from applecider_batch.simulate import simulate
from applecider_batch.simulate.plan import MIX, allocate, object_name
from applecider_batch.simulate.transients import RARE


def tree_digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    simulate(tmp_path / "a", n_objects=16, n_nights=6, seed=3)
    simulate(tmp_path / "b", n_objects=16, n_nights=6, seed=3)
    simulate(tmp_path / "c", n_objects=16, n_nights=6, seed=4)
    first, second, other = (tree_digest(tmp_path / name) for name in "abc")
    assert first == second
    assert not any(name.endswith(".part") or name.endswith(".simulating") for name in first)
    nights = [name for name in first if name.endswith(".tar.gz")]
    assert len(nights) == 6
    assert any(first[name] != other[name] for name in nights)
    assert first["truth.parquet"] != other["truth.parquet"]


def test_rerun_replaces_an_earlier_simulation(tmp_path: Path) -> None:
    simulate(tmp_path, n_objects=16, n_nights=8, seed=3)
    simulate(tmp_path, n_objects=15, n_nights=3, seed=5)
    assert len(list((tmp_path / "alerts").iterdir())) == 3
    assert json.loads((tmp_path / "simulation.json").read_text())["n_objects"] == 15


def test_sums(small: Any) -> None:
    assert small.summary["packets"] == len(small.packets) == sum(t["n_alerts"] for t in small.truth)
    assert sum(small.summary["packets_per_night"].values()) == len(small.packets)
    assert len({p["candid"] for p in small.packets}) == len(small.packets)
    counted = {name: len(group) for name, group in small.by_object().items()}
    assert counted == {t["objectId"]: t["n_alerts"] for t in small.truth if t["n_alerts"]}
    assert small.summary["spectra"] == sum(t["n_spectra"] for t in small.truth)
    assert len({t["objectId"] for t in small.truth}) == 60


def test_every_kind_class_and_gate(small: Any) -> None:
    assert {t["type"] for t in small.truth} == set(MIX)
    assert {t["class"] for t in small.truth} == {*taxonomy.CLASSES, None}
    assert {t["gate"] for t in small.truth} >= {"in_scope", "moving", "variable_star", "artefact"}
    assert {t["gate"] for t in small.truth} <= set(taxonomy.GATES)
    for row in small.truth:
        assert row["class"] is None or taxonomy.to_class5(row["type"]) == row["class"]
        assert (row["class"] is None) == (row["gate"] in ("moving", "variable_star", "artefact"))


def test_members_lie_in_their_night(small: Any) -> None:
    for packet, (tarball, member) in zip(small.packets, small.members, strict=True):
        assert member == f"{packet['candid']}.avro"
        date = packet["candidate"]["pdiffimfilename"][4:12]
        assert tarball == f"ztf_public_{date}.tar.gz"


def test_everything_says_simulated(small: Any) -> None:
    assert all(t["simulated"] for t in small.truth)
    for packet in small.packets:
        assert packet["candidate"]["rbversion"] == packet["candidate"]["drbversion"] == "simulated"
        assert "SIMULATED" in packet["publisher"]
        assert packet["candidate"]["programid"] == 1
    assert "SIMULATED" in (small.folder / "README.md").read_text()
    spectra = pq.read_table(small.folder / "spectra.parquet")
    assert set(spectra["instrument"].to_pylist()) <= {"simulated"}
    assert spectra.schema.metadata[b"simulated"] == b"true"


def test_known_list_leaves_some_out(small: Any) -> None:
    with (small.folder / "known_transients.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    known = {row["objectId"] for row in rows}
    assert known == {t["objectId"] for t in small.truth if t["in_known_list"]}
    transients = {t["objectId"] for t in small.truth if t["class"] and t["n_alerts_positive"]}
    assert known < transients
    assert all(row["type_raw"] in MIX and 0 <= float(row["ra"]) < 360 for row in rows)


def test_rare_events_are_in_no_list_and_change_nothing_else(tmp_path: Path) -> None:
    for name, rare in (("without", 0), ("with", 3)):
        simulate(tmp_path / name, n_objects=6, n_nights=8, seed=2, n_rare=rare)
    plain, more = (
        pq.read_table(tmp_path / name / "truth.parquet").to_pylist() for name in ("without", "with")
    )
    assert more[:6] == plain
    assert {row["type"] for row in more[6:]} == {RARE}
    assert all(row["class"] is None and not row["in_known_list"] for row in more[6:])
    assert len({row["objectId"] for row in more}) == 9
    with pytest.raises(UsageError, match="allowed are"):
        simulate(tmp_path / "x", n_objects=5, n_nights=2, seed=0, n_rare=-1)


def test_season_has_both_schemas(small: Any) -> None:
    switch = small.summary["schema_402_from"]
    for packet, (tarball, _) in zip(small.packets, small.members, strict=True):
        expected = "4.02" if tarball[11:19] >= switch else "3.3"
        assert packet["schemavsn"] == expected
    assert {p["schemavsn"] for p in small.packets} == {"3.3", "4.02"}


@pytest.mark.parametrize(("n_objects", "n_nights", "seed"), [(0, 5, 0), (5, 0, 0), (5, 4000, 0), (5, 5, -1)])
def test_numbers_out_of_range(tmp_path: Path, n_objects: int, n_nights: int, seed: int) -> None:
    with pytest.raises(UsageError, match="allowed are"):
        simulate(tmp_path / "x", n_objects=n_objects, n_nights=n_nights, seed=seed)
    assert not (tmp_path / "x").exists()


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        simulate(tmp_path, n_objects=5, n_nights=2, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="is a file"):
        simulate(tmp_path / "notes.txt", n_objects=5, n_nights=2, seed=0)


def test_allocation_counts() -> None:
    for n in (1, 7, 15, 16, 200, 1234):
        kinds = allocate(n)
        assert len(kinds) == n
        assert n < len(MIX) or set(kinds) == set(MIX)
    shares = allocate(10000)
    for kind, share in MIX.items():
        assert abs(shares.count(kind) / 10000 - share / sum(MIX.values())) < 0.003


def test_object_names() -> None:
    assert object_name(0, 18) == "ZTF18simaaaa"
    assert object_name(27, 21) == "ZTF21simaabb"
    with pytest.raises(ValueError, match="four letters"):
        object_name(26**4, 18)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    simulate(
        tmp_path, n_objects=3, n_nights=2, seed=0, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
