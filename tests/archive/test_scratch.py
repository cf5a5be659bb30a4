"""Folders with sorted rows between processes: whose they are, and what becomes of those of the killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from applecider_batch import lease as leases
from applecider_batch.archive.gc import gc
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.spill import SCRATCH, remove_abandoned, scratch_folder
from applecider_batch.lease import LEASE, Lease, read_lease
from applecider_batch.storage import Store
from tests.archive.test_spread import SIZES, ingested, nights
from tests.archive.trees import tree
from tests.elsewhere import Elsewhere
from tests.killed import killed_in

HOUR = 3600.0
_INGEST = """
from tests.archive.test_spread import ingested
from tests.elsewhere import Elsewhere
ingested(sys.argv[1], Elsewhere(2))
"""


def scratch(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{SCRATCH}*"))


@pytest.fixture
def of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Store]:
    """Makes a scratch folder of a process on another machine that was last heard of so many seconds ago."""
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.3)
    monkeypatch.setattr(leases, "WATCH_EVERY_SECONDS", 0.05)

    def make(age: float) -> Store:
        folder = Store(tmp_path).join(f"{SCRATCH}another")
        holder = {"token": "x", "host": "h", "machine": "elsewhere", "pid": 1, "heartbeat": time.time() - age}
        folder.write_json_atomic(LEASE, holder)
        folder.write_atomic("1.rows", b"rows")
        return folder

    return make


def test_it_is_leased_while_it_is_used_and_gone_afterwards(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with scratch_folder(store) as folder:
        folder.write_atomic("1.rows", b"rows")
        holder = read_lease(folder)
        assert holder is not None
        assert holder["pid"] == os.getpid()
        with scratch_folder(store):
            assert len(scratch(tmp_path)) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("age", [-HOUR, 0.0, HOUR, 23 * HOUR])
def test_one_of_another_machine_stays_for_a_day(
    of_another: Callable[[float], Store], tmp_path: Path, age: float
) -> None:
    of_another(age)
    assert not remove_abandoned(Store(tmp_path))
    assert len(scratch(tmp_path)) == 1


def test_then_it_goes(of_another: Callable[[float], Store], tmp_path: Path) -> None:
    of_another(25 * HOUR)
    assert remove_abandoned(Store(tmp_path))
    assert not scratch(tmp_path)


def test_a_wrong_clock_of_this_machine_removes_nobodys(
    of_another: Callable[[float], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_another(25 * HOUR)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 10.0)
    looks: list[dict[str, Any] | None] = []

    def look(store: Store) -> dict[str, Any] | None:
        holder = read_lease(store)
        looks.append(holder)
        if holder is not None and len(looks) == 3:  # it lives
            folder.write_json_atomic(LEASE, {**holder, "heartbeat": holder["heartbeat"] + 15.0})
        return holder

    monkeypatch.setattr(leases, "read_lease", look)
    assert not remove_abandoned(Store(tmp_path))
    assert len(scratch(tmp_path)) == 1


@pytest.mark.parametrize("empty", [False, True])
def test_one_that_says_nothing_of_its_owner_goes_after_a_day(tmp_path: Path, empty: bool) -> None:
    folder = tmp_path / f"{SCRATCH}unknown"
    folder.mkdir()
    files = [] if empty else [folder / "1.rows"]
    for file in files:
        file.touch()
    assert not remove_abandoned(Store(tmp_path))
    for path in (*files, folder):
        os.utime(path, (time.time() - 25 * HOUR,) * 2)
    assert remove_abandoned(Store(tmp_path))
    assert not scratch(tmp_path)


def test_on_an_object_store_the_same(s3_url: str, s3_options: dict[str, Any]) -> None:
    store = Store(s3_url, s3_options)
    with scratch_folder(store) as folder, scratch_folder(store):
        folder.write_atomic("1.rows", b"rows")
        assert not remove_abandoned(store)
    assert store.walk() == []
    folder.write_atomic("1.rows", b"rows")  # says nothing of its owner, and is new
    assert not remove_abandoned(store)
    ended = store.join(f"{SCRATCH}ended")
    with Lease(ended):
        holder = read_lease(ended)
    ended.write_json_atomic(LEASE, {**(holder or {}), "started": "another"})
    assert remove_abandoned(store)
    assert store.walk() == [f"{folder.url.rsplit('/', 1)[1]}/1.rows"]


@pytest.mark.parametrize(
    ("pattern", "moment", "number"),
    [
        (f"{SCRATCH}*/*.rows", "after", 2),  # sources are being read
        ("parts/*/*", "before", 3),  # parts are being written
        (f"{SCRATCH}*/*.rows", "before", 1),
    ],
)
def test_what_a_killed_ingest_left_the_next_one_removes(
    tmp_path: Path, pattern: str, moment: str, number: int
) -> None:
    ingested(tmp_path / "undisturbed", Elsewhere(2))
    url = tmp_path / "a"
    killed_in(_INGEST, f"{url}/{pattern}", moment, str(url), number=number)
    assert len(scratch(url)) == 1
    ingested(url, Elsewhere(2))
    assert not scratch(url)
    gc(str(url))  # files under temporary names
    assert tree(url) == tree(tmp_path / "undisturbed")


def test_gc_removes_what_a_killed_ingest_left_and_leaves_a_living_ones(tmp_path: Path) -> None:
    url = tmp_path / "a"
    ingest(nights()[:1], str(url), **SIZES)
    before = tree(url)
    killed_in(_INGEST, f"{url}/{SCRATCH}*/*.rows", "after", str(url))
    with scratch_folder(Store(url)) as folder:  # removes it
        folder.write_atomic("1.rows", b"rows")
        killed_in(_INGEST, f"{url}/{SCRATCH}*/*.rows", "after", str(url))
        assert len(scratch(url)) == 2
        assert gc(str(url), dry_run=True)["files_removed"] == 2  # the lease and a source's rows
        assert len(scratch(url)) == 2
        assert gc(str(url))["files_removed"] == 2
        assert [str(path) for path in scratch(url)] == [folder.url]
        assert folder.ls() == ["1.rows", LEASE]
    assert tree(url) == before
