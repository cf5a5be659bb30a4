"""The contract: every schema file reads, with valid units and UCDs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from astropy import units
from astropy.io.votable.ucd import check_ucd

from applecider_batch.errors import InternalError, UserError
from applecider_batch.schema import jobs_folder, list_tables, load_table, reference


@pytest.mark.parametrize("name", list_tables())
def test_units_and_ucds(name: str) -> None:
    table = load_table(name)
    assert table.title
    for column in table.columns:
        units.Unit(column.unit)
        assert column.description, column.name
        if column.ucd:
            assert check_ucd(column.ucd, check_controlled_vocabulary=True), (column.name, column.ucd)


def test_conform_orders_casts_and_fills() -> None:
    schema = load_table("duplicates")
    row = {
        "candid": pa.array([1], pa.int32()),
        "objectId": ["a"],
        "hash64": pa.array([2], pa.uint64()),
        "jd": [2.0],
        "completeness": pa.array([1], pa.int64()),
        "packet_digest": ["x"],
        "source_id": ["y"],
        "unknown": [0],
    }
    table = schema.conform(pa.table(row))
    assert table.schema.equals(schema.arrow)
    with pytest.raises(UserError, match="lacks the column 'jd'"):
        schema.conform(pa.table({k: v for k, v in row.items() if k != "jd"}))
    with pytest.raises(UserError, match="holds 1 nulls"):
        schema.conform(pa.table({**row, "objectId": pa.array([None], pa.string())}))
    with pytest.raises(UserError, match="not int64"):
        schema.conform(pa.table({**row, "candid": ["word"]}))


def test_field_metadata_carries_unit_and_ucd() -> None:
    field = load_table("alerts").arrow.field("ra")
    assert field.metadata[b"unit"] == b"deg"
    assert field.metadata[b"ucd"] == b"pos.eq.ra"


def test_markdown_has_every_column() -> None:
    table = load_table("alerts")
    text = table.markdown()
    assert all(f"`{name}`" in text for name in table.names)


def test_an_unknown_table() -> None:
    with pytest.raises(InternalError, match="no schema 'nonsense'"):
        load_table("nonsense")


def test_jobs_are_found() -> None:
    assert jobs_folder().is_dir()


def test_the_documentation_table_is_up_to_date() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "schemas.md"
    assert page.read_text(encoding="utf-8") == reference(), (
        "run python -m applecider_batch.schema > docs/schemas.md"
    )
