"""What the serial executor does side by side: batches in threads, and one shard ahead."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.engine import serial
from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.shard_task import Ready, ShardTask
from applecider_batch.inference.batches import Batch
from applecider_batch.inference.predictor import Predictor
from tests.engine import fakes
from tests.engine.drive import drive

PATIENCE = 30.0


@pytest.mark.parametrize(
    ("device", "threads", "cores", "expected"),
    [
        ("cpu", 1, 1, 1),
        ("cpu", 1, 2, 2),
        ("cpu", 2, 2, 1),
        ("cpu", 4, 2, 1),
        ("cpu", 1, 64, 2),
        ("cuda", 1, 1, 2),
    ],
)
def test_threads_of_batches_do_not_fight_for_cores(
    device: str, threads: int, cores: int, expected: int
) -> None:
    assert serial.at_once(device, threads, cores) == expected


def test_the_next_shard_is_made_ready_during_a_batch_and_none_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = fakes.write_archive(tmp_path / "archive.json", objects=20)  # four shards
    second = threading.Event()
    made: list[int] = []
    under_way: list[int] = []
    whole_run, whole_make, whole_batch = ShardTask.run, ShardTask.make_ready, Predictor.run

    def make_ready(self: ShardTask, shard: Shard, attempt: Attempt) -> Ready:
        made.append(shard.shard_id)
        assert shard.shard_id <= len(under_way) + 1  # that which is worked on or is next, and one after it
        ready = whole_make(self, shard, attempt)
        if shard.shard_id == 1:
            second.set()
        return ready

    def run(self: ShardTask, shard: Shard, *arguments: Any) -> dict[str, Any]:
        under_way.append(shard.shard_id)
        return whole_run(self, shard, *arguments)

    def batch(self: Predictor, values: Batch) -> dict[str, Any]:
        assert second.wait(PATIENCE)
        return whole_batch(self, values)

    monkeypatch.setattr(ShardTask, "run", run)
    monkeypatch.setattr(ShardTask, "make_ready", make_ready)
    monkeypatch.setattr(Predictor, "run", batch)
    assert drive("serial", archive, str(tmp_path / "run"))["state"] == "complete"
    assert made == under_way == [0, 1, 2, 3]


def test_no_thread_is_left_after_a_batch_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = fakes.write_archive(tmp_path / "archive.json", objects=5)

    def batch(self: Predictor, values: Batch) -> dict[str, Any]:
        raise ValueError("this batch is poison")

    monkeypatch.setattr(Predictor, "run", batch)
    before = threading.active_count()
    assert drive("serial", archive, str(tmp_path / "run"))["shards_quarantined"] == 1
    assert threading.active_count() == before


def test_batches_that_nobody_waits_for_are_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed shard and a run that is to stop leave their queue alone."""
    archive = fakes.write_archive(tmp_path / "archive.json", objects=40)
    executor = serial.SerialExecutor(fakes.make_spec(fakes.make_plan(archive, 40), str(tmp_path / "run")))
    monkeypatch.setattr(serial, "MOST_AT_ONCE", 1)
    stop, release = threading.Event(), threading.Event()
    computed: list[int] = []

    def batch(self: Predictor, values: Batch) -> dict[str, Any]:
        computed.append(len(computed))
        if len(computed) > 1:
            assert release.wait(PATIENCE)
        raise ValueError("this batch is poison")

    monkeypatch.setattr(Predictor, "run", batch)
    executor.start(stop)
    (shard,) = executor.spec.plan.shards
    executor.submit(shard, Attempt("a"))
    assert [outcome.kind for outcome in executor.wait(0.0)] == ["error"]
    release.set()
    executor._pools[0].submit(int).result()
    failed = len(computed)
    assert failed <= 2  # the one that failed, and at most the one that was begun meanwhile
    stop.set()
    executor.submit(shard, Attempt("b"))
    assert [outcome.kind for outcome in executor.wait(0.0)] == ["interrupted"]
    assert len(computed) == failed
    executor.close()
