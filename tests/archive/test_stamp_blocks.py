from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from applecider_batch.archive.compact import compact
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.archive.snapshot import ArchiveError
from applecider_batch.archive.stamp_blocks import COLUMNS, pack, packed_schema, unpack
from applecider_batch.archive.verify import verify
from applecider_batch.digest import HASH64_END, digest128
from applecider_batch.schema import load_table
from applecider_batch.storage import json_bytes
from tests.archive.packet_maker import Source, night_of
from tests.archive.trees import everything, tree

PIXELS = load_table("stamps").arrow.field("cutoutScience")


def _table(images: list[np.ndarray | None]) -> pa.Table:
    column = pa.array([None if image is None else image for image in images], PIXELS.type)
    return pa.table([column], schema=pa.schema([PIXELS]))


def _bits(table: pa.Table) -> list[list[int] | None]:
    rows = (row for chunk in table.column(0).chunks for row in chunk)
    return [row.values.to_numpy().view(np.uint32).tolist() if row.is_valid else None for row in rows]


@given(
    st.lists(
        st.none() | st.lists(st.integers(0, 2**32 - 1), max_size=40),
        max_size=20,
    ),
    st.integers(0, 20),
)
@settings(deadline=None)  # compiled at the first call
def test_every_bit_comes_back_from_any_slice(rows: list[list[int] | None], cut: int) -> None:
    images = [None if row is None else np.array(row, np.uint32).view(np.float32) for row in rows]
    table = _table(images).slice(cut)
    packed = pack(table)
    assert packed.schema.field(0).type == packed_schema().field("cutoutScience").type
    assert _bits(unpack(packed)) == rows[cut:]
    assert _bits(unpack(packed.slice(1))) == rows[cut + 1 :]
    assert pack(packed).equals(packed)
    assert _bits(unpack(table)) == rows[cut:]


def _block() -> bytes:
    rng = np.random.default_rng(0)
    block: bytes = pack(_table([rng.normal(size=100).astype(np.float32)])).column(0)[0].as_py()
    return block


def test_a_damaged_block_is_refused_wherever_the_damage_is() -> None:
    good = _block()
    field = packed_schema().field("cutoutScience")
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x10
        with pytest.raises(ValueError, match="block of stamps"):
            unpack(pa.table([pa.array([bytes(bad)], pa.binary())], schema=pa.schema([field])))
    for size in (0, 7, 8, len(good) - 1):
        with pytest.raises(ValueError, match="block of stamps"):
            unpack(pa.table([pa.array([good[:size]], pa.binary())], schema=pa.schema([field])))


def test_a_block_that_lies_about_its_length_is_refused() -> None:
    good = _block()
    field = packed_schema().field("cutoutScience")
    for size in (396, 398, 404, 2**32 - 4):
        bad = struct.pack("<I", size) + good[4:]
        with pytest.raises(ValueError, match="block of stamps"):
            unpack(pa.table([pa.array([bad], pa.binary())], schema=pa.schema([field])))


def _of_version_1(url: Path) -> None:
    """Make an archive what it would be had version 1 written it."""
    snapshot = json.loads((url / "snapshots" / "00000001.json").read_text())
    for part in snapshot["parts"]:
        path = url / "parts" / part["part_id"] / "stamps.parquet"
        encoding = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in COLUMNS}
        pq.write_table(
            unpack(pq.read_table(path)),
            path,
            row_group_size=64,
            compression="lz4",
            use_dictionary=False,
            column_encoding=encoding,
            write_page_checksum=True,
        )
        part["tables"]["stamps"] |= {"bytes": path.stat().st_size, "digest": digest128(path.read_bytes())}
    (url / "snapshots" / "00000001.json").write_bytes(json_bytes(snapshot | {"version": 1}))
    (url / "archive.json").write_bytes(
        json_bytes(json.loads((url / "archive.json").read_text()) | {"version": 1})
    )


def test_an_archive_of_version_1_is_read_extended_and_compacted(tmp_path: Path) -> None:
    url = tmp_path / "a"
    ingest([Source("s0", night_of(1, range(64)))], str(url))
    before = everything(url)
    candids = [row[3] for row in before["alerts"][10:20]]
    some = Archive.open(str(url)).read_stamps(0, HASH64_END, candids)
    _of_version_1(url)
    assert everything(url) == before
    assert Archive.open(str(url)).read_stamps(0, HASH64_END, candids).equals(some)
    assert verify(str(url), deep=True)["ok"]
    ingest([Source("s1", night_of(2, range(64)))], str(url))
    both = everything(url)
    compact(str(url), full=True)
    assert everything(url) == both
    assert verify(str(url), deep=True)["ok"]
    (record,) = Archive.open(str(url)).snapshot.parts
    assert pq.read_schema(url / record.path("stamps")).field("cutoutScience").type == pa.binary()


