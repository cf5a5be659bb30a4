"""Side tables: what a catalogue keeps beside its rows.

``embeddings`` (latents of every row) and ``light_curves`` (merged events, nested) are asked for with
``classify --side`` and written by each shard; ``crossmatches`` (every listed source within the radius) comes
from ``catalog build --known``.

::

    RUN/side/embeddings/shard-00012.<attempt>.parquet     named in the shard's commit record
    CATALOG/embeddings/part-00000.<build>.parquet         named in catalog.json under side_tables
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from applecider_batch.catalog.rows import ROW_KEY, SHORT_NAMES
from applecider_batch.catalog.store import iter_rows, open_catalog
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table

#: Side tables that a run can write.
OF_RUNS: tuple[str, ...] = ("embeddings", "light_curves")
CROSSMATCHES = "crossmatches"
SIDE_TABLES: tuple[str, ...] = (*OF_RUNS, CROSSMATCHES)


def side_table(name: str, prepared: Any, outputs: Any) -> pa.Table:
    """A side table of one shard.

    Parameters
    ----------
    name : str
        One of :data:`OF_RUNS`.
    prepared : features.inputs.Prepared
        With the rows' items; its rows are in the catalogue's order.
    outputs : inference.shard.ShardOutputs
    """
    return embeddings(prepared, outputs) if name == "embeddings" else light_curves(prepared)


def embeddings(prepared: Any, outputs: Any) -> pa.Table:
    """Latents of every row that has any (schema ``embeddings``)."""
    schema = load_table("embeddings")
    rows = prepared.rows.select(["hash64", *ROW_KEY])
    columns = {name: rows.column(name) for name in rows.column_names}
    any_there = np.zeros(rows.num_rows, bool)
    for modality, short in SHORT_NAMES.items():
        name = f"latent_{short}"
        latents = outputs.latents.get(modality)
        item = np.asarray(getattr(prepared, modality).row_index)
        if latents is None or not latents.size:
            columns[name] = pa.nulls(rows.num_rows, schema.column(name).arrow_type)
            continue
        there = (item >= 0) & np.isfinite(latents[np.maximum(item, 0)]).all(axis=1)
        any_there |= there
        width = latents.shape[1]
        offsets = np.concatenate([[0], np.cumsum(np.where(there, width, 0))]).astype(np.int32)
        values = pa.array(latents[item[there]].astype(np.float32).ravel())
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~there))
    return schema.conform(pa.table(columns).filter(pa.array(any_there)))


def light_curves(prepared: Any) -> pa.Table:
    """Merged events behind the last wall of every episode, one row each (schema ``light_curves``)."""
    events = pl.DataFrame(pl.from_arrow(prepared.light_curves))
    nested = events.group_by("hash64", "objectId", "episode", maintain_order=True).agg(
        pl.col("jd", "fid", "flux_ujy", "flux_err_ujy", "n_points", "in_sequence").sort_by("jd", "fid")
    )
    lists = nested.with_columns(pl.col("fid", "n_points", "in_sequence").cast(pl.List(pl.Int64)))
    return load_table("light_curves").conform(lists.to_arrow())


def read_side_table(url: str, name: str, *, storage_options: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """A side table of a catalogue, whole.

    Parameters
    ----------
    url : str
        The catalogue's folder.
    name : str
        ``embeddings``, ``light_curves`` or ``crossmatches``.

    Raises
    ------
    UserError
        If the catalogue has no such table.
    """
    store, info = open_catalog(url, storage_options)
    there = info["side_tables"]
    if name not in there:
        raise UserError(
            f"The catalogue '{url}' has no side table '{name}'; it has {', '.join(there) or 'none'}.",
            hint="embeddings and light_curves are written by classify --side, crossmatches by "
            "catalog build --known.",
        )
    tables = iter_rows(store, info, name=name)
    return pl.DataFrame(pl.from_arrow(pa.concat_tables([load_table(name).empty(), *tables])))
