"""Whether two catalogues say the same, however they were made."""

from __future__ import annotations

import pyarrow as pa

from applecider_batch.catalog.content import BOOKKEEPING
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.side import read_side_table
from applecider_batch.catalog.store import open_catalog
from applecider_batch.catalog.verify import verify_catalog

#: What a document says that does not depend on how the release was made.
SAID = (
    "rows", "objects", "episodes", "rows_in_error", "rows_without_position", "trained", "simulated_rows",
    "gates", "classes", "errors", "modality_masks", "known_status", "funnel_by_year", "cuts", "siblings",
    "content_sha256", "content_rows", "as_of_jd", "anomaly_tests",
)  # fmt: skip


def assert_same(mine: str, oracle: str) -> None:
    """Two catalogues hold the same rows in the same order, and say the same of them; mine is sound."""
    _assert_equal(*(read_table(url).drop_columns(list(BOOKKEEPING)) for url in (mine, oracle)))
    said, expected = (open_catalog(url)[1] for url in (mine, oracle))
    assert {name: said[name] for name in SAID} == {name: expected[name] for name in SAID}
    assert set(said["side_tables"]) == set(expected["side_tables"])
    for name in expected["side_tables"]:
        _assert_equal(*(read_side_table(url, name).to_arrow() for url in (mine, oracle)))
    assert verify_catalog(mine)["problems"] == []


def _assert_equal(one: pa.Table, other: pa.Table) -> None:
    assert one.column_names == other.column_names
    for name in other.column_names:
        equal = one.column(name).equals(other.column(name))
        # NaN equals NaN.
        assert equal or str(one.column(name).to_pylist()) == str(other.column(name).to_pylist()), name