def test_a_damaged_stamp_is_told_with_what_to_do(tmp_path: Path) -> None:
    url = tmp_path / "a"
    ingest([Source("s0", night_of(1, range(8)))], str(url))
    (record,) = Archive.open(str(url)).snapshot.parts
    path = url / record.path("stamps")
    block = pq.read_table(path).column("cutoutTemplate")[3].as_py()
    data = path.read_bytes()
    at = data.index(block) + 1000
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(
        ArchiveError, match="holds a damaged stamp: a block of stamps does not have its checksum"
    ):
        Archive.open(str(url)).read_shard(0, HASH64_END, stamps=True)
    candids = _candids(url)
    damaged = candids[3]
    others = [candid for candid in candids if candid != damaged]
    assert Archive.open(str(url)).read_stamps(0, HASH64_END, others).num_rows == 7
    # Compaction copies blocks without unpacking them, and notices all the same.
    ingest([Source("s1", night_of(2, range(8)))], str(url))
    before = tree(url)
    with pytest.raises(ArchiveError, match=f"The stamps of alert {damaged} .* are damaged\\."):
        compact(str(url), full=True)
    assert tree(url) == before


def _candids(url: Path) -> list[int]:
    """Candids of the alerts, in the archive's order."""
    candids: list[int] = Archive.open(str(url)).read_alerts(0, HASH64_END).column("candid").to_pylist()
    return candids


def _by_arrow(url: Path, candids: list[int], monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    with monkeypatch.context() as patch:
        patch.setattr("applecider_batch.archive.read.read_pixels", lambda parts, keys: None)
        return Archive.open(str(url)).read_stamps(0, HASH64_END, candids)


def test_pages_and_pyarrow_give_the_same_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = tmp_path / "a"
    ingest([Source("s0", night_of(1, range(150)))], str(url))
    ingest([Source("s1", night_of(2, range(40)))], str(url))  # a part that overlaps the first
    _with_a_gap(url)
    candids = _candids(url)
    for some in (candids, candids[::3], candids[70:71], [*candids[::-7], -1], []):
        expected = _by_arrow(url, some, monkeypatch)
        archive = Archive.open(str(url))
        with monkeypatch.context() as patch:
            patch.delattr("applecider_batch.archive.read.unpack")  # not asked for
            found = archive.read_stamps(0, HASH64_END, some)
        assert found.equals(expected)
        assert found.num_rows == len(set(some) - {-1})


def _with_a_gap(url: Path) -> None:
    """Take stamps out of an archive's files: rows without a block, in runs and singly."""
    path = next(url.glob("parts/*/stamps.parquet"))
    table = pq.read_table(path)
    gone = pa.array([row in (0, 7, 8, 9, 63, 64) or row % 5 == 0 for row in range(table.num_rows)])
    for column in ("cutoutTemplate", "heightTemplate", "widthTemplate"):
        values = pc.if_else(gone, pa.scalar(None, table.schema.field(column).type), table[column])
        table = table.set_column(table.column_names.index(column), table.schema.field(column), values)
    options = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    footer = pq.read_metadata(path)
    with pq.ParquetWriter(
        path, table.schema, compression="none", data_page_size=1 << 17, write_batch_size=8, **options
    ) as writer:
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            writer.write_table(table.slice(0, rows), row_group_size=rows)
            table = table.slice(rows)
    _say_new_bytes(url, path)


def _say_new_bytes(url: Path, path: Path) -> None:
    for snapshot in (url / "snapshots").glob("*.json"):
        value = json.loads(snapshot.read_text())
        for part in value["parts"]:
            if part["part_id"] == path.parent.name:
                data = path.read_bytes()
                part["tables"]["stamps"] |= {"bytes": len(data), "digest": digest128(data)}
        snapshot.write_bytes(json_bytes(value))


def test_damaged_pages_give_the_right_stamps_or_what_pyarrow_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "a"
    ingest([Source("s0", night_of(1, range(12)))], str(url))
    (path,) = url.glob("parts/*/stamps.parquet")
    data = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(packed_schema().names.index("cutoutScience"))
    candids = _candids(url)
    good = Archive.open(str(url)).read_stamps(0, HASH64_END, candids)
    head = data.index(pack(good.select(["cutoutScience"])).column(0)[0].as_py())
    for at in range(column.data_page_offset, head + 16):
        for flip in (0x01, 0x10, 0x80):
            path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            answers = []
            for read in (
                lambda: Archive.open(str(url)).read_stamps(0, HASH64_END, candids),
                lambda: _by_arrow(url, candids, monkeypatch),
            ):
                try:
                    answers.append(read())
                except ArchiveError as error:
                    answers.append(str(error))
            # A block has a checksum of its own, so that not all of a page's header is needed.
            assert answers[0] == good or answers[0] == answers[1], (at - head, flip)
