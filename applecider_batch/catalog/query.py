"""``catalog query``: SQL over a catalogue, by Polars' SQL context.

The table is called ``catalogue``; side tables that the catalogue has stand under their own names.  Parts
are scanned lazily: only the columns and row groups that a query needs are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from applecider_batch.catalog.layers import scan_merged
from applecider_batch.catalog.store import open_catalog
from applecider_batch.catalog.table_files import check_ending, write_table
from applecider_batch.errors import UserError
from applecider_batch.storage import Store

MAX_ROWS = 1000


def query_catalog(
    url: str, sql: str, out: str | None = None, *, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Answer an SQL query.

    Parameters
    ----------
    url : str
        The catalogue's folder.
    sql : str
        One SELECT in Polars' dialect; the catalogue is the table ``catalogue``.
    out : str, optional
        File for all rows, by its ending Parquet, CSV or JSON.  Without it the answer holds the rows, at most
        :data:`MAX_ROWS`.

    Returns
    -------
    dict
        Keys as ``catalog query`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        No catalogue, an SQL error, or another file ending.
    """
    if out is not None:
        check_ending(out)
    store, info = open_catalog(url, storage_options)
    tables = {"catalogue": info["parts"], **info["side_tables"]}
    if info.get("deltas"):
        frames = {name: scan_merged(store, info, name, partial(_scan, store)) for name in tables}
    else:
        frames = {name: _scan(store, [part["file"] for part in parts]) for name, parts in tables.items()}
    try:
        with pl.SQLContext(frames) as context:
            frame = context.execute(sql, eager=True)
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise UserError(
            f"The query cannot be answered: {error}.".replace("\n", " "),
            hint=f"The tables are {', '.join(tables)}; their columns stand in docs/schemas.md.",
        ) from error
    answer = {"rows": frame.height, "columns": frame.columns, "out": out}
    if out is not None:
        write_table(frame.to_arrow(), out, storage_options)
        return {**answer, "table": [], "truncated": False}
    return {**answer, "table": frame.head(MAX_ROWS).to_dicts(), "truncated": frame.height > MAX_ROWS}


def _scan(store: Store, files: list[str]) -> pl.LazyFrame:
    if store.is_local:
        return pl.scan_parquet([store.path(file) for file in files])
    from pyarrow import dataset

    paths = [store.path(file) for file in files]
    return pl.scan_pyarrow_dataset(dataset.dataset(paths, format="parquet", filesystem=store.fs))
