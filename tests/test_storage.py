"""The storage wrapper: whole files or none, one winner of a commit, refusals in one sentence."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from applecider_batch.errors import StorageError
from applecider_batch.storage import Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "store")
    return Store(f"memory://{tmp_path.name}")


def test_write_read_list_delete(store: Store) -> None:
    assert store.ls() == []
    store.write_atomic("a/b.bin", b"one")
    store.write_atomic("a/b.bin", b"two")
    store.write_json_atomic("a/c.json", {"x": 1})
    assert store.read_bytes("a/b.bin") == b"two"
    assert store.read_json("a/c.json") == {"x": 1}
    assert store.exists("a/b.bin")
    assert store.size("a/b.bin") == 3
    assert store.ls() == ["a"]
    assert store.ls("a") == ["b.bin", "c.json"]
    assert store.walk() == ["a/b.bin", "a/c.json"]
    assert store.join("a").read_bytes("b.bin") == b"two"
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert store.ls("a") == ["c.json"]
    with pytest.raises(FileNotFoundError):
        store.read_bytes("a/b.bin")


def test_an_aborted_output_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_atomic("x", b"old")
    with pytest.raises(RuntimeError, match="half way"), store.open_output("x") as out:
        out.write(b"new")
        raise RuntimeError("half way")
    assert store.read_bytes("x") == b"old"
    assert store.ls() == ["x"]


def test_create_only_refuses_the_second(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create_only("c/one.json", b"1")
    with pytest.raises(FileExistsError):
        store.create_only("c/one.json", b"2")
    assert store.read_bytes("c/one.json") == b"1"
    assert store.ls("c") == ["one.json"]


def _race(args: tuple[str, int]) -> bool:
    try:
        Store(args[0]).create_only("winner", str(args[1]).encode())
    except FileExistsError:
        return False
    return True


def test_create_only_has_one_winner_among_processes(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        won = pool.map(_race, [(str(tmp_path), i) for i in range(40)], chunksize=1)
    assert sum(won) == 1
    assert won[int(Store(tmp_path).read_bytes("winner"))]


def test_pickle_keeps_url_and_options() -> None:
    store = pickle.loads(pickle.dumps(Store("s3://bucket/x/", {"anon": True})))
    assert (store.url, store.storage_options) == ("s3://bucket/x", {"anon": True})


def test_refusals_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        store.write_atomic("x", b"1")
    with pytest.raises(StorageError, match="No space left"):
        store.create_only("y", b"1")
    assert store.ls() == []

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "fsync", denied)
    with pytest.raises(StorageError, match="Permission denied"):
        store.write_atomic("x", b"1")


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((StorageError, FileExistsError)):
        Store(tmp_path / "file").write_atomic("x", b"1")


def test_unknown_protocol() -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        Store("nonsense://x").exists()


def test_bad_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(StorageError, match="is not JSON"):
        Store(tmp_path).read_json("x.json")
