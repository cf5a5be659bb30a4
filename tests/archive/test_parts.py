from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.parts import PartWriter, nights_of, sort_rows
from applecider_batch.archive.read import Archive
from applecider_batch.archive.snapshot import ArchiveError
from applecider_batch.digest import HASH64_END, digest128, hash64_one
from applecider_batch.schema import load_table
from applecider_batch.storage import Store
from tests.archive.packet_maker import Packet, Source, batch_of, night_of


def _big_alerts(count: int) -> pa.Table:
    """Alerts made by repeating one row under other names."""
    row = batch_of([Packet("ZTF20a", 1)]).alerts
    names = [f"ZTF20{n:07d}" for n in range(count)]
    same = row.take(np.zeros(count, np.int64))
    columns = {name: same.column(name) for name in same.column_names}
    columns["objectId"] = pa.array(names)
    columns["hash64"] = pa.array([hash64_one(name) for name in names], pa.uint64())
    columns["candid"] = pa.array(range(count), pa.int64())
    return sort_rows("alerts", load_table("alerts").conform(pa.table(columns)))


@pytest.mark.parametrize("step", [1000, 8192, 30_000])
def test_row_groups_are_of_8192_rows_however_the_rows_arrive(tmp_path: Path, step: int) -> None:
    store, rows = Store(tmp_path), _big_alerts(30_000)
    with PartWriter(store, "p", "r") as writer:
        for start in range(0, rows.num_rows, step):
            writer.append("alerts", rows.slice(start, step))
        record = writer.finish()
    footer = pq.read_metadata(tmp_path / record.path("alerts"))
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [8192, 8192, 13_616]
    reader = PartReader(store, record)
    assert reader.read("alerts", 0, HASH64_END).equals(rows)
    hashes = rows.column("hash64").to_numpy()
    for lo, hi in ((int(hashes[100]), int(hashes[9000])), (int(hashes[8191]), int(hashes[8192])), (5, 5)):
        mask = (hashes >= np.uint64(lo)) & (hashes < np.uint64(hi))
        assert reader.read("alerts", lo, hi, ["candid"]).equals(
            rows.filter(pa.array(mask)).select(["candid"])
        )
    assert reader.histogram["alerts"].sum() == 30_000
    buckets = np.bincount((hashes >> np.uint64(52)).astype(int), minlength=4096)
    assert buckets[reader.histogram["bucket"]].tolist() == reader.histogram["alerts"].tolist()


def test_stamps_lie_in_groups_of_64_each_a_block_of_its_own(tmp_path: Path) -> None:
    ingest([Source("s", night_of(1, range(200)))], str(tmp_path / "a"))
    archive = Archive.open(str(tmp_path / "a"))
    (record,) = archive.snapshot.parts
    footer = pq.read_metadata(tmp_path / "a" / record.path("stamps"))
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [64, 64, 72]
    group = footer.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    pixels = columns["cutoutScience"]
    assert (pixels.physical_type, pixels.compression) == ("BYTE_ARRAY", "UNCOMPRESSED")
    assert columns["candid"].compression == "LZ4"
    # Of the noise in these stamps 14 bits in 32 are the same everywhere.
    assert pixels.total_compressed_size < 0.95 * 4 * 63 * 63 * 64
    # What the module says about a block, by the word.
    stamps = archive.read_shard(0, HASH64_END, stamps=True).stamps
    stored = pq.read_table(tmp_path / "a" / record.path("stamps")).column("cutoutScience")
    assert stamps is not None
    for row in (0, 63, 199):
        block = stored[row].as_py()
        size, check = np.frombuffer(block, "<u4", 2).tolist()
        assert (size, check) == (4 * 63 * 63, zlib.crc32(block[8:]))
        planes = np.frombuffer(pa.Codec("lz4_raw").decompress(block[8:], size), np.uint8).reshape(4, -1)
        image = np.ascontiguousarray(planes[::-1].T).view("<f4").ravel()
        assert image.tolist() == stamps.column("cutoutScience")[row].as_py()


def test_every_bit_of_a_stamp_survives(tmp_path: Path) -> None:
    batch = batch_of([Packet("ZTF20a", 1, shape=(41, 63), source_id="s")])
    bits = np.arange(41 * 63, dtype=np.uint32) * np.uint32(1_664_525)
    bits[:4] = [0x7FC00001, 0xFF800000, 0x80000000, 0x7F800001]  # NaN with payload, -inf, -0, signalling NaN
    odd = bits.view(np.float32)
    index = batch.stamps.schema.get_field_index("cutoutScience")
    column = pa.array([odd], batch.stamps.schema.field(index).type)
    batch.stamps = batch.stamps.set_column(index, batch.stamps.schema.field(index), column)

    class One(Source):
        def batches(self):  # type: ignore[no-untyped-def]
            yield batch

    ingest([One("s")], str(tmp_path / "a"))
    stamps = Archive.open(str(tmp_path / "a")).read_object("ZTF20a").stamps
    assert stamps is not None
    back = stamps.column("cutoutScience").combine_chunks().values.to_numpy()
    assert back.view(np.uint32).tolist() == bits.tolist()
    assert (stamps.column("heightScience")[0].as_py(), stamps.column("widthScience")[0].as_py()) == (41, 63)


def test_digests_and_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    ingest([Source("s", night_of(1, range(5)))], str(tmp_path / "a"))
    (record,) = Archive.open(str(tmp_path / "a")).snapshot.parts
    for name, table in record.tables.items():
        data = (tmp_path / "a" / record.path(name)).read_bytes()
        assert (len(data), digest128(data)) == (table.bytes, table.digest)
    assert digest128((tmp_path / "a" / record.index_path).read_bytes()) == record.index_digest


def test_nothing_appears_of_a_part_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), PartWriter(Store(tmp_path), "p", "r") as writer:
        writer.append("alerts", _big_alerts(10))
        raise RuntimeError
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_nights_are_utc_dates_and_absurd_ones_have_none() -> None:
    jd = np.array([2_460_000.49999, 2_460_000.5, 2_460_001.4, np.nan, np.inf, -5.0, 1e300])
    assert nights_of(jd) == ["20230224", "20230225"]


def test_a_damaged_index_and_a_missing_file_are_told(tmp_path: Path) -> None:
    ingest([Source("s", night_of(1, range(5)))], str(tmp_path / "a"))
    (record,) = Archive.open(str(tmp_path / "a")).snapshot.parts
    index = tmp_path / "a" / record.index_path
    data = index.read_bytes()
    index.write_bytes(data.replace(b"bits", b"bats"))
    with pytest.raises(ArchiveError, match=r"index.json' is not the file that the snapshot names"):
        Archive.open(str(tmp_path / "a")).read_shard(0, HASH64_END)
    index.write_bytes(data)
    (tmp_path / "a" / record.path("alerts")).unlink()
    with pytest.raises(ArchiveError, match=r"alerts.parquet' that the snapshot names is missing"):
        Archive.open(str(tmp_path / "a")).read_shard(0, HASH64_END)
    (tmp_path / "a" / record.path("alerts")).write_bytes(b"PAR1 nonsense")
    with pytest.raises(ArchiveError, match=r"alerts.parquet' cannot be read"):
        Archive.open(str(tmp_path / "a")).read_shard(0, HASH64_END)
