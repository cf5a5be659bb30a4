from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from applecider_batch.catalog.run_folder import RunFolder as CatalogRunFolder
from applecider_batch.digest import table_digest
from applecider_batch.engine import api
from applecider_batch.engine.driver import FREE_LOSSES, Driver, RunInterrupted, RunInterruptedByUser
from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.outcome import Outcome
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.run_folder import RunFolder
from applecider_batch.engine.serial import SerialExecutor
from applecider_batch.errors import StorageError, UserError
from applecider_batch.schema import schemas_folder
from applecider_batch.storage import Store
from tests.engine import fakes
from tests.engine.conftest import Inputs
from tests.engine.drive import drive


def rows(run: str | Path) -> pa.Table:
    """All committed rows, checked against their records as a catalogue build does."""
    folder = CatalogRunFolder(str(run))
    assert folder.missing == []
    return pa.concat_tables([folder.read_shard(shard) for shard in folder.shards])


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return fakes.write_archive(tmp_path / "archive.json")


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def second_shard(archive: str) -> Shard:
    return fakes.make_plan(archive).shards[1]


def test_every_object_and_horizon_has_exactly_one_row(archive: str, run: str) -> None:
    result = drive("serial", archive, run)
    assert (result["state"], result["shards_committed"], result["objects"], result["rows"]) == (
        "complete",
        8,
        40,
        80,
    )
    table = rows(run)
    keys = list(
        zip(table.column("objectId").to_pylist(), table.column("horizon_days").to_pylist(), strict=True)
    )
    assert keys == [(name, day) for name in fakes.names(40) for day in fakes.HORIZONS]
    assert table.column("prob_sni").null_count == 0
    for name in os.listdir(Path(run) / "commits"):
        record = json.loads((Path(run) / "commits" / name).read_text())
        shard_rows = pq.read_table(Path(run) / record["data_file"])
        assert record["content_digest"] == table_digest(shard_rows)
        assert record["rows"] == shard_rows.num_rows


def test_plan_and_commit_records_hold_what_the_schemas_promise(inputs: Inputs, tmp_path: Path) -> None:
    api.classify(
        inputs.archive,
        inputs.models,
        str(tmp_path),
        horizons=(3.0,),
        device="cpu",
        limit_shards=1,
        progress=False,
    )
    promised = {
        name: json.loads((schemas_folder() / f"{name}.json").read_text()) for name in ("plan", "commit")
    }
    types: dict[str, type] = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
    plan = json.loads((tmp_path / "plan.json").read_text())
    commit = json.loads((tmp_path / "commits" / "shard-00000.json").read_text())
    for document, fields in (
        (plan, promised["plan"]["fields"]),
        (plan["identity"], promised["plan"]["identity_fields"]),
        (commit, promised["commit"]["fields"]),
    ):
        assert document.keys() == fields.keys()
        for key, field in fields.items():
            absent = field.get("nullable", False) and document[key] is None
            assert absent or type(document[key]) is types[field["type"]], key


