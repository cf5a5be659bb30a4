"""The Ray executor against the serial one, and what it does about dying actors."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.run_folder import RunFolder as CatalogRunFolder
from applecider_batch.catalog.verify import verify_catalog
from applecider_batch.engine import api
from applecider_batch.engine.driver import Driver, RunInterrupted
from applecider_batch.engine.ray_cluster import Node
from applecider_batch.engine.ray_executor import RayExecutor
from applecider_batch.engine.ray_worker import ActorPort
from applecider_batch.engine.run_folder import RunFolder
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.errors import ClusterError, InternalError, UsageError
from applecider_batch.models.model_set import init_model_set
from applecider_batch.models.use import use_network
from applecider_batch.storage import Store
from tests.engine import fakes
from tests.engine.conftest import SMALL, Inputs
from tests.engine.drive import drive

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Any]:
    """One Ray for the module; executors use it and leave it running."""
    from applecider_batch.engine.ray_cluster import Connection

    connection = Connection(None)
    connection.open(4)
    import ray

    yield ray
    connection.close()
    assert not ray.is_initialized()


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return fakes.write_archive(tmp_path / "archive.json")


def rows(run: Path) -> pa.Table:
    folder = CatalogRunFolder(str(run))
    assert folder.missing == []
    return pa.concat_tables([folder.read_shard(shard) for shard in folder.shards])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_rows_as_the_serial_executor(
    ray_session: Any, archive: str, tmp_path: Path, workers: int
) -> None:
    drive("serial", archive, str(tmp_path / "serial"), models="scored")
    result = drive("ray", archive, str(tmp_path / "ray"), workers, models="scored")
    assert (result["state"], result["rows"]) == ("complete", 80)
    assert rows(tmp_path / "ray") == rows(tmp_path / "serial")
    for column in ("anomaly_mcif", "anomaly_pvalue", "anomaly_ref_group"):
        assert rows(tmp_path / "ray").column(column).null_count == 0


def test_pictures_of_spectra_give_the_same_rows(ray_session: Any, inputs: Inputs, tmp_path: Path) -> None:
    models = tmp_path / "models"
    init_model_set(
        models,
        seed=2,
        configs={**SMALL, "spectra_image": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}},
        networks=("spectra_image",),
    )
    use_network(models, "spectra_image")
    digests = {}
    for executor in ("serial", "ray"):
        run, out = tmp_path / executor, tmp_path / f"catalogue-{executor}"
        done = api.classify(
            inputs.archive,
            str(models),
            str(run),
            horizons=(5.0, None),
            executor=executor,
            workers=2 if executor == "ray" else None,
            objects_per_shard=10,
            device="cpu",
            progress=False,
        )
        assert done["state"] == "complete"
        build_catalog(str(run), str(out))
        digests[executor] = verify_catalog(str(out))["content_sha256"]
    assert digests["serial"] == digests["ray"]
    table = rows(tmp_path / "ray")
    assert table.num_rows == rows(tmp_path / "serial").num_rows
    assert pc.sum(pc.is_valid(table.column("logit_spec_sni"))).as_py() > 3


def test_an_object_that_kills_its_worker_is_found_and_the_others_are_done(
    ray_session: Any, archive: str, tmp_path: Path
) -> None:
    killer = fakes.names(40)[12]
    fakes.write_archive(Path(archive), die_object={killer: True})
    result = drive("ray", archive, str(tmp_path / "run"), 2, models="slim")
    assert (result["state"], result["objects"], result["objects_in_error"]) == ("complete", 40, 1)
    table = rows(tmp_path / "run")
    failed = table.filter(pa.compute.is_valid(table.column("error_code")))
    assert failed.select(["objectId", "error_code"]).to_pylist() == [
        {"objectId": killer, "error_code": "worker_died"}
    ]
    failures = api.status(str(tmp_path / "run"))["failures"]
    assert [[f["kind"] for f in found] for found in failures.values()] == [["worker_died"]]


def test_workers_killed_now_and_then(ray_session: Any, archive: str, tmp_path: Path) -> None:
    drive("serial", archive, str(tmp_path / "serial"), models="slim")
    shards = fakes.make_plan(archive).shards
    fakes.write_archive(Path(archive), die_once={str(shards[i].hash_lo): True for i in (1, 6)})
    assert drive("ray", archive, str(tmp_path / "run"), 2, models="slim")["state"] == "complete"
    assert rows(tmp_path / "run") == rows(tmp_path / "serial")
    assert len(list((tmp_path / "run" / "failures").iterdir())) == 2


def test_a_modality_without_input_gets_no_actors(ray_session: Any, inputs: Inputs, tmp_path: Path) -> None:
    for executor in ("serial", "ray"):
        done = api.classify(
            inputs.archive,
            inputs.models,
            str(tmp_path / executor),
            snapshot=1,  # before the spectra
            horizons=(5.0, None),
            executor=executor,
            objects_per_shard=10,
            device="cpu",
            progress=False,
        )
        assert done["state"] == "complete"
    assert rows(tmp_path / "ray") == rows(tmp_path / "serial")
    last = json.loads((tmp_path / "ray" / "manifest.jsonl").read_text().splitlines()[-1])
    assert set(last["pools"]) == {"worker", "photometry", "image"}


def test_a_batch_without_actors_is_our_fault() -> None:
    with pytest.raises(InternalError, match="spectra"):
        ActorPort("spectra", [], "here", 0).submit({})


class Killer(RayExecutor):
    """Kills an actor of the image pool after the second shard was handed in."""

    handed_in = 0

    def submit(self, shard: Any, attempt: str) -> None:
        import ray

        Killer.handed_in += 1
        if Killer.handed_in == 2:
            ray.kill(self._models["image"][0].handle)
        super().submit(shard, attempt)


def test_a_dead_model_actor_is_replaced_and_nobody_is_charged(
    ray_session: Any, archive: str, tmp_path: Path
) -> None:
    drive("serial", archive, str(tmp_path / "serial"))
    plan, run = fakes.make_plan(archive), str(tmp_path / "run")
    executor = Killer(fakes.make_spec(plan, run), workers=1)
    result = Driver(RunFolder(Store(run)), plan, executor, progress=False).run()
    assert result["state"] == "complete"
    failures = [f for found in api.status(run)["failures"].values() for f in found]
    assert [(f["kind"], f["charged"]) for f in failures] == [("infrastructure", False)]
    assert rows(tmp_path / "run") == rows(tmp_path / "serial")


def test_a_worker_that_cannot_be_reached_gives_its_place_up(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    plan = fakes.make_plan(archive)
    executor = RayExecutor(fakes.make_spec(plan, str(tmp_path / "run")), workers=1)
    done: list[Any] = []

    def lost(ref: Any) -> Any:
        raise ray.exceptions.ActorUnavailableError("no answer", None)

    monkeypatch.setattr(ray, "get", lost)
    monkeypatch.setattr(RayExecutor, "_kill", staticmethod(done.append))
    monkeypatch.setattr(RayExecutor, "_start_worker", lambda self: done.append("another"))
    monkeypatch.setattr(executor, "_connection", SimpleNamespace(nodes=lambda: [Node("here", 2, 0)]))
    worker: Any = SimpleNamespace(node="here")
    executor._under_way["ref"] = (worker, plan.shards[0])
    assert executor._outcome("ref").kind == "worker_died"
    assert done == [worker, "another"]


def test_a_signal_ends_a_ray_run_in_good_order(ray_session: Any, archive: str, tmp_path: Path) -> None:
    fakes.write_archive(Path(archive), sleep={"*": 0.5})
    run = tmp_path / "run"

    def interrupt() -> None:
        while not list(run.glob("commits/shard-*")):
            ended.wait(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    ended = threading.Event()
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(RunInterrupted):
        drive("ray", archive, str(run), 1, models="slim")
    watcher.join()
    assert not (run / "lease.json").exists()
    fakes.write_archive(Path(archive))
    assert (
        drive("serial", archive, str(run), models="slim")["state"] == "complete"
    )  # either executor resumes the other's run


def test_a_model_set_that_a_worker_cannot_load_is_said(
    ray_session: Any, archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, run = fakes.make_plan(archive), str(tmp_path / "run")
    executor = RayExecutor(fakes.make_spec(plan, run), workers=1)
    broken = fakes.make_spec(fakes.make_plan(archive, models="broken"), run)
    monkeypatch.setattr(TaskSpec, "load_models", lambda self: SimpleNamespace(defaults={"image": None}))
    executor.spec = broken
    with pytest.raises(ClusterError, match="cannot start: RuntimeError"):
        Driver(RunFolder(Store(run)), broken.plan, executor, progress=False).run()


def test_pools_that_do_not_fit_are_refused_before_the_start(
    ray_session: Any, archive: str, tmp_path: Path
) -> None:
    plan, run = fakes.make_plan(archive), str(tmp_path / "run")
    executor = RayExecutor(fakes.make_spec(plan, run), workers=1, pools={"image": {"num_gpus": 1}})
    with pytest.raises(ClusterError, match="image' finds no room"):
        Driver(RunFolder(Store(run)), plan, executor, progress=False).run()
    assert api.status(run)["state"] == "incomplete"


class Changing(RayExecutor):
    """A cluster of 2 CPUs, then of 4 until the pools have grown, then of 1; then shards take no time."""

    def start(self, stop: threading.Event) -> None:
        self.cpus = 2.0
        self.seen: list[tuple[int, int]] = []
        self._connection.nodes = lambda: [Node("n", self.cpus, 0.0, 1e12)]  # type: ignore[method-assign]
        super().start(stop)

    def _cluster(self, nodes: Any) -> tuple[float, float]:
        return nodes[0].cpus, 0.0

    def submit(self, shard: Any, attempt: Any) -> None:
        self.seen.append((len(self._idle) + len(self._under_way), len(self._models["image"])))
        if len(self.seen) == 4:
            self.cpus = 4.0
        elif self.seen[-1] == (2, 2):
            self.cpus = 1.0
        elif self.seen[-1] == (1, 1) and self.cpus == 1.0:
            fakes.write_archive(Path(self.spec.plan.archive_url), objects=400)
        super().submit(shard, attempt)


def test_pools_follow_the_cluster_and_the_queue(
    ray_session: Any, archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("applecider_batch.engine.ray_executor.NODES_SECONDS", 0.0)
    fakes.write_archive(Path(archive), objects=400, sleep={"*": 0.5})
    plan, run = fakes.make_plan(archive), str(tmp_path / "run")
    executor = Changing(fakes.make_spec(plan, run))
    assert len(plan.shards) == 80
    result = Driver(RunFolder(Store(run)), plan, executor, progress=False).run()
    assert (result["state"], result["objects"]) == ("complete", 400)
    assert executor.seen[:4] == [(1, 1)] * 4
    assert max(executor.seen) == (2, 2)
    assert executor.seen[-1] == (1, 1)


def test_a_growing_cluster_needs_a_number_of_workers(archive: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--workers"):
        RayExecutor(fakes.make_spec(fakes.make_plan(archive), str(tmp_path)), autoscale=True)
