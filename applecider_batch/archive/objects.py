"""The objects of a snapshot, derived and cached beside it: with mean positions, or only counted.

``objects/<logical digest>.parquet`` has a row for each object, sorted by ``_healpix_29``;
``objects/<logical digest>.counts.parquet`` only how many alerts each hash has, which is all that planning
needs and costs a tenth. Either is made when it is first asked for and can be removed at any time; where the
archive is read-only it is made again each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.archive.read import Archive
from applecider_batch.archive.snapshot import Snapshot
from applecider_batch.archive.spill import Spill
from applecider_batch.archive.stitch import KEY_COLUMNS, distinct_points
from applecider_batch.errors import StorageError
from applecider_batch.schema import load_table
from applecider_batch.storage import Store

NO_POSITION = -1
TABLE_ORIGIN = 3
_RANGE_BYTES = 128 << 20
_GROUP_ROWS = 65_536
_COUNTS = pa.schema([pa.field("hash64", pa.uint64(), False), pa.field("n_alerts", pa.int64(), False)])


@dataclass(frozen=True)
class ObjectPositions:
    """Some of the archive's objects with alerts: names and mean positions (deg, float64, shape (n,))."""

    object_id: pa.Array
    ra: np.ndarray
    dec: np.ndarray


def object_positions(store: Store, snapshot: Snapshot) -> Iterator[ObjectPositions]:
    """All objects that have an alert, range by range."""
    archive = Archive(store, snapshot)
    for lo, hi in archive.ranges(_RANGE_BYTES, ("alerts",)):
        alerts = archive.read_alerts(lo, hi, ["objectId", "ra", "dec"])
        if alerts.num_rows:
            frame = _mean_positions(alerts)
            yield ObjectPositions(
                frame["objectId"].to_arrow().cast(pa.string()),
                frame["ra"].to_numpy(),
                frame["dec"].to_numpy(),
            )


def _mean_positions(rows: pa.Table) -> pl.DataFrame:
    """Mean of unit vectors per object, so that ra 0/360 and the poles are no exception."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    ra, dec = pl.col("ra").radians(), pl.col("dec").radians()
    vectors = frame.select("objectId", x=dec.cos() * ra.cos(), y=dec.cos() * ra.sin(), z=dec.sin())
    mean = vectors.group_by("objectId", maintain_order=True).agg(pl.col("x", "y", "z").drop_nulls().mean())
    return mean.fill_nan(None).select(
        "objectId",
        ra=pl.arctan2("y", "x").degrees() % 360,
        dec=pl.arctan2(pl.col("z"), (pl.col("x") ** 2 + pl.col("y") ** 2).sqrt()).degrees(),
    )


def _range_objects(archive: Archive, lo: int, hi: int) -> pa.Table:
    """Schema ``objects`` for the objects of a hash range."""
    alerts = archive.read_alerts(lo, hi, ["hash64", "objectId", "jd", "ra", "dec"])
    # The points of one part are distinct already.
    several = sum(part.overlaps("photometry", lo, hi) for part in archive.parts) > 1
    wanted = ["hash64", "objectId", "jd", "origin", "ra", "dec"]
    columns = list(dict.fromkeys([*wanted, *(KEY_COLUMNS if several else ())]))
    given = archive.read_points(lo, hi, columns)
    points = distinct_points(given) if several else pl.DataFrame(pl.from_arrow(given))
    spectra = pl.DataFrame(pl.from_arrow(archive.read_spectra(lo, hi, ["objectId"])))
    keys = ["hash64", "objectId", "jd"]
    rows = pl.concat(
        [
            pl.DataFrame(pl.from_arrow(alerts.select(keys))).with_columns(alert=pl.lit(1)),
            points.select(keys).with_columns(alert=pl.lit(0)),
        ]
    )
    sums = rows.group_by("hash64", "objectId").agg(
        n_alerts=pl.col("alert").sum().cast(pl.Int32),
        n_points=(1 - pl.col("alert")).sum().cast(pl.Int32),
        jd_first=pl.col("jd").min(),
        jd_last=pl.col("jd").max(),
    )
    spectra = spectra.group_by("objectId").agg(n_spectra=pl.len().cast(pl.Int32))
    objects = (
        sums.join(_mean_positions(alerts), on="objectId", how="left")
        .join(_table_positions(given), on="objectId", how="left")
        .join(spectra, on="objectId", how="left")
        .with_columns(
            pl.coalesce("ra", "ra_given").alias("ra"),
            pl.coalesce("dec", "dec_given").alias("dec"),
            pl.col("n_spectra").fill_null(0),
        )
        .sort("hash64", "objectId")
    )
    cells = _healpix_29(objects["ra"].to_numpy(), objects["dec"].to_numpy())
    table = objects.to_arrow().append_column("_healpix_29", pa.array(cells))
    return load_table("objects").conform(table)


def _table_positions(points: pa.Table) -> pl.DataFrame:
    """Mean of the distinct positions that light-curve tables give."""
    given = points.filter(pc.equal(points.column("origin"), TABLE_ORIGIN)).select(["objectId", "ra", "dec"])
    distinct = pl.DataFrame(pl.from_arrow(given)).unique().sort("objectId", "ra", "dec")
    return _mean_positions(distinct.to_arrow()).rename({"ra": "ra_given", "dec": "dec_given"})


def _healpix_29(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Nested HEALPix cells of order 29 of positions in deg; -1 where there is none."""
    import astropy.units as u
    from astropy.coordinates import Latitude, Longitude
    from cdshealpix import nested

    good = np.isfinite(ra) & np.isfinite(dec)
    cells = np.full(len(ra), NO_POSITION, np.int64)
    if good.any():
        cells[good] = nested.lonlat_to_healpix(Longitude(ra[good] * u.deg), Latitude(dec[good] * u.deg), 29)
    return cells


