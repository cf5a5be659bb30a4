"""What has changed since a state of the archive, against reading both states whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.archive.batches import TableBatch
from applecider_batch.archive.changes import changed_objects
from applecider_batch.archive.compact import compact
from applecider_batch.archive.gc import gc
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.archive.snapshot import ArchiveError, Snapshot, load_snapshot
from applecider_batch.archive.verify import verify
from applecider_batch.digest import HASH64_END, hash64, hash64_one
from applecider_batch.schema import load_table
from applecider_batch.storage import Store
from tests.archive.packet_maker import JD0, Packet, Source, night_of


def curves(name: str, points: dict[str, float]) -> TableBatch:
    """A light-curve table with one detection for each object, so many days after the first night."""
    schema = load_table("photometry")
    rows = [
        {"objectId": object_id, "jd": JD0 + day, "fid": 1, "origin": 3, "known_jd": JD0 + day,
         "is_detection": True, "magpsf": 18.0, "sigmapsf": 0.1}
        for object_id, day in points.items()
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    table = table.append_column("hash64", pa.array(hash64(table.column("objectId"))))
    return TableBatch("photometry", schema.conform(table), name, name)


def names(*objects: str) -> list[int]:
    return sorted(hash64_one(name) for name in objects)


def differing(url: str, old: int, new: int) -> list[int]:
    """Objects of which the archive reads other rows in two snapshots."""
    shards = [Archive.open(url, snapshot=number).read_shard(0, HASH64_END) for number in (old, new)]
    found = set()
    for name in {*shards[0].objects, *shards[1].objects}:
        mine = [
            [table.filter(pa.compute.equal(table.column("objectId"), name)).drop_columns(["source_id"])
             for table in (shard.alerts, shard.spectra)]
            + [shard.photometry.filter(pa.compute.equal(shard.photometry.column("objectId"), name))]
            for shard in shards
        ]  # fmt: skip
        if not all(one.equals(other) for one, other in zip(*mine, strict=True)):
            found.add(hash64_one(name))
    return sorted(found)


def test_what_a_night_touched_is_known_before_and_after_compaction_and_gc(tmp_path: Path) -> None:
    url, store = str(tmp_path), Store(tmp_path)
    ingest([Source("s0", night_of(0, range(40)))], url)
    old = load_snapshot(store)
    late = Packet("ZTF20a000007", 0, number=3)  # dated before what the archive has of it
    better = Packet("ZTF20a000003", 0, note="x", forced=[(n, 1.0) for n in range(3)])
    ingest([Source("s1", [*night_of(1, range(30, 50)), late, better])], url)
    ingest([Source("s2", night_of(2, range(45, 48)))], url)
    new = load_snapshot(store)
    expected = differing(url, old.id, new.id)
    assert 20 < len(expected) < 30
    assert changed_objects(store, new, old.logical_digest).tolist() == expected
    compact(url, full=True)
    gc(url)
    compacted = load_snapshot(store)
    assert len(compacted.parts) == 1
    assert changed_objects(store, compacted, old.logical_digest).tolist() == expected
    assert changed_objects(store, compacted, new.logical_digest).tolist() == []
    assert verify(url)["problems"] == []
    ingest([Source("again", night_of(2, range(45, 48)))], url)  # all of it is there
    assert changed_objects(store, load_snapshot(store), old.logical_digest).tolist() == expected


def test_a_point_ahead_of_the_alerts_counts_when_they_reach_it(tmp_path: Path) -> None:
    url, store = str(tmp_path), Store(tmp_path)
    ingest(
        [Source("s0", night_of(0, range(5)))], url, photometry=[curves("c", {"X": 1.5, "Y": 9.0, "Z": -3.0})]
    )
    old = load_snapshot(store)
    assert old.jd_max is not None
    assert old.jd_max < JD0 + 1
    ingest([Source("s1", [Packet("ZTF20a000001", 2)])], url)
    now = changed_objects(store, load_snapshot(store), old.logical_digest)
    assert set(names("ZTF20a000001", "X")) <= set(now.tolist()) <= set(names("ZTF20a000001", "X", "Y"))


def test_spectra_and_tables_are_changes(tmp_path: Path) -> None:
    url, store = str(tmp_path), Store(tmp_path)
    ingest([Source("s0", night_of(0, range(5)))], url)
    old = load_snapshot(store)
    ingest([], url, photometry=[curves("c", {"ZTF20a000002": -1.0, "N": -2.0})])
    assert changed_objects(store, load_snapshot(store), old.logical_digest).tolist() == names(
        "ZTF20a000002", "N"
    )


def test_an_archive_from_before_the_records_begins_them_with_its_next_ingest(tmp_path: Path) -> None:
    url, store = str(tmp_path), Store(tmp_path)
    ingest([Source("s0", night_of(0, range(5)))], url, photometry=[curves("c", {"X": 1.5})])
    bare = load_snapshot(store)
    value = replace(bare, changes=()).to_json()
    del value["changes"]
    store.write_json_atomic(f"snapshots/{bare.id:08d}.json", value)
    ingest([Source("s1", [Packet("ZTF20a000001", 2)])], url)
    now = changed_objects(store, load_snapshot(store), bare.logical_digest)
    assert now.tolist() == names("ZTF20a000001", "X")


def test_an_unknown_state_and_an_end_that_moves_back_are_refused(tmp_path: Path) -> None:
    url, store = str(tmp_path), Store(tmp_path)
    ingest([], url, photometry=[curves("c", {"X": 50.0})])
    tables = load_snapshot(store)
    ingest([Source("s1", night_of(0, range(3)))], url)
    with pytest.raises(ArchiveError, match="moved back"):
        changed_objects(store, load_snapshot(store), tables.logical_digest)
    with pytest.raises(ArchiveError, match="no record of that state"):
        changed_objects(store, load_snapshot(store), "0" * 32)
    entry = load_snapshot(store).changes[-1]
    Path(tmp_path, str(entry.file)).unlink()
    assert "missing or was changed" in verify(url)["problems"][0]
    with pytest.raises(ArchiveError, match="missing or was changed"):
        changed_objects(store, load_snapshot(store), Snapshot().logical_digest)


def test_an_archive_of_some_objects_reads_those_alone(tmp_path: Path) -> None:
    url = str(tmp_path)
    for night in range(3):
        ingest([Source(f"s{night}", night_of(night, range(200)))], url)
    whole = Archive.open(url)
    everything = whole.read_shard(0, HASH64_END, stamps=True)
    chosen = [everything.objects[n] for n in (0, 3, 17, 21)]
    some = Archive.open(url).only(np.array(names(*chosen), np.uint64))
    read = some.read_shard(0, HASH64_END, stamps=True)
    assert read.objects == chosen
    wanted = pa.array(chosen)
    for name in ("alerts", "photometry", "spectra", "stamps"):
        table = getattr(everything, name)
        assert getattr(read, name).equals(table.filter(pa.compute.is_in(table.column("objectId"), wanted)))
    assert some.bytes_read < whole.bytes_read / 2
    candids = read.alerts.column("candid").to_pylist()
    assert some.read_stamps(0, HASH64_END, candids).equals(read.stamps)
