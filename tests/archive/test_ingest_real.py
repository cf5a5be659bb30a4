"""Everything under ``alerts`` of the real data in one archive, against independent readings of the files."""

from __future__ import annotations

import gzip
import io
import random
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from applecider_batch.archive.compact import compact
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.archive.sources import open_sources
from applecider_batch.archive.verify import verify
from applecider_batch.digest import HASH64_END, table_digest
from tests.archive.test_stitch import comparable, stitch_plainly
from tests.archive.trees import tree

_FOLDERS = ("archive", "variants", "avro", "corrupt", "fink_parquet")
_STAMPS = ("Science", "Template", "Difference")


@pytest.fixture(scope="module")
def alerts_folder(shared_data: Path) -> Path:
    return shared_data / "alerts"


@pytest.fixture(scope="module")
def ingested(alerts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The archive of all real alerts, and what ``ingest`` answered."""
    url = tmp_path_factory.mktemp("real") / "a"
    return url, ingest([str(alerts_folder / name) for name in _FOLDERS], str(url))


def _content(url: Path) -> dict[str, Any]:
    """Digests of all that a reader sees; which of several equal sources came first is no part of it."""
    archive = Archive.open(str(url))
    shard = archive.read_shard(0, HASH64_END, stamps=True)
    names = [name for name in shard.alerts.column_names if name != "source_id"]
    assert shard.stamps is not None
    return {
        "logical": archive.snapshot.logical_digest,
        "objects": shard.objects,
        "alerts": table_digest(shard.alerts, names),
        "photometry": table_digest(shard.photometry),
        "stamps": table_digest(shard.stamps),
        "order": [shard.alerts.column("candid").to_pylist(), shard.photometry.column("jd").to_pylist()],
        "counts": archive.snapshot.counts,
    }


def _packets_by_hand(folder: Path) -> int:
    """Packets of the readable files, counted without any of our readers."""
    tarballs = [*(folder / "archive").glob("*.tar.gz"), *(folder / "variants").glob("*.tar.gz")]
    count = len(list((folder / "avro").glob("*.avro")))
    for path in tarballs:
        with tarfile.open(path) as tar:
            count += sum(member.name.endswith(".avro") for member in tar)
    return count + sum(
        pq.read_metadata(path).num_rows for path in (folder / "fink_parquet").glob("*.parquet")
    )


def test_packets_in_are_stored_duplicates_or_quarantined(
    alerts_folder: Path, ingested: tuple[Path, dict[str, Any]]
) -> None:
    url, result = ingested
    assert result["packets_in"] == result["stored"] + result["duplicates"] + result["quarantined"]
    (corrupt,) = (source["counts"] for source in result["sources"] if source["name"].startswith("corrupt"))
    assert result["packets_in"] - corrupt["packets_in"] == _packets_by_hand(alerts_folder)
    assert result["quarantined"] == corrupt["quarantined"]  # nothing else was set aside
    archive = Archive.open(str(url))
    stored = archive.read_alerts(0, HASH64_END)
    assert stored.num_rows == result["stored"] == archive.snapshot.counts["stored"]
    index = pl.read_parquet(alerts_folder / "alert_index.parquet")
    ours = set(stored.column("candid").to_pylist())
    assert ours >= set(index["candid"])
    assert len(ours) - index["candid"].n_unique() == corrupt["stored"]
    frame = pl.DataFrame(pl.from_arrow(stored)).join(index.unique("candid"), on="candid", suffix="_index")
    for name in ("objectId", "jd", "fid", "programid"):
        assert (frame[name] == frame[f"{name}_index"]).all()
    assert np.allclose(frame["ra"], frame["ra_index"], atol=1e-9)
    assert verify(str(url), deep=True)["problems"] == []


def test_every_known_defect_is_where_it_belongs(
    alerts_folder: Path, ingested: tuple[Path, dict[str, Any]]
) -> None:
    archive = Archive.open(str(ingested[0]))
    defects = pl.read_csv(alerts_folder.parent / "defects.csv", infer_schema_length=None)
    defects = defects.filter(pl.col("modality") == "alert")
    aside = Counter(str(member).split("#")[0] for member in archive.quarantine().column("member").to_pylist())
    alerts = archive.read_alerts(0, HASH64_END)
    members = set(aside)
    corrupt = defects.filter(pl.col("file").str.starts_with("alerts/corrupt/"))
    assert corrupt.height
    for file, defect in corrupt.select("file", "defect").iter_rows():
        name = file.rsplit("/", 1)[-1]
        if "opens;" not in defect:
            assert any(name in member for member in members), f"{file} left no trace"
    flagged = pc.bit_wise_and(alerts.column("stamp_status"), pa.scalar(0b101010, pa.int16()))
    assert pc.any(pc.not_equal(flagged, 0)).as_py() == any("undecodable" in d for d in corrupt["defect"])
    stamps = {row["candid"]: row for row in archive.read_shard(0, HASH64_END, stamps=True).stamps.to_pylist()}  # type: ignore[union-attr]
    checked = 0
    for candid, defect in defects.select("id", "defect").iter_rows():
        row = stamps.get(int(candid)) if candid and str(candid).isdigit() else None
        if row is None:
            continue
        if shape := re.search(r"stamp_shape:(\d+)x(\d+)", defect):
            assert (row["heightScience"], row["widthScience"]) == (int(shape[1]), int(shape[2]))
            checked += 1
        for name, count in re.findall(r"(Science|Template|Difference)=(\d+)", defect):
            assert int(np.isnan(np.array(row[f"cutout{name}"])).sum()) == int(count)
            checked += 1
    assert checked > 50


def test_a_second_ingest_changes_no_byte(alerts_folder: Path, ingested: tuple[Path, dict[str, Any]]) -> None:
    url, _ = ingested
    before = tree(url)
    again = ingest([str(alerts_folder / name) for name in _FOLDERS], str(url))
    assert not again["changed"]
    assert tree(url) == before


def _sources(folder: Path) -> list[str]:
    files = [
        path for name in ("archive", "variants", "fink_parquet") for path in sorted((folder / name).iterdir())
    ]
    return [str(path) for path in (*files, folder / "avro", folder / "corrupt")]


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_arrival_gives_the_same(
    alerts_folder: Path, ingested: tuple[Path, dict[str, Any]], tmp_path: Path, seed: int
) -> None:
    sources = _sources(alerts_folder)
    random.Random(seed).shuffle(sources)
    if seed == 1:
        ingest(sources, str(tmp_path), memory_bytes=32 << 20)
    else:
        for start in range(0, len(sources), 9):
            ingest(sources[start : start + 9], str(tmp_path))
    expected = _content(ingested[0])
    assert _content(tmp_path) == expected
    if seed == 2:
        compact(str(tmp_path))
        assert _content(tmp_path) == expected
    assert verify(str(tmp_path), deep=True)["problems"] == []


def _records(folder: Path) -> Iterator[tuple[int, dict[str, bytes | None]]]:
    """candid and the three gzipped stamps of every packet, read by fastavro, tarfile and pyarrow alone."""
    bodies: list[bytes] = [path.read_bytes() for path in sorted((folder / "avro").glob("*.avro"))]
    for path in [*sorted((folder / "archive").iterdir()), *sorted((folder / "variants").iterdir())]:
        with tarfile.open(path) as tar:
            bodies += [tar.extractfile(member).read() for member in tar if member.name.endswith(".avro")]  # type: ignore[union-attr]
    for body in bodies:
        for packet in fastavro.reader(io.BytesIO(body)):
            cutouts = {name: packet.get(f"cutout{name}") for name in _STAMPS}
            yield (
                packet["candidate"]["candid"],
                {n: c["stampData"] if c else None for n, c in cutouts.items()},
            )
    for path in sorted((folder / "fink_parquet").glob("*.parquet")):
        wanted = [f"cutout{name}" for name in _STAMPS if f"cutout{name}" in pq.read_schema(path).names]
        key = "candid" if "candid" in pq.read_schema(path).names else "candidate"
        for row in pq.read_table(path, columns=[key, *wanted]).to_pylist():
            candid = row[key] if key == "candid" else row[key]["candid"]
            yield (
                int(candid),
                {name: (row.get(f"cutout{name}") or {}).get("stampData") for name in _STAMPS},
            )


def _astropy(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(io.BytesIO(gzip.decompress(data)), ignore_missing_simple=True) as hdus:
            return np.asarray(hdus[0].data)


def test_every_stamp_is_bit_equal_to_astropys_reading_and_not_larger_than_its_gzip(
    alerts_folder: Path, ingested: tuple[Path, dict[str, Any]]
) -> None:
    archive = Archive.open(str(ingested[0]))
    stamps = archive.read_shard(0, HASH64_END, stamps=True).stamps
    assert stamps is not None
    rows = {candid: row for row, candid in enumerate(stamps.column("candid").to_pylist())}
    columns = {name: stamps.column(f"cutout{name}").combine_chunks() for name in _STAMPS}
    shapes = {
        name: (stamps.column(f"height{name}").to_pylist(), stamps.column(f"width{name}").to_pylist())
        for name in _STAMPS
    }
    seen: set[int] = set()
    gzipped = 0
    for candid, cutouts in _records(alerts_folder):
        row = rows.get(candid)
        if row is None or candid in seen or any(data is None for data in cutouts.values()):
            continue
        seen.add(candid)
        for name, data in cutouts.items():
            assert data is not None
            expected = _astropy(data)
            ours = columns[name][row].values.to_numpy(zero_copy_only=False)
            assert (shapes[name][0][row], shapes[name][1][row]) == expected.shape
            assert ours.dtype == np.float32
            assert ours.tobytes() == expected.astype("<f4").tobytes()
            gzipped += len(data)
    alerts = archive.read_alerts(0, HASH64_END, ["candid", "source_id"])
    (salvaged,) = (s["source_id"] for s in ingested[1]["sources"] if s["name"].startswith("corrupt"))
    from_corrupt = alerts.filter(pc.equal(alerts.column("source_id"), salvaged)).column("candid").to_pylist()
    assert rows.keys() - seen <= set(from_corrupt)
    parts = archive.snapshot.parts
    names = {f"cutout{name}.list.element" for name in _STAMPS}
    packed = 0
    for part in parts:
        footer = pq.read_metadata(ingested[0] / part.path("stamps"))
        for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
            chunks = (group.column(number) for number in range(group.num_columns))
            packed += sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema in names)
    assert packed <= gzipped


def test_stitched_photometry_is_that_of_a_plain_loop_on_all_objects(
    alerts_folder: Path, ingested: tuple[Path, dict[str, Any]]
) -> None:
    archive = Archive.open(str(ingested[0]))
    points: list[dict[str, Any]] = []
    for folder in _FOLDERS:
        for source in open_sources(str(alerts_folder / folder)):
            for batch in source.batches():
                points += batch.photometry.to_pylist()
    stitched = archive.read_photometry(0, HASH64_END)
    assert stitched.num_rows < len(points)
    assert comparable(stitched.to_pylist()) == comparable(stitch_plainly(points))
