"""Fink's Parquet layouts: real files against a plain reading, and every variant of columns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.cleaning import candid_from_float
from applecider_batch.archive.packets import PacketBatch
from applecider_batch.archive.sources import open_sources
from applecider_batch.errors import UserError
from tests.archive import avro_maker as make


def batch_of(path: Path) -> PacketBatch:
    batches = list(make.opened(path).batches())
    assert len(batches) == 1
    return batches[0]


def write(path: Path, rows: list[dict[str, Any]], **kwargs: Any) -> Path:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    pq.write_table(table, path, **kwargs)
    return path


def expected(name: str, value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if value in (-999.0, -99999.0) and name != "sky":
        return None
    if name == "isdiffpos":
        return {"t": 1, "1": 1, "f": -1, "0": -1, None: None}[value]
    return float(np.float32(value)) if isinstance(value, float) and name not in DOUBLES else value


DOUBLES = ("jd", "ra", "dec", "ranr", "decnr", "jdstarthist", "jdendhist", "jdstartref", "jdendref", "scorr")
FIELDS = [
    "jd",
    "fid",
    "pid",
    "isdiffpos",
    "ra",
    "dec",
    "magpsf",
    "rb",
    "drb",
    "ssdistnr",
    "sgscore1",
    "distpsnr1",
]
FIELDS += ["ndethist", "nid", "objectidps1", "maggaia", "scorr", "magzpsci"]


def test_real_files_equal_a_plain_reading(shared_data: Path) -> None:
    folder = shared_data / "alerts" / "fink_parquet"
    index = pl.read_parquet(shared_data / "alerts" / "alert_index.parquet", columns=["candid", "file"])
    total = 0
    for source in open_sources(folder):
        given = pq.read_table(folder / source.name).to_pylist()
        batch = next(iter(source.batches()))
        assert batch.quarantine.num_rows == 0
        rows = batch.alerts.to_pylist()
        assert len(rows) == len(given)
        own = index.filter(pl.col("file") == f"alerts/fink_parquet/{source.name}")["candid"].to_list()
        assert {row["candid"] for row in rows} == set(own)
        for row, alert in zip(rows, given, strict=True):
            assert row["candid"] == alert["candid"]
            assert row["objectId"] == alert["objectId"]
            for name in FIELDS:
                value = "nan" if row[name] is not None and row[name] != row[name] else row[name]
                assert value == expected(name, alert["candidate"][name]), (source.name, name)
            extra = json.loads(row["extra"] or "{}")
            given_more = {name for name, value in alert.items() if value is not None} - set(extra)
            own_names = {
                "candid",
                "objectId",
                "candidate",
                "schemavsn",
                "publisher",
                "prv_candidates",
                "fp_hists",
            }
            assert given_more <= own_names | {"cutoutScience", "cutoutTemplate", "cutoutDifference"}
        total += len(rows)
        wanted = sum(1 + len(alert["prv_candidates"] or []) for alert in given)
        assert batch.photometry.num_rows == wanted
    assert total > 0


def test_real_history_candids_survive_float64(shared_data: Path) -> None:
    """Some files hold the history's candid as float64; it is restored, never stored rounded."""
    restored = 0
    for source in open_sources(shared_data / "alerts" / "fink_parquet"):
        path = shared_data / "alerts" / "fink_parquet" / source.name
        entry = pq.read_schema(path).field("prv_candidates").type.value_type
        batch = next(iter(source.batches()))
        prv = batch.photometry.to_pylist()
        prv = [row for row in prv if row["origin"] == 1 and row["is_detection"]]
        assert all(row["candid"] // 1_000_000 == row["pid"] for row in prv)
        if entry.field("candid").type == pa.float64():
            restored += len(prv)
    assert restored > 0


def test_candid_from_float() -> None:
    candids = np.array([1_786_253_071_415_010_003, 3_147_222_684_315_025_020, 396_522_680_015_040_002, 12, 0])
    tblid, pid = candids % 1000, candids // 1_000_000
    given = candids.astype(np.float64)
    assert candid_from_float(given, tblid, pid).tolist() == candids.tolist()
    assert candid_from_float(given[:3], tblid[:3], pid[:3] + 1).tolist() == [0, 0, 0]
    assert candid_from_float(np.array([np.nan, np.inf]), np.zeros(2, int), np.zeros(2, int)).tolist() == [
        0,
        0,
    ]


def test_layouts_hold_the_same_packet(tmp_path: Path) -> None:
    """Field order, width of numbers and the place of the stamps do not change what is stored."""
    records = [make.record(i) for i in range(4)]
    plain = batch_of(write(tmp_path / "plain.parquet", records))
    turned = [
        {
            name: dict(sorted(value.items())) if name == "candidate" else value
            for name, value in sorted(r.items())
        }
        for r in records
    ]
    flat = []
    for r in records:
        row = {name: value for name, value in r.items() if not name.startswith("cutout")}
        for cutout in ("Science", "Template", "Difference"):
            row[f"cutout{cutout}_stampData"] = r[f"cutout{cutout}"]["stampData"]
            row[f"cutout{cutout}_fileName"] = "x"
        flat.append(row)
    bare = []
    for r in records:
        row = dict(r)
        for cutout in ("Science", "Template", "Difference"):
            row[f"cutout{cutout}"] = r[f"cutout{cutout}"]["stampData"]
        bare.append(row)
    narrow = pa.Table.from_pylist(records)
    column = narrow["candidate"].combine_chunks()
    kinds = [pa.field(f.name, pa.float32() if f.name == "rb" else f.type) for f in column.type]
    narrow = narrow.set_column(
        narrow.schema.get_field_index("candidate"), "candidate", column.cast(pa.struct(kinds))
    )
    for name, rows in (("turned", turned), ("flat", flat), ("bare", bare), ("narrow", narrow)):
        other = batch_of(write(tmp_path / f"{name}.parquet", rows))
        dropped = ["source_id"]
        assert other.alerts.drop(dropped).equals(plain.alerts.drop(dropped)), name
        assert other.stamps["cutoutScience"].null_count == 0
        assert other.stamps.select(["candid", "packet_digest", "widthScience"]).equals(
            plain.stamps.select(["candid", "packet_digest", "widthScience"])
        )


def test_digest_tells_content_apart(tmp_path: Path) -> None:
    changed = [make.record(3) for _ in range(4)]
    changed[1]["candidate"]["magpsf"] = 17.0
    changed[2]["prv_candidates"][0]["magpsf"] = 17.0
    changed[3]["cutoutTemplate"] = {"fileName": "", "stampData": make.fits_stamp(make.stamp_image(99))}
    batch = batch_of(write(tmp_path / "a.parquet", changed))
    digests = batch.alerts["packet_digest"].to_pylist()
    assert len(set(digests)) == 4
    assert all(len(digest) == 32 for digest in digests)
    assert batch.stamps["packet_digest"].to_pylist() == digests
    # The same row of another file, at another place, has the same one.
    again = batch_of(write(tmp_path / "b.parquet", [make.record(1), changed[2], changed[0]]))
    assert again.alerts["packet_digest"].to_pylist()[1:] == [digests[2], digests[0]]


def test_without_stamps(tmp_path: Path) -> None:
    rows = [{k: v for k, v in make.record(i).items() if not k.startswith("cutout")} for i in range(2)]
    batch = batch_of(write(tmp_path / "a.parquet", rows))
    assert batch.alerts["stamp_status"].to_pylist() == [0b010101] * 2
    assert batch.stamps.num_rows == 0


def test_broker_columns_are_kept(tmp_path: Path) -> None:
    row = {
        **make.record(0),
        "cdsxmatch": "Unknown",
        "rf": math.nan,
        "lc": {"mean": 1.5},
        "tags": [1, 2],
        "none": None,
    }
    batch = batch_of(write(tmp_path / "a.parquet", [row]))
    extra = json.loads(batch.alerts["extra"][0].as_py())
    assert extra == {"cdsxmatch": "Unknown", "rf": "nan", "lc": {"mean": 1.5}, "tags": [1, 2]}


def test_broken_rows_are_set_aside(tmp_path: Path) -> None:
    rows = [make.record(i) for i in range(4)]
    rows[1]["candidate"] = None
    rows[2]["candidate"]["jd"] = math.nan
    batch = batch_of(write(tmp_path / "a.parquet", rows))
    assert batch.packets_in == 4
    assert batch.alerts["candid"].to_pylist() == [make.CANDID0, make.CANDID0 + 3]
    aside = batch.quarantine.to_pylist()
    assert [(row["member"], row["candid"]) for row in aside] == [
        ("row 1", make.CANDID0 + 1),
        ("row 2", make.CANDID0 + 2),
    ]
    assert len({row["digest"] for row in aside}) == 2


def test_batches_are_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [make.record(i) for i in range(10)], row_group_size=4)
    sizes = [batch.packets_in for batch in make.opened(path).batches(max_packets=3)]
    assert sum(sizes) == 10
    assert max(sizes) <= 3
    assert [batch.packets_in for batch in make.opened(path).batches(max_bytes=1)] == [1] * 10


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "month=1").mkdir()
    write(tmp_path / "month=1" / "part-1.snappy.parquet", [make.record(1)])
    write(tmp_path / "part-0.parquet", [make.record(0)])
    (tmp_path / "_SUCCESS").write_bytes(b"")
    assert [source.name for source in open_sources(tmp_path)] == [
        "month=1/part-1.snappy.parquet",
        "part-0.parquet",
    ]
    batches = [batch for source in open_sources(tmp_path) for batch in source.batches()]
    rows = [row for batch in batches for row in batch.alerts["candid"].to_pylist()]
    assert sorted(rows) == [make.CANDID0, make.CANDID0 + 1]


