"""catalog build and verify on committed run folders."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.content import ContentDigest
from applecider_batch.catalog.funnel import STEPS, funnel_table
from applecider_batch.catalog.parts import _Hashing
from applecider_batch.catalog.read import read_catalog, read_table
from applecider_batch.catalog.run_folder import RunFolder
from applecider_batch.catalog.verify import verify_catalog
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from tests.catalog.synthetic import commit_table, make_rows, object_names, write_run

NAMES = object_names(90)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", NAMES)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_catalogue_holds_every_committed_row_once(run: Path, tmp_path: Path) -> None:
    info = build_catalog(str(run), str(tmp_path / "cat"), rows_per_part=100)
    table = read_table(str(tmp_path / "cat"))
    want = make_rows(NAMES)
    drop = ["shard_id"]
    assert table.drop_columns(drop).equals(want.drop_columns(drop))
    assert table.schema.equals(load_table("catalogue").arrow)
    assert info["rows"] == want.num_rows
    assert info["objects"] == 90
    assert [part["rows"] for part in info["parts"]][:-1] == [100] * (len(info["parts"]) - 1)
    assert not info["partial"]
    answer = verify_catalog(str(tmp_path / "cat"))
    assert answer["problems"] == []
    assert answer["ok"]
    assert answer["content_sha256"] == info["content_sha256"]


def test_counts_equal_a_plain_count(run: Path, tmp_path: Path) -> None:
    info = build_catalog(str(run), str(tmp_path / "cat"))
    rows = make_rows(NAMES).to_pylist()
    last = {(row["objectId"], row["episode"]): row for row in rows}
    gates = [row["gate"] or "failed" for row in last.values()]
    assert {k: v for k, v in info["gates"].items() if v} == {gate: gates.count(gate) for gate in set(gates)}
    for label, days in (("3", 3.0), ("full", None)):
        classes = [row["class_top1"] for row in rows if row["horizon_days"] == days]
        assert info["classes"][label]["rows"] == len(classes)
        assert info["classes"][label]["SN II"] == classes.count("SN II")
    assert info["episodes"] == len(last)
    assert info["rows_in_error"] == sum(row["error_code"] is not None for row in rows)
    assert info["trained"] is False
    total = {
        step: sum(year[step] for year in info["funnel_by_year"].values()) for step in ("episodes", "in_scope")
    }
    assert total == {"episodes": len(last), "in_scope": gates.count("in_scope")}
    for year in info["funnel_by_year"].values():
        assert list(year) == list(STEPS)
        assert list(year.values()) == sorted(year.values(), reverse=True)
    assert set(info["funnel_by_year"]) <= {"unknown", *(str(y) for y in range(2018, 2025))}


def test_the_funnel_adds_up_and_names_what_it_removed(run: Path, tmp_path: Path) -> None:
    info = build_catalog(str(run), str(tmp_path / "cat"))
    rows = {(row["objectId"], row["episode"]): row for row in make_rows(NAMES).to_pylist()}
    # A plain walk: each episode falls out at the first cut that it does not pass.
    fell: dict[str, int] = dict.fromkeys(STEPS, 0)
    for row in rows.values():
        passes = {
            "processed": row["error_code"] is None,
            "not_moving": row["gate"] != "moving",
            "not_variable_star": row["gate"] != "variable_star",
            "not_artefact": row["gate"] != "artefact",
            "has_t0": row["t0"] is not None,
            "in_scope": row["gate"] == "in_scope",
            "classified": row["class_top1"] is not None,
            "confident": (row["prob_top1"] or 0) >= 0.5,
            "not_known": row["known_status"] not in ("known", "late"),
            "anomalous": (row["anomaly_flag"] or 0) > 0,
        }
        fell[next((step for step, good in passes.items() if not good), "episodes")] += 1
    found = {row["cut"]: row for row in funnel_table(info["funnel_by_year"])}
    assert {cut: row["removed"] for cut, row in found.items() if cut != "episodes"} == {
        step: n for step, n in fell.items() if step != "episodes"
    }
    assert sum(row["removed"] for row in found.values()) + found["anomalous"]["left"] == len(rows)
    assert found["confident"]["removed"] > 0
    for name, verdicts in info["cuts"].items():
        assert sum(verdicts.values()) == found["in_scope"]["left"], name


def test_same_run_same_bytes_and_stale_parts_go(run: Path, tmp_path: Path) -> None:
    build_catalog(str(run), str(tmp_path / "a"), rows_per_part=50)
    build_catalog(str(run), str(tmp_path / "b"), rows_per_part=50)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    (tmp_path / "b/rows/part-00099.old.parquet").write_bytes(b"left over")
    build_catalog(str(run), str(tmp_path / "b"), rows_per_part=50)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_content_does_not_depend_on_shards_or_parts(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", NAMES, shards=7)
    a = build_catalog(str(run), str(tmp_path / "a"))
    b = build_catalog(str(other), str(tmp_path / "b"), rows_per_part=64)
    assert a["content_sha256"] == b["content_sha256"]


def test_missing_shard_is_refused_or_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", NAMES, shards=4, commit={0, 1, 3})
    (run / "quarantine").mkdir()
    (run / "quarantine/shard-00002.json").write_text("{}")
    with pytest.raises(UserError, match=r"1 of 4 shards are missing \(1 of them quarantined\): 2"):
        build_catalog(str(run), str(tmp_path / "cat"))
    assert not (tmp_path / "cat").exists()
    info = build_catalog(str(run), str(tmp_path / "cat"), allow_partial=True)
    assert info["partial"]
    assert (info["missing_shards"], info["quarantined_shards"]) == ([2], [2])
    assert verify_catalog(str(tmp_path / "cat"))["partial"]
    completed = write_run(tmp_path / "run", NAMES, shards=4)
    assert not build_catalog(str(completed), str(tmp_path / "cat"))["partial"]


def test_damaged_or_absent_file_is_refused(run: Path, tmp_path: Path) -> None:
    path = run / "data/shard-00001.1.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"shard-00001\.1\.parquet.*damaged"):
        build_catalog(str(run), str(tmp_path / "cat"))
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        build_catalog(str(run), str(tmp_path / "cat"))
    assert not (tmp_path / "cat/catalog.json").exists()


def _shard(run: Path, number: int) -> pa.Table:
    return pq.read_table(run / f"data/shard-{number:05d}.1.parquet")


def test_rows_that_do_not_belong_are_refused(run: Path, tmp_path: Path) -> None:
    good = _shard(run, 1)
    with_twice = pa.concat_tables([good.slice(0, 1), good])
    commit_table(run, 1, with_twice)
    with pytest.raises(UserError, match="stands twice"):
        build_catalog(str(run), str(tmp_path / "cat"))
    commit_table(run, 1, pa.concat_tables([good.slice(1), good.slice(0, 1)]))
    with pytest.raises(UserError, match="stands before"):
        build_catalog(str(run), str(tmp_path / "cat"))
    foreign = _shard(run, 2)
    position = foreign.schema.get_field_index("shard_id")
    as_one = foreign.set_column(
        position, foreign.schema.field(position), pa.array([1] * len(foreign), pa.int32())
    )
    commit_table(run, 1, as_one)
    with pytest.raises(UserError, match="outside the shard's range"):
        build_catalog(str(run), str(tmp_path / "cat"))
    commit_table(run, 1, _with(good, "run_id", pa.array(["another"] * len(good))))
    with pytest.raises(UserError, match="another run_id"):
        build_catalog(str(run), str(tmp_path / "cat"))


def test_uncommitted_files_are_not_read(run: Path, tmp_path: Path) -> None:
    (run / "data/shard-00001.2.parquet").write_bytes(b"an attempt that died")
    info = build_catalog(str(run), str(tmp_path / "cat"))
    assert info["objects"] == 90


def test_places_that_are_something_else_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        build_catalog(str(tmp_path / "nowhere"), str(tmp_path / "cat"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and no catalogue"):
        build_catalog(str(run), str(tmp_path / "mine"))
    build_catalog(str(run), str(tmp_path / "cat"))
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "run_id": "other"}))
    with pytest.raises(UserError, match=r"already holds the catalogue of run 0123abcd, not of other"):
        build_catalog(str(run), str(tmp_path / "cat"))
    with pytest.raises(UserError, match="is not a catalogue"):
        verify_catalog(str(run))


def test_what_a_killed_build_leaves_is_no_other_content(run: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name in ("catalog.json", "run.json"):
        (tmp_path / "cat" / f".{name}.0123456789abcdef.tmp").write_text("{")
    assert build_catalog(str(run), str(tmp_path / "cat"))["rows"]


def test_a_read_that_fails_once_leaves_no_shard_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = dict.fromkeys((NAMES[0], NAMES[-1]), (10.0, 20.0))
    run = write_run(tmp_path / "run", NAMES, positions=twins)
    whole = build_catalog(str(run), str(tmp_path / "whole"))
    assert whole["siblings"]["objects"] == 2
    opened, plain = [], RunFolder._data_file

    def fails_once(self: RunFolder, shard: Any) -> str:
        opened.append(shard)
        if len(opened) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return plain(self, shard)

    monkeypatch.setattr(RunFolder, "_data_file", fails_once)
    again = build_catalog(str(run), str(tmp_path / "again"))
    assert (again["siblings"], again["anomaly_tests"]) == (whole["siblings"], whole["anomaly_tests"])
    assert _files(tmp_path / "again") == _files(tmp_path / "whole")


def test_horizons_without_the_full_history(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", NAMES, horizons=(3.0, 10.0))
    info = build_catalog(str(run), str(tmp_path / "cat"))
    assert info["horizons"] == ["3", "10"]
    assert info["classes"]["full"]["rows"] == sum(NAMES.index(n) % 11 == 10 for n in NAMES)
    assert verify_catalog(str(tmp_path / "cat"))["problems"] == []


def test_failed_write_leaves_the_old_catalogue(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_run(tmp_path / "small", NAMES, shards=2, commit={0})
    before = build_catalog(str(small), str(tmp_path / "cat"), allow_partial=True)
    write_run(tmp_path / "small", NAMES, shards=2)
    plain, written = _Hashing.write, []

    def full_disk(self: _Hashing, data: bytes) -> int:
        written.append(len(data))
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, data)

    monkeypatch.setattr(_Hashing, "write", full_disk)
    with pytest.raises(UserError, match="No space left"):
        build_catalog(str(small), str(tmp_path / "cat"))
    monkeypatch.undo()
    assert verify_catalog(str(tmp_path / "cat"))["content_sha256"] == before["content_sha256"]
    assert not list((tmp_path / "cat").rglob("*.tmp"))
    after = build_catalog(str(small), str(tmp_path / "cat"))
    assert not after["partial"]
    assert verify_catalog(str(tmp_path / "cat"))["ok"]


def test_run_statistics_are_kept_beside(run: Path, tmp_path: Path) -> None:
    times = [(1, 10.0, "serial"), (1, 14.0, "serial"), (2, 100.0, "ray"), (2, 106.0, "ray")]
    lines = [{"session": number, "time": time, "executor": name} for number, time, name in times]
    metrics = [{"shard_id": i, "objects": 30, "seconds": {"infer": 2.0, "read": 0.5}} for i in range(3)]
    (run / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"session": 2, "ti')
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    plain = write_run(tmp_path / "plain", NAMES)
    a, b = (build_catalog(str(r), str(tmp_path / f"cat-{r.name}")) for r in (run, plain))
    assert a == b
    kept = json.loads((tmp_path / "cat-run/run.json").read_text())
    assert kept == {"sessions": 2, "executors": ["ray", "serial"], "seconds": 10.0, "objects_per_s": 9.0,
                    "seconds_by_step": {"infer": 6.0, "read": 1.5}}  # fmt: skip


def test_empty_run_gives_an_empty_catalogue(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", NAMES[:1], shards=1)
    commit_table(run, 0, make_rows(NAMES[:1]).slice(0, 0))
    info = build_catalog(str(run), str(tmp_path / "cat"))
    assert (info["rows"], info["objects"]) == (0, 0)
    assert verify_catalog(str(tmp_path / "cat"))["ok"]
    assert read_catalog(str(tmp_path / "cat")).height == 0


def test_content_digest_sees_every_column() -> None:
    table = make_rows(NAMES[:3])
    plain = ContentDigest()
    plain.update(table)
    reversed_ = ContentDigest()
    reversed_.update(table.take(pa.array(range(table.num_rows))[::-1]))
    assert plain.hexdigest() == reversed_.hexdigest()
    for name in ("prob_sni", "gate", "known_status", "trained", "t0"):
        changed = ContentDigest()
        changed.update(_with(table, name, pa.nulls(len(table), table.schema.field(name).type)))
        assert changed.hexdigest() != plain.hexdigest(), name


def _with(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    position = table.schema.get_field_index(name)
    return table.set_column(position, pa.field(name, values.type), values)


def _add(name: str, value: float) -> Any:
    return lambda t: _with(t, name, pc.add(t[name], pa.scalar(value, t[name].type)))


def _first(table: pa.Table, name: str, value: Any) -> pa.Table:
    """The table with another value in the first row that is in scope and classified."""
    row = table["class_top1"].is_valid().to_pylist().index(True)
    values = table[name].to_pylist()
    values[row] = value
    return _with(table, name, pa.array(values, table.schema.field(name).type))


BREAKS: dict[str, tuple[Any, str]] = {
    "a duplicate row": (lambda t: pa.concat_tables([t.slice(0, 1), t]), "not unique and sorted"),
    "a lost row without t0": (
        lambda t: t.filter(pc.or_(pc.is_valid(t["t0"]), pc.equal(t["objectId"], "none"))),
        "rows, the rows say|rows = |objects = ",
    ),
    "another horizon": (
        lambda t: _with(
            t, "horizon_days", pc.if_else(pc.equal(t["horizon_days"], 3.0), 4.0, t["horizon_days"])
        ),
        "not exactly one row per horizon",
    ),
    "a lost row": (
        lambda t: pa.concat_tables([t.slice(0, 1), t.slice(2)]),
        "not exactly one row per horizon",
    ),
    "a changed probability": (lambda t: _first(t, "prob_sni", 0.99), "sum of the fused"),
    "another fusion": (
        lambda t: _with(_with(t, "prob_sni", t["prob_snii"]), "prob_snii", t["prob_sni"]),
        "not the mean of the modalities",
    ),
    "a wrong class": (lambda t: _first(t, "class_top1", "kilonova"), "not the most probable class"),
    "a class out of scope": (
        lambda t: _with(t, "class_top1", pc.if_else(pc.is_valid(t["prob_sni"]), "AGN", None)),
        "exactly in scope",
    ),
    "a lost class": (lambda t: _first(t, "class_top1", None), "exactly in scope"),
    "a wrong mask": (lambda t: _first(t, "modality_mask", 0), "modality_mask does not match"),
    "a wrong count": (lambda t: _first(t, "n_modalities", 7), "n_modalities is not"),
    "another name": (lambda t: _first(t, "objectId", "ZTF99zzz"), "hash64 is not"),
    "an unknown gate": (lambda t: _first(t, "gate", "maybe"), "gate is not one of"),
    "a sibling that is none": (lambda t: _first(t, "sibling_group", "ZTF99zzz"), "sibling_group is not that"),
    "a changed magnitude": (_add("mag_peak_g", 1.0), "content_sha256 is"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_verify_sees(run: Path, tmp_path: Path, what: str) -> None:
    change, sentence = BREAKS[what]
    build_catalog(str(run), str(tmp_path / "cat"))
    (part,) = (tmp_path / "cat/rows").glob("*.parquet")
    schema = load_table("catalogue").arrow
    pq.write_table(change(pq.read_table(part)).cast(schema), part)
    answer = verify_catalog(str(tmp_path / "cat"))
    assert not answer["ok"]
    assert any(re.search(sentence, problem) for problem in answer["problems"]), answer["problems"]
    assert any("was changed: size or sha256" in problem for problem in answer["problems"])


def test_verify_knows_the_runs_own_cuts(run: Path, tmp_path: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["identity"]["cuts"] = {"many": {"description": "", "row": ["n_det >= 9"]}}
    (run / "plan.json").write_text(json.dumps(plan))
    for path in sorted((run / "data").iterdir()):
        table = pq.read_table(path)
        bits = pc.cast(pc.greater_equal(table["n_det"], 9), pa.int16())
        zeros = pa.array([0] * table.num_rows, pa.int16())
        commit_table(run, int(path.name[6:11]), _with(_with(table, "cuts_own", bits), "cuts_own_na", zeros))
    info = build_catalog(str(run), str(tmp_path / "cat"))
    last = {(row["objectId"], row["episode"]): row for row in make_rows(NAMES).to_pylist()}
    scope = [row["n_det"] >= 9 for row in last.values() if row["gate"] == "in_scope" and row["t0"]]
    assert info["cuts"]["many"] == {
        "passed": sum(scope), "failed": len(scope) - sum(scope), "not_applicable": 0
    }  # fmt: skip
    assert verify_catalog(str(tmp_path / "cat"))["problems"] == []


def test_verify_sees_a_changed_count_and_a_lost_part(run: Path, tmp_path: Path) -> None:
    build_catalog(str(run), str(tmp_path / "cat"))
    path = tmp_path / "cat/catalog.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "objects": 91}))
    assert verify_catalog(str(tmp_path / "cat"))["problems"] == [
        "catalog.json says objects = 91, the rows say 90."
    ]
    next((tmp_path / "cat/rows").iterdir()).unlink()
    with pytest.raises(UserError, match="lacks its part"):
        verify_catalog(str(tmp_path / "cat"))


def test_read_only_place_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        build_catalog(str(run), str(tmp_path / "file/cat"))
