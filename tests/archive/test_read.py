from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.objects import NO_POSITION, alert_counts, objects_table
from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.read import Archive
from applecider_batch.archive.stitch import stitch
from applecider_batch.digest import HASH64_END, hash64, hash64_one
from tests.archive.packet_maker import Packet, Source, batch_of, contents, night_of
from tests.archive.trees import everything, tree


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Six nights in three parts, with superseded packets."""
    url = str(tmp_path_factory.mktemp("read") / "a")
    for first in (0, 2, 4):
        sources = []
        for night in (first, first + 1):
            packets = night_of(night, range(60))
            if night:
                packets += night_of(night - 1, range(8), note="again", n_stamps=3 if night % 2 else 0)
            sources.append(Source(f"s{night}", packets))
        ingest(sources, url)
    return Archive.open(url)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_shards_are_disjoint_and_complete(archive: Archive, count: int) -> None:
    whole = archive.read_shard(0, HASH64_END, stamps=True)
    edges = [HASH64_END * n // count for n in range(count + 1)]
    shards = [archive.read_shard(lo, hi, stamps=True) for lo, hi in itertools.pairwise(edges)]
    assert [name for shard in shards for name in shard.objects] == whole.objects
    for name in ("alerts", "photometry", "spectra", "stamps"):
        assert pa.concat_tables([getattr(shard, name) for shard in shards]).equals(getattr(whole, name))


def test_row_groups_that_neighbouring_ranges_share_are_read_once(archive: Archive) -> None:
    edges = [HASH64_END * n // 8 for n in range(9)]
    whole, apart, again = (pickle.loads(pickle.dumps(archive)) for _ in range(3))
    for lo, hi in itertools.pairwise(edges):
        apart.read_shard(lo, hi)
    whole.read_shard(0, HASH64_END)
    assert apart.bytes_read == whole.bytes_read > 0
    # In any order, and a range read twice, the rows are the same.
    for lo, hi in [(edges[3], edges[4]), (edges[1], edges[2]), (edges[1], edges[2]), (edges[2], edges[5])]:
        read, fresh = again.read_shard(lo, hi), pickle.loads(pickle.dumps(archive)).read_shard(lo, hi)
        assert read.alerts.equals(fresh.alerts)
        assert read.photometry.equals(fresh.photometry)


def test_what_is_kept_of_row_groups_is_bounded(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = [HASH64_END * n // 8 for n in range(9)]
    read = []
    for most in (0, 60_000, 1 << 30):
        monkeypatch.setattr("applecider_batch.archive.part_reader.KEPT_BYTES", most)
        fresh = pickle.loads(pickle.dumps(archive))
        alerts = [fresh.read_shard(lo, hi).alerts for lo, hi in itertools.pairwise(edges)]
        assert pa.concat_tables(alerts).equals(archive.read_shard(0, HASH64_END).alerts)
        held = fresh.parts[0]._kept._groups
        assert fresh.parts[-1]._kept._groups is held, "all parts have one"
        fresh.read_shard(edges[2], edges[3])
        assert sum(table.nbytes for _, table in held.values()) <= most
        read.append(fresh.bytes_read)
    assert read[0] > read[1] > read[2]


def test_rows_are_in_the_archives_order_and_unique(archive: Archive) -> None:
    shard = archive.read_shard(0, HASH64_END, stamps=True)
    for table in (shard.alerts, shard.stamps):
        assert table is not None
        rows = list(
            zip(*(table.column(n).to_pylist() for n in ("hash64", "objectId", "jd", "candid")), strict=True)
        )
        assert rows == sorted(rows)
        assert len({row[3] for row in rows}) == len(rows) == 360
    assert shard.objects == sorted(shard.objects, key=lambda name: (hash64_one(name), name))
    assert np.array_equal(shard.alerts.column("hash64").to_numpy(), hash64(shard.alerts.column("objectId")))


def test_stitching_over_parts_is_stitching_of_all_packets(archive: Archive) -> None:
    points = [
        batch_of(
            night_of(n, range(60))
            + (night_of(n - 1, range(8), note="again", n_stamps=3 if n % 2 else 0) if n else [])
        ).photometry
        for n in range(6)
    ]
    expected = stitch(pa.concat_tables(points))
    assert contents(archive.read_photometry(0, HASH64_END)) == contents(expected)


def test_only_the_stamps_asked_for_are_given_and_only_their_row_groups_read(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = archive.read_shard(0, HASH64_END, stamps=True).stamps
    assert stamps is not None
    candids = stamps.column("candid").to_pylist()
    groups = []
    original = PartReader.read_groups

    def counting(self, name, which, columns=None, schema=None):  # type: ignore[no-untyped-def]
        if columns is None:
            groups.extend(which)
        return original(self, name, which, columns, schema)

    monkeypatch.setattr(PartReader, "read_groups", counting)
    for wanted in ([], candids[:1], candids[5:9] + candids[200:203], candids, [1, 2]):
        groups.clear()
        given = archive.read_stamps(0, HASH64_END, wanted)
        assert given.equals(
            stamps.filter(pc.is_in(stamps.column("candid"), value_set=pa.array(wanted, pa.int64())))
        )
        assert len(groups) <= 3 * len(wanted)
    lo, hi = int(stamps.column("hash64")[100].as_py()), int(stamps.column("hash64")[160].as_py())
    inside = archive.read_stamps(lo, hi, candids)
    assert inside.column("hash64").to_pylist() == [
        h for h in stamps.column("hash64").to_pylist() if lo <= h < hi
    ]


def test_planning_needs_only_the_indices(tmp_path: Path) -> None:
    ingest([Source("s", night_of(1, range(50)))], str(tmp_path))
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    counts = Archive.open(str(tmp_path)).object_counts()
    assert [pc.sum(counts.column(name)).as_py() for name in ("alerts", "stamps", "spectra")] == [50, 50, 0]
    starts = counts.column("hash_lo").to_numpy()
    hashes = hash64([packet.object_id for packet in night_of(1, range(50))])
    assert starts.tolist() == np.unique(hashes >> np.uint64(52) << np.uint64(52)).tolist()
    assert pc.sum(counts.column("bytes")).as_py() > 50 * 30_000


def test_ranges_cover_everything_in_balance(archive: Archive) -> None:
    ranges = archive.ranges(2 << 20)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == HASH64_END
    assert len(ranges) > 5
    rows = [archive.read_alerts(lo, hi, ["candid"]).num_rows for lo, hi in ranges]
    assert sum(rows) == 360
    assert max(rows) < 3 * 360 / len(ranges)


def test_an_archive_travels_to_workers(archive: Archive) -> None:
    archive.read_alerts(0, HASH64_END)
    copy = pickle.loads(pickle.dumps(archive))
    assert everything(copy) == everything(archive)


def test_one_object(archive: Archive) -> None:
    shard = archive.read_object("ZTF20a000003")
    assert shard.objects == ["ZTF20a000003"]
    assert shard.alerts.num_rows == 6
    assert archive.read_object("ZTF99nobody").objects == []


def test_objects_table_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    packets = [
        Packet("ZTF20edge", 1, ra=359.9999, dec=10.0),
        Packet("ZTF20edge", 2, ra=0.0001, dec=10.0, prv=[(1, 0), (0, -1)]),
        Packet("ZTF20pole", 3, ra=10.0, dec=90.0),
        Packet("ZTF20one", 4, ra=123.0, dec=-20.0, forced=[(1, 1.0)]),
        Packet("ZTF20nan", 5, ra=float("nan"), dec=1.0),
    ]
    ingest([Source("a", packets[:1]), Source("b", packets[1:])], str(tmp_path))
    archive = Archive.open(str(tmp_path))
    before = tree(tmp_path)
    table = objects_table(archive)
    assert len(tree(tmp_path)) == len(before) + 1  # cached
    assert objects_table(archive).equals(table)
    cells = table.column("_healpix_29").to_pylist()
    assert cells == sorted(cells)
    rows = {row["objectId"]: row for row in table.to_pylist()}
    assert rows.keys() == {packet.object_id for packet in packets}
    edge = rows["ZTF20edge"]
    assert (edge["n_alerts"], edge["n_points"]) == (2, 3)
    assert min(edge["ra"], 360 - edge["ra"]) < 1e-9
    assert edge["dec"] == pytest.approx(10.0, abs=1e-9)
    assert edge["jd_last"] == packets[1].jd
    assert rows["ZTF20pole"]["dec"] == pytest.approx(90.0)
    assert (rows["ZTF20one"]["ra"], rows["ZTF20one"]["dec"]) == (pytest.approx(123.0), pytest.approx(-20.0))
    assert rows["ZTF20one"]["jd_first"] == pytest.approx(2_459_001.5)
    hashes, alerts = alert_counts(archive)
    ordered = sorted(rows.values(), key=lambda row: row["hash64"])
    assert hashes.tolist() == [row["hash64"] for row in ordered]
    assert alerts.tolist() == [row["n_alerts"] for row in ordered]
    assert (rows["ZTF20nan"]["_healpix_29"], rows["ZTF20nan"]["ra"]) == (NO_POSITION, None)


def test_objects_of_a_read_only_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest([Source("a", night_of(1, range(5)))], str(tmp_path))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("applecider_batch.storage.open", denied, raising=False)
    before = tree(tmp_path)
    assert objects_table(Archive.open(str(tmp_path))).num_rows == 5
    assert alert_counts(Archive.open(str(tmp_path)))[1].tolist() == [1] * 5
    assert tree(tmp_path) == before


def test_an_empty_archive_has_an_empty_objects_table(tmp_path: Path) -> None:
    ingest([Source("empty")], str(tmp_path))
    assert objects_table(Archive.open(str(tmp_path))).num_rows == 0
    assert [len(column) for column in alert_counts(Archive.open(str(tmp_path)))] == [0, 0]