def objects_table(archive: Archive) -> pa.Table:
    """All objects with an alert or a point, schema ``objects``, sorted by ``_healpix_29``.

    Objects without any position (from light-curve tables that give none) have ``_healpix_29`` -1.
    """
    return _cached(archive, cache_files(archive.snapshot)[0], load_table("objects").arrow, _sorted)


def alert_counts(archive: Archive) -> tuple[np.ndarray, np.ndarray]:
    """How many alerts each object with an alert or a point has.

    Returns
    -------
    hash64 : ndarray, uint64, shape (n,)
        Ascending; two objects of one hash, of which none are known, count as one.
    n_alerts : ndarray, int64, shape (n,)
    """
    table = _cached(archive, cache_files(archive.snapshot)[1], _COUNTS, _counted)
    return table.column("hash64").to_numpy(), table.column("n_alerts").to_numpy()


def cache_files(snapshot: Snapshot) -> list[str]:
    """Names of what is cached for a snapshot."""
    return [f"objects/{snapshot.logical_digest}{kind}.parquet" for kind in ("", ".counts")]


def _cached(
    archive: Archive, path: str, schema: pa.Schema, make: Callable[[Archive], Iterator[pa.Table]]
) -> pa.Table:
    if not archive.store.exists(path):
        try:
            with (
                archive.store.open_output(path) as sink,
                pq.ParquetWriter(sink, schema, compression="zstd") as writer,
            ):
                for table in make(archive):
                    writer.write_table(table, row_group_size=_GROUP_ROWS)
        except StorageError:
            return pa.concat_tables([schema.empty_table(), *make(archive)])
    with archive.store.open_input(path) as source:
        return pq.read_table(source).cast(schema)


def _counted(archive: Archive) -> Iterator[pa.Table]:
    for lo, hi in archive.ranges(_RANGE_BYTES, ("alerts", "photometry")):
        alerts = archive.read_alerts(lo, hi, ["hash64"]).column("hash64").to_numpy()
        points = archive.read_points(lo, hi, ["hash64"]).column("hash64").to_numpy()
        # The points of a part are sorted: first of each run, then of the few that are left.
        runs = points[np.flatnonzero(points[1:] != points[:-1]) + 1]
        hashes = np.unique(np.concatenate([alerts, points[:1], runs]))
        first, last = (np.searchsorted(alerts, hashes, side=side) for side in ("left", "right"))
        yield pa.table([hashes, last - first], schema=_COUNTS)


def _sorted(archive: Archive) -> Iterator[pa.Table]:
    """The objects by position, sorted out of core."""
    with Spill(_RANGE_BYTES, key="_cell") as spill:
        for lo, hi in archive.ranges(_RANGE_BYTES, ("alerts", "photometry")):
            table = _range_objects(archive, lo, hi)
            cell = (table.column("_healpix_29").to_numpy() - NO_POSITION).astype(np.uint64)
            spill.add("objects", table.append_column("_cell", pa.array(cell)))
        if not spill.names:
            return
        for lo, hi in spill.ranges(_RANGE_BYTES):
            rows = spill.read("objects", lo, hi).drop_columns(["_cell"])
            yield rows.sort_by(
                [("_healpix_29", "ascending"), ("hash64", "ascending"), ("objectId", "ascending")]
            )
