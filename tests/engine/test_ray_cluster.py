from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from applecider_batch.engine.ray_cluster import (
    LONGEST_BASE,
    Connection,
    Node,
    Pool,
    _short_folder,
    check_fit,
    plan_pools,
    set_environment,
)
from applecider_batch.errors import ClusterError, UsageError

ALL = ("photometry", "image", "spectra")


@pytest.mark.parametrize("cpus", [1, 2, 4, 64])
def test_the_default_pools_fit_on_a_node_of_cpus(cpus: int) -> None:
    workers, pools = plan_pools(ALL, "cpu", 1, cpus, 0, None, None)
    check_fit([workers, *pools.values()], [Node("n", cpus, 0)])
    assert workers.size == max(1, cpus // 2)
    assert pools["image"].size == workers.size


def test_the_default_pools_share_every_gpu() -> None:
    workers, pools = plan_pools(ALL, "cuda", 1, 32, 2, None, None)
    assert {name: pool.size for name, pool in pools.items()} == dict.fromkeys(ALL, 2)
    assert sum(pool.size * pool.num_gpus for pool in pools.values()) == 2
    check_fit([workers, *pools.values()], [Node("a", 16, 1), Node("b", 16, 1)])


@pytest.mark.parametrize(
    ("pools", "nodes", "culprit"),
    [
        ([Pool("worker", 3, 1)], [Node("a", 2, 0)], "worker"),
        ([Pool("image", 1, 0, 1)], [Node("a", 8, 0)], "image"),
        # Each would fit alone; together they would wait for ever without a word from Ray.
        ([Pool("image", 1, 1, 0.75), Pool("spectra", 1, 1, 0.5)], [Node("a", 8, 1)], "spectra"),
        # A fraction of a GPU is on one GPU: 0.6 + 0.6 + 0.6 of two are not 1.8 of 2.
        ([Pool("image", 3, 0, 0.6)], [Node("a", 8, 2)], "image"),
        # An actor is on one node.
        ([Pool("worker", 1, 3)], [Node("a", 2, 0), Node("b", 2, 0)], "worker"),
        ([Pool("image", 1, 0, 2)], [Node("a", 2, 1), Node("b", 2, 1)], "image"),
        ([Pool("worker", 1, 0.25)], [], "worker"),
        # Memory is a node's, too.
        ([Pool("image", 3, 0, 0, 2e9)], [Node("a", 8, 0, 3e9), Node("b", 8, 0, 3e9)], "image"),
    ],
)
def test_pools_that_cannot_be_placed_are_refused(pools: list[Pool], nodes: list[Node], culprit: str) -> None:
    with pytest.raises(ClusterError, match=f"of '{culprit}' finds no room") as caught:
        check_fit(pools, nodes)
    assert caught.value.exit_code == 5


def test_pools_that_just_fit() -> None:
    check_fit([Pool("a", 10, 0.1), Pool("b", 10, 0, 0.1)], [Node("n", 1, 1)])
    check_fit([Pool("image", 2, 1, 0.5), Pool("spectra", 2, 1, 0.5)], [Node("n", 4, 2)])


def test_several_actors_share_a_gpu_as_far_as_the_nodes_memory_goes() -> None:
    nodes = [Node("a", 8, 1, 8 * 2**30), Node("b", 8, 1, 8 * 2**30)]
    _, pools = plan_pools(ALL, "cuda", 1, 16, 2, None, {"image": {"size": 8, "num_gpus": 0.25}})
    check_fit([pools["image"]], nodes)
    wanted = {"image": {"size": 8, "num_gpus": 0.25, "memory_gib": 3.0}}
    _, pools = plan_pools(ALL, "cuda", 1, 16, 2, None, wanted)
    with pytest.raises(ClusterError, match=r"8 x image \(0.25 CPU, 0.25 GPU, 3 GiB\).*1 GPU, 8.0 GiB"):
        check_fit([pools["image"]], nodes)


@pytest.mark.parametrize(("shards", "workers", "image"), [(100, 8, 8), (8, 8, 8), (3, 3, 3), (1, 1, 1)])
def test_there_are_no_more_workers_than_shards(shards: int, workers: int, image: int) -> None:
    worker, pools = plan_pools(ALL, "cpu", 1, 64, 0, 8, None, shards)
    assert (worker.size, pools["image"].size) == (workers, image)


def test_there_are_no_more_actors_than_the_workers_keep_busy() -> None:
    asked = {"image": {"size": 6, "num_gpus": 0.25}}
    sizes = [plan_pools(ALL, "cuda", 1, 64, 4, 8, asked, shards)[1]["image"].size for shards in (9, 2, 1)]
    assert sizes == [6, 4, 2]


def test_workers_are_a_pool_too() -> None:
    worker, _ = plan_pools(ALL, "cpu", 1, 8, 0, None, {"worker": {"size": 3, "memory_gib": 1.5}})
    assert worker == Pool("worker", 3, 0.25, 0.0, 1.5 * 2**30)
    with pytest.raises(UsageError, match="given twice"):
        plan_pools(ALL, "cpu", 1, 8, 0, 2, {"worker": {"size": 3}})


def test_own_pools_are_taken_over() -> None:
    _, pools = plan_pools(ALL, "cpu", 2, 4, 0, 3, {"image": {"size": 5, "num_cpus": 1.5}})
    assert pools["image"] == Pool("image", 5, 1.5, 0.0)
    assert pools["spectra"] == Pool("spectra", 1, 0.5, 0.0)


@pytest.mark.parametrize(
    "wanted",
    [{"radio": {"size": 1}}, {"image": {"cpus": 1}}, {"image": {"size": 0}}, {"image": {"num_gpus": -1}}],
)
def test_pools_that_make_no_sense_are_refused(wanted: dict[str, dict[str, float]]) -> None:
    with pytest.raises(UsageError, match="pool"):
        plan_pools(ALL, "cpu", 1, 4, 0, None, wanted)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no port"])
def test_an_unreachable_ray_is_said_at_once(address: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match="cannot be reached") as caught:
        Connection(address.format(port=port)).open()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("length", [12, LONGEST_BASE, LONGEST_BASE + 1, 24, 60])
def test_the_sockets_of_a_local_ray_have_room(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever TMPDIR is: a socket's path has 107 bytes at most."""
    base = Path("/tmp/").joinpath("acb-".ljust(length - len("/tmp/"), "x"))
    base.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    monkeypatch.setattr(os, "getpid", lambda: 4194304)
    folder = Path(_short_folder())
    try:
        socket_name = f"{folder}/session_2026-12-01_07-03-47_941082_4194304/sockets/plasma_store"
        assert len(socket_name) <= 107
        assert (folder.parent == base) is (length <= LONGEST_BASE)
    finally:
        shutil.rmtree(folder)
        base.rmdir()


@pytest.mark.parametrize(("own", "expected"), [(None, "1"), ("4", "4")])
def test_a_workers_polars_has_one_thread_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: str | None, expected: str
) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_DEDUP_LOGS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("POLARS_MAX_THREADS", own or "")
    if own is None:
        monkeypatch.delenv("POLARS_MAX_THREADS")
    set_environment()
    assert os.environ["POLARS_MAX_THREADS"] == expected


SLEEP = """
import os, signal, subprocess, time
from applecider_batch.engine.ray_cluster import Connection
connection = Connection(None)
connection.open()
import ray
raylet = int(subprocess.check_output(["pgrep", "-P", str(os.getpid()), "raylet"]))
os.kill(raylet, signal.SIGSTOP)
time.sleep(5)
os.kill(raylet, signal.SIGCONT)
print(ray.get(ray.remote(lambda x: x + 1).remote(1), timeout=60), len(connection.nodes()))
connection.close()
"""


def test_a_local_ray_outlives_a_machine_that_slept() -> None:
    # Ray's minute of patience, shortened.
    quick = {f"RAY_health_check_{name}_ms": "100" for name in ("period", "timeout", "initial_delay")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SLEEP],
        env={**os.environ, **quick},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["2", "1"], done.stderr
