from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from applecider_batch.archive.compact import choose_runs, compact
from applecider_batch.archive.gc import gc
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.archive.snapshot import (
    ArchiveError,
    PartRecord,
    Snapshot,
    SnapshotMoved,
    TableFile,
    load_snapshot,
)
from applecider_batch.archive.verify import verify
from applecider_batch.errors import UsageError
from applecider_batch.storage import Store
from tests.archive.packet_maker import Packet, Source, bad_packet, night_of
from tests.archive.trees import everything, tree


def build(url: Path, count: int = 5) -> None:
    """Nights one by one, with a packet that is superseded twice and one that was set aside."""
    for night in range(count):
        packets = night_of(night, range(30))
        packets.append(Packet("ZTF20x", 2, n_stamps=3 if night == 3 else 0, note=str(night)))
        ingest([Source(f"s{night}", packets, [bad_packet(f"s{night}", "x.avro")])], str(url))


def _run(name: str, size: int) -> PartRecord:
    return PartRecord(name, name, {"alerts": TableFile("f", 1, size, "", 0, 1)}, "", None, None, ())


@pytest.mark.parametrize(
    ("sizes", "full", "chosen"),
    [
        ([1, 1, 1], False, 0),
        ([1, 1, 1, 1], False, 4),
        ([1 << 40, 1, 1, 1], False, 0),
        ([1 << 40, 1, 1, 1, 1], False, 4),
        ([1 << 40, 1], True, 2),
        ([1 << 40], True, 0),
        ([], True, 0),
        ([1] * 40, False, 16),
    ],
)
def test_runs_are_merged_by_tiers_of_size(sizes: list[int], full: bool, chosen: int) -> None:
    snapshot = Snapshot(parts=tuple(_run(f"{n:03d}", size) for n, size in enumerate(sizes)))
    runs = choose_runs(snapshot, full=full)
    assert len(runs) == chosen
    assert set(runs) <= {part.run for part in sorted(snapshot.parts, key=lambda part: part.bytes)[:chosen]}


def test_compaction_keeps_the_content_and_the_digest(tmp_path: Path) -> None:
    build(tmp_path)
    before, files, snapshot = everything(tmp_path), tree(tmp_path), load_snapshot(Store(tmp_path))
    aside = Archive.open(str(tmp_path)).quarantine()
    result = compact(str(tmp_path))
    after = load_snapshot(Store(tmp_path))
    assert result["changed"]
    assert (result["parts_before"], result["parts_after"]) == (5, 1)
    assert result["snapshot"] == after.id == snapshot.id + 1
    assert result["logical_digest"] == after.logical_digest == snapshot.logical_digest
    assert (after.counts, after.sources, after.jd_max) == (snapshot.counts, snapshot.sources, snapshot.jd_max)
    assert everything(tmp_path) == before
    assert Archive.open(str(tmp_path)).quarantine().equals(aside)
    now = tree(tmp_path)
    assert {name: now[name] for name in files} == files  # nothing in place was rewritten
    # The superseded packets are gone, their record is not.
    assert after.parts[0].rows("alerts") == len(before["alerts"])
    assert after.parts[0].rows("duplicates") == 4
    assert verify(str(tmp_path), deep=True)["problems"] == []
    assert not compact(str(tmp_path))["changed"]
    assert everything(Archive.open(str(tmp_path), snapshot=snapshot.id)) == before


def test_little_memory_and_small_parts_change_no_content(tmp_path: Path) -> None:
    build(tmp_path)
    before = everything(tmp_path)
    compact(str(tmp_path), memory_bytes=1 << 20, part_bytes=3 << 20)
    snapshot = load_snapshot(Store(tmp_path))
    assert len(snapshot.parts) > 1
    assert all(table.bytes <= 3 << 20 for part in snapshot.parts for table in part.tables.values())
    assert everything(tmp_path) == before
    assert verify(str(tmp_path), deep=True)["problems"] == []


