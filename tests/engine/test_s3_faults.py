"""S3 that fails, delays, cuts and loses answers: the same rows; and no byte read that is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.run_folder import RunFolder
from applecider_batch.digest import HASH64_END
from applecider_batch.engine import api
from applecider_batch.storage import Store
from benchmarks.flaky_s3 import FlakyS3
from tests.engine.conftest import Inputs

pytestmark = pytest.mark.s3


def through(proxy: FlakyS3, options: dict[str, Any]) -> dict[str, Any]:
    """Options by way of the proxy; the library below is told not to be patient itself, to save time."""
    client = {**options["client_kwargs"], "endpoint_url": proxy.endpoint}
    return {**options, "client_kwargs": client, "config_kwargs": {"retries": {"total_max_attempts": 1}}}


@pytest.fixture
def endpoint(s3_options: dict[str, Any]) -> str:
    url: str = s3_options["client_kwargs"]["endpoint_url"]
    return url


@pytest.fixture
def archive(inputs: Inputs, s3_url: str, s3_options: dict[str, Any]) -> Store:
    store = Store(f"{s3_url}/archive", s3_options)
    for path in sorted(p for p in Path(inputs.archive).rglob("*") if p.is_file()):
        store.write_atomic(str(path.relative_to(inputs.archive)), path.read_bytes())
    return store


def test_every_operation_survives_a_bad_day(s3_url: str, s3_options: dict[str, Any], endpoint: str) -> None:
    with FlakyS3(endpoint, fail=0.15, cut=0.15, delay=0.05, delay_seconds=0.05, seed=5) as proxy:
        store = Store(f"{s3_url}/bad-day", through(proxy, s3_options))
        for number in range(8):
            # An answer that was lost must not look like somebody else's file.
            store.create_only(f"commits/{number}", f"mine {number}".encode())
            store.write_atomic(f"data/{number}", bytes([number]) * 3000)
            with pytest.raises(FileExistsError):
                store.create_only(f"commits/{number}", b"another's")
        assert store.ls("commits") == sorted(map(str, range(8)))
        assert [store.read_bytes(f"data/{n}") for n in range(8)] == [bytes([n]) * 3000 for n in range(8)]
        assert [store.read_bytes(f"commits/{n}") for n in range(8)] == [b"mine %d" % n for n in range(8)]
        assert min(proxy.counts["failed"], proxy.counts["cut"]) > 3


def test_a_server_that_stays_down_is_said(s3_url: str, s3_options: dict[str, Any], endpoint: str) -> None:
    from applecider_batch import storage
    from applecider_batch.errors import StorageError

    with FlakyS3(endpoint, fail=1.0) as proxy:
        store = Store(f"{s3_url}/down", through(proxy, s3_options))
        store.fs.retries = 2
        with pytest.raises(StorageError, match="could not be read"):
            store.read_bytes("x")
    assert storage.S3_ATTEMPTS > 2


def test_a_run_over_unreliable_s3_gives_the_same_rows(
    inputs: Inputs, archive: Store, s3_url: str, s3_options: dict[str, Any], endpoint: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "horizons": (None,),
        "objects_per_shard": 8,
        "device": "cpu",
        "progress": False,
    }
    api.classify(inputs.archive, inputs.models, str(tmp_path / "run"), **options)
    with FlakyS3(endpoint, fail=0.05, delay=0.05, cut=0.03, delay_seconds=0.1, seed=1) as proxy:
        flaky = through(proxy, s3_options)
        result = api.classify(archive.url, inputs.models, f"{s3_url}/run", storage_options=flaky, **options)
        assert proxy.counts["failed"]
        assert proxy.counts["cut"]
    assert result["state"] == "complete"
    here, there = RunFolder(str(tmp_path / "run")), RunFolder(f"{s3_url}/run", s3_options)
    rows = [pa.concat_tables([folder.read_shard(s) for s in folder.shards]) for folder in (here, there)]
    assert rows[0] == rows[1]


def needed_bytes(local: str, table: str, lo: int, hi: int, columns: list[str] | None = None) -> int:
    """Compressed bytes of the column chunks of the row groups that overlap a hash range."""
    total = 0
    for part in Archive.open(local).parts:
        index = part.index(table)
        if index is None or not part.overlaps(table, lo, hi):
            continue
        footer = pq.ParquetFile(f"{local}/{part.record.path(table)}").metadata
        for number in index.groups(lo, hi):
            group = footer.row_group(number)
            for i in range(group.num_columns):
                column = group.column(i)
                if columns is None or column.path_in_schema.split(".")[0] in columns:
                    total += column.total_compressed_size
    return total


def test_only_the_columns_and_row_groups_wanted_are_read(
    inputs: Inputs, archive: Store, s3_options: dict[str, Any], endpoint: str
) -> None:
    lo, hi = HASH64_END // 4, HASH64_END // 2
    with FlakyS3(endpoint) as proxy:
        opened = Archive.open(archive.url, through(proxy, s3_options))
        opened.read_alerts(lo, hi, ["ra"])  # footers and indices are read once
        proxy.counts.clear()
        opened.read_alerts(lo, hi, ["jd"])
        columns = ["hash64", "objectId", "jd", "candid", "packet_digest"]
        needed = needed_bytes(inputs.archive, "alerts", lo, hi, columns)
        whole = needed_bytes(inputs.archive, "alerts", lo, hi)
        # Neighbouring chunks are joined over small gaps, so a little more may be read.
        assert needed <= proxy.counts["bytes_read"] <= needed + 0.5 * (whole - needed)
        opened.read_packets("stamps", lo, hi, ["candid"], opened.duplicates(lo, hi))
        proxy.counts.clear()
        opened.read_packets("stamps", lo, hi, None, opened.duplicates(lo, hi))
        needed = needed_bytes(inputs.archive, "stamps", lo, hi)
        assert needed <= proxy.counts["bytes_read"] <= 1.02 * needed
        assert proxy.counts["list"] == 0
        assert proxy.counts["HEAD"] == 0
