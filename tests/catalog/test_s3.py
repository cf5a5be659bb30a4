"""The same catalogue on an object store as in a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidates import find_candidates
from applecider_batch.catalog.diff import diff_catalogs
from applecider_batch.catalog.export import export_catalog
from applecider_batch.catalog.known import read_known
from applecider_batch.catalog.query import query_catalog
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.verify import verify_catalog
from tests.catalog.synthetic import object_names, write_run

NAMES = object_names(40)


def test_build_verify_read_and_export_on_s3(tmp_path: Path, s3_url: str, s3_options: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", NAMES)
    local = build_catalog(str(run), str(tmp_path / "cat"), rows_per_part=60)
    fs = fsspec.filesystem("s3", **s3_options)
    fs.put(str(run), f"{s3_url}/run", recursive=True)
    options = {"storage_options": s3_options}
    remote = build_catalog(f"{s3_url}/run", f"{s3_url}/cat", rows_per_part=60, **options)
    assert remote == local
    for part in local["parts"]:
        assert fs.cat_file(f"{s3_url}/cat/{part['file']}") == (tmp_path / "cat" / part["file"]).read_bytes()
    assert verify_catalog(f"{s3_url}/cat", **options)["ok"]
    table = read_table(str(tmp_path / "cat"))
    assert read_table(f"{s3_url}/cat", **options).equals(table)
    export_catalog(f"{s3_url}/cat", f"{s3_url}/out/all.parquet", "parquet", **options)
    with fs.open(f"{s3_url}/out/all.parquet") as file:
        assert pq.read_table(file).equals(table)
    again = build_catalog(f"{s3_url}/run", f"{s3_url}/cat", rows_per_part=60, **options)
    assert again == local


def test_candidates_and_questions_on_s3(tmp_path: Path, s3_url: str, s3_options: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", NAMES)
    fs = fsspec.filesystem("s3", **s3_options)
    (tmp_path / "list.csv").write_text("name,ra,dec\nfar,1,89\n")
    fs.put(str(tmp_path / "list.csv"), f"{s3_url}/list.csv")
    options = {"storage_options": s3_options}
    known = [read_known(f"{s3_url}/list.csv", **options)]
    for url, place in ((str(tmp_path), {}), (s3_url, options)):
        build_catalog(str(run), f"{url}/cat", known=known, rows_per_part=60, **place)
        find_candidates(f"{url}/cat", f"{url}/c.json", **place)
    assert fs.cat_file(f"{s3_url}/c.json") == (tmp_path / "c.json").read_bytes()
    sql = "SELECT gate, COUNT(*) AS n FROM catalogue GROUP BY gate ORDER BY gate"
    assert query_catalog(f"{s3_url}/cat", sql, **options) == query_catalog(str(tmp_path / "cat"), sql)
    assert diff_catalogs(f"{s3_url}/cat", f"{s3_url}/cat", **options)["changes"] == 0


def test_hats_on_s3_has_the_files_of_a_local_export(
    tmp_path: Path, s3_url: str, s3_options: dict[str, Any]
) -> None:
    build_catalog(str(write_run(tmp_path / "run", NAMES)), str(tmp_path / "cat"))
    export_catalog(str(tmp_path / "cat"), str(tmp_path / "hats"), "hats", horizon=10)
    fs = fsspec.filesystem("s3", **s3_options)
    fs.put(str(tmp_path / "cat"), f"{s3_url}/cat", recursive=True)
    export_catalog(f"{s3_url}/cat", f"{s3_url}/hats", "hats", horizon=10, storage_options=s3_options)
    local = {str(p.relative_to(tmp_path / "hats")): p for p in (tmp_path / "hats").rglob("*") if p.is_file()}
    bucket = s3_url.removeprefix("s3://") + "/hats/"
    remote = {name.removeprefix(bucket) for name in fs.find(f"{s3_url}/hats")}
    assert remote == set(local)
    for name, path in local.items():
        assert fs.cat_file(f"{s3_url}/hats/{name}") == path.read_bytes(), name