def test_an_ingest_after_a_compaction_still_knows_what_was_there(tmp_path: Path) -> None:
    build(tmp_path / "a")
    compact(str(tmp_path / "a"))
    gc(str(tmp_path / "a"))
    best = Packet("ZTF20x", 2, note="best", forced=[(1, 2.0)])
    worst = Packet("ZTF20x", 2, n_stamps=0, note="0")  # known, and lost long ago
    result = ingest([Source("late", [best, worst, *night_of(1, range(30))])], str(tmp_path / "a"))
    assert (result["stored"], result["duplicates"]) == (0, 32)
    build(tmp_path / "b")
    ingest([Source("late", [best, worst, *night_of(1, range(30))])], str(tmp_path / "b"))
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    digests = {load_snapshot(Store(tmp_path / name)).logical_digest for name in "ab"}
    assert len(digests) == 1
    assert verify(str(tmp_path / "a"), deep=True)["problems"] == []


def test_an_ingest_during_a_compaction_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    build(tmp_path)
    late = [*night_of(9, range(30)), Packet("ZTF20x", 2, note="best", forced=[(1, 2.0)])]
    original, done = Store.create_only, []

    def slow(self: Store, rel: str, data: bytes) -> None:
        if rel.startswith("snapshots/") and not done:
            done.append(rel)
            ingest([Source("late", late)], str(tmp_path))
        original(self, rel, data)

    monkeypatch.setattr(Store, "create_only", slow)
    compact(str(tmp_path))
    build(tmp_path / "b")
    ingest([Source("late", late)], str(tmp_path / "b"))
    assert done
    assert everything(tmp_path) == everything(tmp_path / "b")
    assert verify(str(tmp_path), deep=True)["problems"] == []


def test_a_second_compaction_meanwhile_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    build(tmp_path)
    original, done = Store.create_only, []

    def slow(self: Store, rel: str, data: bytes) -> None:
        if rel.startswith("snapshots/") and not done:
            done.append(rel)
            compact(str(tmp_path))
        original(self, rel, data)

    monkeypatch.setattr(Store, "create_only", slow)
    with pytest.raises(SnapshotMoved, match="Another process compacted"):
        compact(str(tmp_path))
    assert verify(str(tmp_path), deep=True)["problems"] == []


def test_gc_removes_what_no_kept_snapshot_names_and_nothing_else(tmp_path: Path) -> None:
    build(tmp_path)
    compact(str(tmp_path))
    before = everything(tmp_path)
    orphan = tmp_path / "parts" / "0123"
    orphan.mkdir()
    (orphan / ".alerts.parquet.77.tmp").write_bytes(b"left by a killed process")
    (tmp_path / "snapshots" / ".00000009.json.77.tmp").write_text("{")
    dry = gc(str(tmp_path), dry_run=True)
    files = tree(tmp_path)
    assert dry["files_removed"] > 10
    result = gc(str(tmp_path), keep=2)
    assert result["snapshots_kept"] == [5, 6]
    assert result["snapshots_removed"] == [1, 2, 3, 4]
    assert everything(Archive.open(str(tmp_path), snapshot=5)) == everything(tmp_path) == before
    assert not orphan.exists()
    result = gc(str(tmp_path))
    assert result["parts_kept"] == 1
    assert len(list((tmp_path / "parts").iterdir())) == 1
    assert everything(tmp_path) == before
    now = tree(tmp_path)
    assert {name: files[name] for name in now} == now
    assert len(now) == len(files) - dry["files_removed"]
    assert gc(str(tmp_path))["files_removed"] == 0
    assert verify(str(tmp_path), deep=True)["problems"] == []
    with pytest.raises(ArchiveError, match=r"no snapshot 5; it has \[6\]"):
        Archive.open(str(tmp_path), snapshot=5)


def test_gc_refuses_to_keep_nothing(tmp_path: Path) -> None:
    build(tmp_path, 1)
    with pytest.raises(UsageError, match="--keep is 0; at least 1"):
        gc(str(tmp_path), keep=0)


def test_gc_and_compact_refuse_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    for command in (gc, compact):
        with pytest.raises(ArchiveError, match="is not an archive"):
            command(str(tmp_path))
    assert (tmp_path / "precious.txt").exists()


def test_parts_that_gc_took_before_the_commit_are_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    from applecider_batch.archive import ingest_packets

    build(tmp_path, 2)
    original = ingest_packets.successor

    def slow(*args: Any, **more: Any) -> Snapshot:
        gc(str(tmp_path))
        return original(*args, **more)

    monkeypatch.setattr(ingest_packets, "successor", slow)
    with pytest.raises(SnapshotMoved, match="vanished before it was committed"):
        ingest([Source("late", night_of(9, range(3)))], str(tmp_path))
    assert verify(str(tmp_path), deep=True)["problems"] == []
