from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from applecider_batch.engine.run_folder import Lines, RunFolder, read_lines
from applecider_batch.errors import UserError
from applecider_batch.storage import Store
from tests.engine import fakes

NAME = "shard-00002"


def record(data_file: str = "data/shard-00002.a1.parquet") -> dict[str, Any]:
    return {"shard_id": 2, "data_file": data_file}


def check_commit_is_create_only(folder: RunFolder) -> None:
    folder.commit(NAME, record())
    with pytest.raises(FileExistsError):
        folder.commit(NAME, record("data/shard-00002.b1.parquet"))
    assert folder.committed() == {NAME}
    assert folder.commit_record(NAME) == record()


def test_a_shard_is_committed_once(tmp_path: Path) -> None:
    check_commit_is_create_only(RunFolder(Store(tmp_path / "run")))


@pytest.mark.s3
def test_a_shard_is_committed_once_on_s3(s3_url: str, s3_options: dict[str, Any]) -> None:
    check_commit_is_create_only(RunFolder(Store(f"{s3_url}/run", s3_options)))


def test_a_run_made_with_another_plan_is_refused_and_says_why(tmp_path: Path) -> None:
    archive = fakes.write_archive(tmp_path / "a.json")
    folder = RunFolder(Store(tmp_path / "run"))
    plan = fakes.make_plan(archive)
    assert folder.begin(plan) == plan
    assert folder.begin(fakes.make_plan(archive)).run_id == plan.run_id
    with pytest.raises(UserError, match=r"what differs: the dtype \(the run has float32, now float16\)"):
        folder.begin(fakes.make_plan(archive, dtype="float16"))
    fakes.write_archive(tmp_path / "a.json", objects=41)
    with pytest.raises(UserError, match=r"the archive's snapshot \(the run has fake-40, now fake-41\)"):
        folder.begin(fakes.make_plan(archive))
    assert folder.plan() == plan


def test_a_folder_without_a_plan_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder(Store(tmp_path)).require_plan()


def test_garbage_is_what_can_never_count(tmp_path: Path) -> None:
    folder = RunFolder(Store(tmp_path))
    files = ["shard-00002.a1.parquet", "shard-00002.b1.parquet", "shard-00003.a2.parquet"]
    for name in files:
        folder.store.write_atomic(f"data/{name}", b"rows")
    folder.commit(NAME, record())
    assert folder.collect_garbage() == ["data/shard-00002.b1.parquet"]
    # The file of shard 3 stays: its worker may still commit it.
    assert folder.store.ls("data") == [files[0], files[2]]
    halves = [f".{name}.{'0' * 32}.tmp" for name in files[1:]]  # of workers that were killed
    for name in halves:
        Path(tmp_path, "data", name).write_bytes(b"ro")
    assert folder.collect_garbage() == [f"data/{halves[0]}"]
    assert folder.store.ls("data") == [halves[1], files[0], files[2]]
    assert folder.collect_garbage() == []


def test_a_released_shard_has_a_clean_record(tmp_path: Path) -> None:
    folder = RunFolder(Store(tmp_path))
    for number in range(1, 12):
        folder.record_failure(NAME, number, {"number": number})
    folder.record_failure("shard-00009", 1, {"number": 1})
    folder.quarantine(NAME, {"charges": 4})
    assert [r["number"] for r in folder.failures()[NAME]] == list(range(1, 12))
    assert folder.quarantined() == {NAME}
    folder.release(NAME)
    assert folder.quarantined() == set()
    assert list(folder.failures()) == ["shard-00009"]


def test_a_committed_shard_is_not_quarantined_any_more(tmp_path: Path) -> None:
    folder = RunFolder(Store(tmp_path))
    folder.quarantine(NAME, {})
    folder.commit(NAME, record())
    assert folder.quarantined() == set()


def test_lines_are_kept_over_sessions(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for text in ("one", "two"):
        lines = Lines(store, "log.txt")
        lines.add(text)
        lines.flush()
    assert read_lines(store, "log.txt") == ["one", "two"]
    assert read_lines(store, "absent.txt") == []


def test_a_folder_of_something_else_is_no_run(tmp_path: Path) -> None:
    archive = fakes.write_archive(tmp_path / "a.json")
    other = Store(str(tmp_path / "catalogue"))
    other.write_json_atomic("catalog.json", {})
    with pytest.raises(UserError, match=r"holds catalog.json and no plan.json.*new or empty folder"):
        RunFolder(other).begin(fakes.make_plan(archive))
    assert other.ls() == ["catalog.json"]