def test_nothing_in_a_data_file_tells_when_or_where(archive: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        drive("serial", archive, str(tmp_path / name))
    one, two = (sorted(p.read_bytes() for p in (tmp_path / n / "data").iterdir()) for n in ("one", "two"))
    assert one == two


def test_a_second_call_does_nothing_and_says_the_same(archive: str, run: str) -> None:
    first = drive("serial", archive, run)
    before = {p.name: p.stat().st_mtime_ns for p in (Path(run) / "data").iterdir()}
    second = drive("serial", archive, run)
    assert {p.name: p.stat().st_mtime_ns for p in (Path(run) / "data").iterdir()} == before
    keys = ("state", "objects", "rows", "run_id")
    assert [first[k] for k in keys] == [second[k] for k in keys]


def test_limited_shards_are_resumed_later(archive: str, run: str) -> None:
    first = drive("serial", archive, run, limit_shards=3)
    assert (first["state"], first["shards_committed"], first["shards_remaining"]) == ("incomplete", 3, 5)
    assert drive("serial", archive, run)["state"] == "complete"
    assert [entry["session"] for entry in api.status(run)["sessions"]] == [1, 1, 1, 2, 2, 2]


def test_another_model_set_is_refused(archive: str, run: str) -> None:
    drive("serial", archive, run, limit_shards=1)
    with pytest.raises(UserError, match=r"the model set \(the run has digest-tiny, now digest-other\)"):
        drive("serial", archive, run, models="other")


def test_a_poison_shard_is_set_aside_after_four_charges_and_can_be_retried(archive: str, run: str) -> None:
    poison = second_shard(archive)
    fakes.write_archive(Path(archive), **{"raise": {str(poison.hash_lo): str(poison.hash_hi)}})
    result = drive("serial", archive, run)
    assert (result["state"], result["shards_committed"], result["shards_quarantined"]) == ("partial", 7, 1)
    assert len(list((Path(run) / "failures").iterdir())) == 4
    status = api.status(run)
    assert status["quarantine"][0]["error"] == "this shard is poison"
    assert [r["charges"] for r in status["failures"][poison.name]] == [1, 2, 3, 4]
    # Without being asked to, a resumed run leaves it alone; asked to, it starts from nothing.
    assert drive("serial", archive, run)["shards_quarantined"] == 1
    fakes.write_archive(Path(archive))
    done = drive("serial", archive, run, retry_quarantined=True)
    assert (done["state"], done["shards_quarantined"]) == ("complete", 0)
    assert api.status(run)["failures"] == {}


def test_charges_of_an_earlier_session_count(archive: str, run: str) -> None:
    poison = second_shard(archive)
    folder = RunFolder(Store(run))
    folder.begin(fakes.make_plan(archive))
    for number in (1, 2, 3):
        folder.record_failure(
            poison.name, number, {"charged": True, "kind": "worker_died", "charges": number, "shard_id": 1}
        )
    fakes.write_archive(Path(archive), **{"raise": {str(poison.hash_lo): str(poison.hash_hi)}})
    assert drive("serial", archive, run)["shards_quarantined"] == 1
    assert len(list((Path(run) / "failures").iterdir())) == 4


def test_a_network_that_returns_nan_spoils_only_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = fakes.write_archive(tmp_path / "archive.json", objects=12)
    drive("serial", archive, str(tmp_path / "clean"))
    marked = fakes.names(12)[5]
    whole = fakes.prepare

    def prepare(*arguments: Any) -> fakes.Prepared:
        made = whole(*arguments)
        made.image.metadata[made.image.candid == int(marked[-5:]), 1] = fakes.NAN_MARK
        return made

    monkeypatch.setattr(fakes, "ROOMS", fakes.Rooms(**{**vars(fakes.ROOMS), "prepare": prepare}))
    result = drive("serial", archive, str(tmp_path / "run"))
    assert (result["state"], result["objects_in_error"]) == ("complete", 1)
    table, clean = rows(tmp_path / "run"), rows(tmp_path / "clean")
    bad = table.filter(pa.compute.equal(table.column("objectId"), marked))
    assert bad.column("error_code").to_pylist() == ["output_not_finite"] * 2
    assert bad.column("prob_img_sni").null_count == 2
    others = pa.compute.not_equal(table.column("objectId"), marked)
    assert table.filter(others) == clean.filter(others)


class FullFileSystem(LocalFileSystem):
    """A disk that is full when a commit is to be written."""

    protocol = "full"
    full = True

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode and "/data/" in path and FullFileSystem.full:
            raise OSError(28, "No space left on device")
        if "w" in mode:
            self.makedirs(self._parent(path), exist_ok=True)
        return super().open(path, mode, **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        self.makedirs(self._parent(path), exist_ok=True)
        super().pipe_file(path, value, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("full://"))


def test_no_space_left_stops_the_run_and_leaves_it_resumable(archive: str, run: str) -> None:
    fsspec.register_implementation("full", FullFileSystem, clobber=True)
    FullFileSystem.full = True
    os.makedirs(run)
    with pytest.raises(StorageError, match="No space left"):
        drive("serial", archive, f"full://{run}")
    assert not list(Path(run).glob("quarantine/*"))
    assert not list(Path(run).glob("commits/*"))
    assert api.status(run)["state"] == "incomplete"
    FullFileSystem.full = False
    assert drive("serial", archive, f"full://{run}")["state"] == "complete"


def test_a_read_only_target_is_said(archive: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Store, rel: str, data: bytes) -> None:
        raise StorageError(f"Permission denied: '{rel}' could not be written.") from PermissionError(
            13, "denied"
        )

    monkeypatch.setattr(Store, "create_only", denied)
    with pytest.raises(StorageError, match="Permission denied"):
        drive("serial", archive, run)


def after_first_commit(run: str, act: Callable[[], Any]) -> threading.Thread:
    """Do something as soon as a shard is committed."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not list(Path(run).glob("commits/shard-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(signal.SIGINT, RunInterruptedByUser, 130), (signal.SIGTERM, RunInterrupted, 143)],
)
def test_a_signal_leaves_a_resumable_run(
    archive: str, run: str, number: signal.Signals, kind: type[RunInterrupted], code: int
) -> None:
    fakes.write_archive(Path(archive), sleep={"*": 0.15})
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    watcher = after_first_commit(run, lambda: os.kill(os.getpid(), number))
    with pytest.raises(kind, match="keeps what is committed") as caught:
        drive("serial", archive, run)
    watcher.join()
    assert caught.value.exit_code == code
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert 0 < api.status(run)["shards_committed"] < 8
    assert drive("serial", archive, run)["state"] == "complete"


def test_cancel_stops_the_driver_and_a_later_run_goes_on(archive: str, run: str) -> None:
    fakes.write_archive(Path(archive), sleep={"*": 0.6})
    answers: list[dict[str, Any]] = []
    watcher = after_first_commit(run, lambda: answers.append(api.cancel(run)))
    with pytest.raises(RunInterrupted, match="was cancelled"):
        drive("serial", archive, run)
    watcher.join()
    assert answers[0]["cancelled"]
    assert api.cancel(run) == {"run": run, "cancelled": False, "driver": None}
    fakes.write_archive(Path(archive))
    assert drive("serial", archive, run)["state"] == "complete"


def test_two_drivers_on_one_run(archive: str, run: str) -> None:
    fakes.write_archive(Path(archive), sleep={"*": 0.2})
    refused: list[UserError] = []
    states: list[str] = []

    def second() -> None:
        states.append(api.status(run)["state"])
        try:
            drive("serial", archive, run)
        except UserError as error:
            refused.append(error)

    watcher = after_first_commit(run, second)
    assert drive("serial", archive, run)["state"] == "complete"
    watcher.join()
    assert states == ["running"]
    assert "has a driver already" in str(refused[0])


class Scripted:
    """An executor whose outcomes are given, shard by shard."""

    name = "scripted"

    def __init__(self, inner: SerialExecutor, kinds: dict[str, list[str]]) -> None:
        self.inner, self.kinds = inner, kinds
        self.start, self.free, self.close, self.spec = inner.start, inner.free, inner.close, inner.spec
        self.sizes, self.expect = inner.sizes, inner.expect
        self.attempts: list[str] = []

    def submit(self, shard: Shard, attempt: Attempt) -> None:
        self.attempts.append(attempt.name)
        self.inner.submit(shard, attempt)

    def wait(self, seconds: float) -> list[Outcome]:
        shard = self.inner._queue[0][0]
        planned = self.kinds.get(shard.name, [])
        if planned:
            self.inner._queue.popleft()
            return [Outcome(shard, planned.pop(0), error="scripted", error_type="Scripted")]
        return self.inner.wait(seconds)


def scripted(archive: str, run: str, kinds: dict[str, list[str]]) -> tuple[dict[str, Any], Scripted]:
    plan = fakes.make_plan(archive)
    executor = Scripted(SerialExecutor(fakes.make_spec(plan, run)), kinds)
    return Driver(RunFolder(Store(run)), plan, executor, progress=False).run(), executor


def test_lost_actors_and_nodes_are_not_charged_but_do_not_go_on_for_ever(archive: str, run: str) -> None:
    name = second_shard(archive).name
    result, executor = scripted(archive, run, {name: ["infrastructure"] * FREE_LOSSES})
    assert result["state"] == "complete"
    assert len(set(executor.attempts)) == len(executor.attempts) == 8 + FREE_LOSSES
    again, _ = scripted(archive, f"{run}2", {name: ["infrastructure"] * 100})
    assert again["shards_quarantined"] == 1
    assert len(api.status(f"{run}2")["failures"][name]) == FREE_LOSSES + 4


def test_the_death_of_its_own_worker_is_charged(archive: str, run: str) -> None:
    name = second_shard(archive).name
    result, _ = scripted(archive, run, {name: ["worker_died"] * 4})
    assert result["shards_quarantined"] == 1
    result, _ = scripted(archive, f"{run}2", {name: ["worker_died", "error", "worker_died"]})
    assert result["state"] == "complete"


def test_status_log_and_metrics_tell_the_run(archive: str, run: str) -> None:
    drive("serial", archive, run)
    status = api.status(run)
    assert (status["state"], status["driver"], status["plan"]["horizons"]) == ("complete", None, [3.0, None])
    steps = {"read", "prepare", "stamps", "cutouts", "batches", "infer", "rows", "write", "commit"}
    assert set(status["seconds_by_step"]) == steps
    assert [s["state"] for s in status["sessions"]] == ["start", "working", "complete"]
    assert (status["retries"], status["bottleneck"] is None) == (0, False)
    assert status["bytes_written"] == sum(p.stat().st_size for p in (Path(run) / "data").iterdir())
    lines = api.logs(run)
    assert sum("committed: 5 objects, 10 rows" in line for line in lines) == 8
    assert api.logs(run, lines=1) == lines[-1:]
    metrics = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert sorted(entry["shard_id"] for entry in metrics) == list(range(8))
    assert not (Path(run) / "lease.json").exists()


def test_status_of_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        api.status(str(tmp_path))


def test_an_archive_that_changed_under_the_run_is_refused(archive: str, run: str) -> None:
    plan = fakes.make_plan(archive)
    fakes.write_archive(Path(archive), objects=39)
    executor = SerialExecutor(fakes.make_spec(plan, run))
    with pytest.raises(UserError, match="The archive is not the plan's"):
        Driver(RunFolder(Store(run)), plan, executor, progress=False).run()
