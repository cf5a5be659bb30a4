"""The storage wrapper on a real S3 server."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.errors import StorageError
from applecider_batch.storage import Store

pytestmark = pytest.mark.s3


@pytest.fixture
def store(s3_url: str, s3_options: dict[str, Any]) -> Store:
    return Store(f"{s3_url}/prefix", s3_options)


def test_write_read_list_delete(store: Store) -> None:
    assert store.ls() == []
    store.write_json_atomic("a/c.json", {"x": 1})
    store.write_atomic("a/b.bin", b"two")
    assert store.read_bytes("a/b.bin") == b"two"
    assert store.ls("a") == ["b.bin", "c.json"]
    assert store.walk() == ["a/b.bin", "a/c.json"]
    assert store.size("a/b.bin") == 3
    store.delete("a/b.bin")
    assert not store.exists("a/b.bin")


def test_create_only_refuses_the_second(store: Store) -> None:
    store.create_only("one", b"1")
    with pytest.raises(FileExistsError):
        store.create_only("one", b"2")
    assert store.read_bytes("one") == b"1"


def test_an_aborted_upload_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="half way"), store.open_output("big") as out:
        out.write(b"x" * (12 << 20))
        raise RuntimeError("half way")
    assert store.ls() == []


def test_parquet_through_the_store(store: Store) -> None:
    table = pa.table({"x": list(range(1000))})
    with store.open_output("t.parquet") as out:
        pq.write_table(table, out, row_group_size=100)
    with store.open_input("t.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(3)["x"].to_pylist() == list(range(300, 400))


def test_what_is_wrong_with_the_place_is_said(s3_url: str, s3_options: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match=r"no such bucket.*Make the bucket first"):
        Store("s3://no-bucket-of-that-name/prefix", s3_options).create_only("one", b"1")
    with pytest.raises(StorageError, match=r"'colour'.*no option of that name"):
        Store(f"{s3_url}/other", {**s3_options, "colour": "red"}).read_bytes("one")
    with pytest.raises(StorageError, match=r"Invalid endpoint.*endpoint_url=http://"):
        wrong = {**s3_options, "client_kwargs": {"endpoint_url": "localhost:1"}}
        Store(f"{s3_url}/other", wrong).read_bytes("one")