def test_a_parquet_without_candidate(tmp_path: Path) -> None:
    path = write(tmp_path / "objects.parquet", [{"objectId": "ZTF20a", "ra": 1.0}])
    with pytest.raises(
        UserError, match=r"'objects\.parquet' has no 'candidate' struct.*columns are objectId, ra"
    ):
        make.opened(path)
    path = write(tmp_path / "flat.parquet", [{"objectId": "ZTF20a", "candidate": "x"}])
    with pytest.raises(UserError, match="has no 'candidate' struct"):
        make.opened(path)


def test_a_parquet_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("hello")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        make.opened(path)


def test_a_damaged_row_group_loses_only_itself(tmp_path: Path) -> None:
    rows = [make.record(i) for i in range(9)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=3, compression="snappy", use_dictionary=False)
    meta = pq.ParquetFile(path).metadata
    data = bytearray(path.read_bytes())
    column = next(
        meta.row_group(1).column(i)
        for i in range(meta.num_columns)
        if meta.row_group(1).column(i).path_in_schema == "cutoutScience.stampData"
    )
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    batches = list(make.opened(path).batches())
    candids = [candid for batch in batches for candid in batch.alerts["candid"].to_pylist()]
    assert candids == [make.CANDID0 + i for i in (0, 1, 2, 6, 7, 8)]
    aside = [row for batch in batches for row in batch.quarantine.to_pylist()]
    assert [row["member"] for row in aside] == ["rows 3-5"]
    assert "The rows 3 to 5 of the Parquet file cannot be read" in aside[0]["message"]
