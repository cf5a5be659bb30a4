"""Tasks over the workers of a real Ray: the bytes of one process, also when workers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.archive.compact import compact
from applecider_batch.archive.ingest import ingest
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.export import export_catalog
from applecider_batch.engine.ray_spread import ATTEMPTS, RaySpread, open_spread
from applecider_batch.errors import ClusterError, UsageError, UserError
from applecider_batch.simulate import simulate
from applecider_batch.spread import Here, Spread
from tests.archive.trees import tree
from tests.catalog.synthetic import object_names, write_run

SIZES: dict[str, Any] = {"memory_bytes": 1 << 20, "part_bytes": 4 << 20}


@pytest.fixture(scope="module")
def spread() -> Iterator[RaySpread]:
    with RaySpread(None, 2) as opened:
        yield opened


class Watched:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.done = 0

    def update(self, done: int = 1, **notes: Any) -> None:
        self.done += done


def square(add: int, task: tuple[int, str], update: Any) -> int:
    """The task's number squared; its process ends the first time it sees one that has a file to leave."""
    number, once = task
    update(number, at=number)
    if once and (once == "always" or not Path(once).exists()):
        if once != "always":
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number < 0:
        raise UserError(f"The number {number} is negative.")
    return number**2 + add


def test_results_come_in_the_order_of_the_tasks_though_workers_die(spread: RaySpread, tmp_path: Path) -> None:
    tasks = [(n, str(tmp_path / f"{n}") if n in (0, 3) else "") for n in range(8)]
    watched = Watched()
    assert list(spread.map(square, 1, tasks, watched)) == [n * n + 1 for n in range(8)]
    assert watched.done == sum(range(8))
    assert len(list(tmp_path.iterdir())) == 2
    assert list(spread.map(square, 0, [])) == []


def test_an_error_of_a_task_is_the_callers(spread: RaySpread) -> None:
    for _ in range(30):  # the tasks beside it end at any moment
        with pytest.raises(UserError, match="The number -1 is negative"):
            list(spread.map(square, 0, [(1, ""), (-1, ""), (2, "")]))


def test_a_task_that_always_dies_is_given_up(spread: RaySpread) -> None:
    with pytest.raises(ClusterError, match=f"died {ATTEMPTS} times"):
        list(spread.map(square, 0, [(1, "always")]))


ENDED = """
import os, signal, subprocess, sys, time
from applecider_batch.engine import ray_spread
from applecider_batch.errors import ClusterError

def kill_ray(shared, task, update):
    os.kill(shared, signal.SIGKILL)
    time.sleep(600)

ray_spread.WATCH_SECONDS = 1.0
with ray_spread.RaySpread(None, 1) as spread:
    process = int(subprocess.check_output(["pgrep", "-P", str(os.getpid()), sys.argv[1]]))
    try:
        list(spread.map(kill_ray, process, [0, 1]))
    except ClusterError as error:
        print(error.args[0])
"""


@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_local_ray_that_died_is_not_waited_for(process: str) -> None:
    # In a process of its own: Ray ends a driver that cannot reach its GCS.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ENDED, process], capture_output=True, text=True, timeout=240
    )
    # Ray writes there, too.
    assert f"The Ray that was started on this machine has died ({process})" in done.stdout, done.stderr


def test_archive_and_catalogue_are_those_of_one_process(spread: RaySpread, tmp_path: Path) -> None:
    nights = [
        str(night) for night in simulate(tmp_path / "survey", n_objects=16, n_nights=6, seed=3)["nights"]
    ]
    spectra = [str(tmp_path / "survey" / "spectra.parquet")]
    run = write_run(tmp_path / "run", object_names(40))
    wheres: dict[str, Spread] = {"here": Here(), "there": spread}
    for name, where in wheres.items():
        folder = tmp_path / name
        ingest(nights[:3], str(folder / "archive"), spectra=spectra, spread=where, **SIZES)
        ingest(nights[3:], str(folder / "archive"), spread=where, **SIZES)
        compact(str(folder / "archive"), full=True, spread=where, **SIZES)
        build_catalog(str(run), str(folder / "catalogue"), rows_per_part=50, spread=where)
        export_catalog(str(folder / "catalogue"), str(folder / "hats"), "hats", horizon="full", spread=where)
    there = tree(tmp_path / "there")
    assert there == tree(tmp_path / "here")
    assert sum(name.startswith("archive/parts") and name.endswith("alerts.parquet") for name in there) > 2


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(UsageError, match="serial executor"), open_spread("serial", "auto", None):
        pass
    with open_spread("serial", None, 1) as opened:
        assert not opened.elsewhere
