"""An update that is killed at any step, or under which the archive is compacted: the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.archive.compact import compact
from applecider_batch.archive.gc import gc
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.snapshot import snapshot_ids
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.store import open_catalog
from applecider_batch.engine.api import classify
from applecider_batch.engine.shard_task import ShardTask
from applecider_batch.engine.update import update
from applecider_batch.models.model_set import init_model_set
from applecider_batch.simulate import simulate
from applecider_batch.storage import Store
from tests.engine.conftest import SMALL
from tests.engine.test_update import bytes_of

_ROOT = Path(__file__).resolve().parents[2]
#: Kills the process at the n-th of the files of the catalogue that match, before it gets its name or after.
_KILLED = """
import os, signal, sys
from pathlib import Path
from applecider_batch.engine.update import update
folder, pattern, moment = sys.argv[1:4]
def watched(original):
    def call(source, target):
        here = Path(target).match(f"{folder}/catalogue/{pattern}")
        if here and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
    return call
os.replace, os.link = watched(os.replace), watched(os.link)
update(f"{folder}/archive", f"{folder}/catalogue", f"{folder}/models", objects_per_shard=5, progress=False)
"""


def _update(folder: Path) -> dict[str, Any]:
    where = (str(folder / name) for name in ("archive", "catalogue", "models"))
    return update(*where, objects_per_shard=5, progress=False)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue, and an archive to which nights came since."""
    folder = tmp_path_factory.mktemp("before")
    made = simulate(folder / "survey", n_objects=20, n_nights=16, seed=7)
    packets = made["packets_per_night"].values()
    nights = [str(night) for night, count in zip(made["nights"], packets, strict=True) if count]
    archive, run = str(folder / "archive"), str(folder / "run")
    ingest(nights[:-2], archive)
    init_model_set(folder / "models", seed=2, configs=SMALL)
    classify(archive, str(folder / "models"), run, horizons=(3.0, None), progress=False)
    build_catalog(run, str(folder / "catalogue"))
    for night in nights[-2:]:
        ingest([night], archive)
    return folder


@pytest.fixture(scope="module")
def undisturbed(before: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes of the catalogue that an undisturbed update leaves, its run folder aside."""
    folder = tmp_path_factory.mktemp("undisturbed") / "a"
    shutil.copytree(before, folder)
    assert _update(folder)["changed"]
    return _bytes(folder)


def _bytes(folder: Path) -> dict[str, str]:
    # The folder of a run has times and attempts in it.
    found = bytes_of(str(folder / "catalogue"))
    return {name: digest for name, digest in found.items() if not name.startswith("runs/")}


@pytest.mark.parametrize(
    ("pattern", "moment"),
    [
        ("index/positions-*", "after"),  # what has changed is being found
        ("runs/*/commits/shard-*", "after"),  # a shard of the changed objects is done
        ("rows/part-*", "before"),  # the delta is being written
        ("releases/00002.json", "after"),  # the release is there, and is not yet the newest
    ],
)
def test_killed_and_called_again(
    before: Path, undisturbed: dict[str, str], tmp_path: Path, pattern: str, moment: str
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(before, folder)
    old = open_catalog(str(folder / "catalogue"))[1]
    command = [sys.executable, "-c", _KILLED, str(folder), pattern, moment]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert open_catalog(str(folder / "catalogue"))[1] == old  # readers have what they had
    assert _update(folder)["changed"]
    assert {name: d for name, d in _bytes(folder).items() if ".tmp" not in name} == undisturbed
    assert not _update(folder)["changed"]


def test_the_archive_is_compacted_and_collected_between_planning_and_reading(
    before: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(before, folder)
    archive = str(folder / "archive")
    read = ShardTask.read
    calls: list[int] = []

    def disturbed(self: ShardTask, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            assert compact(archive, full=True)["changed"]
        elif len(calls) == 2:
            gc(archive, keep=1)  # the files that the plan pinned are gone
            assert len(snapshot_ids(Store(archive))) == 1
        return read(self, *args)

    monkeypatch.setattr(ShardTask, "read", disturbed)
    done = _update(folder)
    assert len(calls) > 2
    assert done["objects_in_error"] == 0
    assert _bytes(folder) == undisturbed
