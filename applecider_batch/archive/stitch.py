"""One light curve per object out of overlapping packets: the version of a point that is kept, and since when
it is known.

The rule is a minimum per key, so it can be applied to any pieces in any order and again to its own results.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from applecider_batch.schema import load_table

FORCED = 2
KEY_COLUMNS = [
    "hash64",
    "objectId",
    "jd",
    "candid",
    "fid",
    "pid",
    "origin",
    "forcediffimflux",
    "forcediffimfluxunc",
    "procstatus",
]
_KEY = ["hash64", "objectId", "_forced", "candid", "_jd", "_fid", "_pid", "_flux", "_unc", "_status"]
_ORDER = ["hash64", "objectId", "jd", "candid", "fid", "pid", "origin", "known_jd"]


def stitch(points: pa.Table) -> pa.Table:
    """De-duplicate photometry points and sort them.

    The key of a point within its object is its candid, else (jd, fid, pid); of its versions the one with the
    smallest (``known_jd``, ``origin``, remaining columns) is kept, that is the one that was delivered first.
    A forced point (``origin`` 2) has the key (jd, fid, pid, forcediffimflux, forcediffimfluxunc, procstatus):
    every revision stays, with the earliest ``known_jd`` of that revision.

    Parameters
    ----------
    points : Table
        Schema ``photometry``, any order, any repetitions.

    Returns
    -------
    Table
        Schema ``photometry``, sorted by (hash64, objectId, jd, candid, fid, pid, origin, known_jd, the rest);
        null sorts before numbers in the key columns.
    """
    schema = load_table("photometry")
    if points.num_rows < 2:
        return schema.conform(points)
    frame = pl.from_arrow(points)
    assert isinstance(frame, pl.DataFrame)
    rest = [name for name in schema.names if name not in _ORDER and name != "is_detection"]
    keyed = _with_key(frame)
    # Among equally early versions a detection goes before a limit and a value before a null.
    tie = ["known_jd", "origin", "is_detection", "jd", "fid", "pid", *rest]
    kept = keyed.sort(
        [*_KEY, *tie],
        descending=[name == "is_detection" for name in (*_KEY, *tie)],
        nulls_last=True,
    ).unique(subset=_KEY, keep="first", maintain_order=True)
    ordered = kept.sort([*_ORDER, *rest], nulls_last=[name not in _ORDER for name in (*_ORDER, *rest)])
    return schema.conform(ordered.select(schema.names).to_arrow())


def _with_key(frame: pl.DataFrame) -> pl.DataFrame:
    by_exposure = pl.col("candid").is_null()
    forced = pl.col("origin") == FORCED
    return frame.with_columns(
        forced.alias("_forced"),
        *(pl.when(by_exposure).then(pl.col(name)).alias(f"_{name}") for name in ("jd", "fid", "pid")),
        pl.when(forced).then(pl.col("forcediffimflux")).alias("_flux"),
        pl.when(forced).then(pl.col("forcediffimfluxunc")).alias("_unc"),
        pl.when(forced).then(pl.col("procstatus")).alias("_status"),
    )


def distinct_points(points: pa.Table) -> pl.DataFrame:
    """One row per point that ``stitch`` would keep, with the columns given (``KEY_COLUMNS`` at least)."""
    frame = pl.from_arrow(points)
    assert isinstance(frame, pl.DataFrame)
    return _with_key(frame).unique(subset=_KEY, keep="any").select(points.column_names)
