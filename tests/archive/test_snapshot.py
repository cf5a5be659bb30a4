from __future__ import annotations

import json
from pathlib import Path

import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.archive.snapshot import (
    ArchiveError,
    Snapshot,
    SnapshotMoved,
    commit_snapshot,
    create_archive,
    load_snapshot,
    open_archive,
    snapshot_ids,
)
from applecider_batch.storage import Store
from tests.archive.packet_maker import Source, night_of


def test_a_new_archive_is_empty_and_readable(tmp_path: Path) -> None:
    create_archive(str(tmp_path / "a"))
    archive = Archive.open(str(tmp_path / "a"))
    assert archive.snapshot.to_json() == Snapshot().to_json()
    shard = archive.read_shard(0, 1 << 64, stamps=True)
    assert shard.objects == []
    assert archive.object_counts().num_rows == 0
    assert archive.ranges(1000) == [(0, 1 << 64)]


def test_snapshots_form_a_chain_and_survive_json(tmp_path: Path) -> None:
    for night in range(3):
        ingest([Source(f"s{night}", night_of(night, range(5)))], str(tmp_path))
    store = open_archive(str(tmp_path))
    assert snapshot_ids(store) == [1, 2, 3]
    chain = [load_snapshot(store, number) for number in (1, 2, 3)]
    assert [snapshot.parent for snapshot in chain] == [0, 1, 2]
    assert [len(snapshot.parts) for snapshot in chain] == [1, 2, 3]
    assert len({snapshot.logical_digest for snapshot in chain}) == 3
    again = Snapshot.from_json(json.loads(json.dumps(chain[2].to_json())))
    assert again.to_json() == chain[2].to_json()
    assert [len(Archive.open(str(tmp_path), snapshot=n).read_alerts(0, 1 << 64)) for n in (1, 2, 3)] == [
        5,
        10,
        15,
    ]


def test_nothing_of_the_machine_or_the_hour_is_in_a_snapshot(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        ingest([Source("s", night_of(1, range(5)))], str(tmp_path / name))
        texts.append((tmp_path / name / "snapshots" / "00000001.json").read_bytes())
    assert texts[0] == texts[1]


def test_only_one_of_two_successors_is_committed(tmp_path: Path) -> None:
    store = create_archive(str(tmp_path / "a"))
    parent = load_snapshot(store)
    first = commit_snapshot(store, parent, Snapshot(kind="ingest"))
    assert (first.id, first.parent) == (1, 0)
    with pytest.raises(SnapshotMoved, match=r"snapshot 0 is no longer the latest"):
        commit_snapshot(store, parent, Snapshot(kind="ingest"))
    assert snapshot_ids(store) == [1]


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (None, "is not an archive: it does not exist.*applecider-batch ingest"),
        ("[1]", r"is not an archive: its archive.json says \[1\]"),
        ('{"format": "other"}', "is not an archive: its archive.json says"),
        (
            '{"format": "applecider-batch archive", "version": 9}',
            "has format version 9; this program reads 1",
        ),
        ("{", "is not JSON"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, marker: str | None, message: str) -> None:
    url = tmp_path / "a"
    if marker is not None:
        url.mkdir()
        (url / "archive.json").write_text(marker)
    with pytest.raises(Exception, match=message) as caught:
        Archive.open(str(url))
    assert caught.value.exit_code == 4  # type: ignore[attr-defined]


def test_a_folder_without_marker_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"it holds no archive.json"):
        open_archive(str(tmp_path))


def test_a_process_killed_while_making_an_archive_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".archive.json.0123.tmp").write_text("{")
    create_archive(str(tmp_path))
    assert Archive.open(str(tmp_path)).snapshot.id == 0


def test_a_snapshot_that_is_not_there_or_damaged_is_told(tmp_path: Path) -> None:
    ingest([Source("s", night_of(1, range(2)))], str(tmp_path))
    store = Store(tmp_path)
    with pytest.raises(ArchiveError, match=r"has no snapshot 7; it has \[1\]"):
        load_snapshot(store, 7)
    path = tmp_path / "snapshots" / "00000001.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != "parts"}))
    with pytest.raises(ArchiveError, match=r"Snapshot 1 of .* is damaged"):
        load_snapshot(store)
    path.write_text(json.dumps(whole | {"packets_digest": "0" * 48}))
    with pytest.raises(ArchiveError, match=r"does not have the logical digest it states"):
        load_snapshot(store)
    path.write_text(json.dumps(whole | {"version": 3}))
    with pytest.raises(ArchiveError, match=r"has format version 3; this program reads 1 and 2"):
        load_snapshot(store)
