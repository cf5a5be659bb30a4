"""An update that is killed at any step, or under which the archive is compacted: the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.archive.compact import compact
from applecider_batch.archive.gc import gc
from applecider_batch.archive.snapshot import snapshot_ids
from applecider_batch.catalog.store import open_catalog
from applecider_batch.engine.shard_task import ShardTask
from applecider_batch.storage import Store
from tests.engine.nightly import catalogue_bytes, update_of, update_words
from tests.killed import killed


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
    not_updated: Path, updated: Path, tmp_path: Path, pattern: str, moment: str
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(not_updated, folder)
    old = open_catalog(str(folder / "catalogue"))[1]
    killed(f"{folder}/catalogue/{pattern}", moment, *update_words(folder))
    assert open_catalog(str(folder / "catalogue"))[1] == old  # readers have what they had
    assert update_of(folder)["changed"]
    assert catalogue_bytes(folder) == catalogue_bytes(updated)
    assert not update_of(folder)["changed"]


def test_the_archive_is_compacted_and_collected_between_planning_and_reading(
    not_updated: Path, updated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(not_updated, folder)
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
    done = update_of(folder)
    assert len(calls) > 2
    assert done["objects_in_error"] == 0
    assert catalogue_bytes(folder) == catalogue_bytes(updated)
