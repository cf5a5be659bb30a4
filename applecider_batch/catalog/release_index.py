"""What an update looks up instead of reading a whole release.

::

    CATALOG/index/positions-<build>.parquet  objects of a layer by sky: _healpix_29, hash64, objectId, ra, dec
    CATALOG/index/closing-<build>.parquet    rows of a layer whose horizon is not over: hash64, as_of_jd
    CATALOG/index/pvalues-<build>.parquet    how often each p-value stands in the whole release

Of the base they are made by the first update after it, once; of a delta when it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.archive.spill import Spill
from applecider_batch.catalog.anomaly import QValues
from applecider_batch.catalog.columns import floats
from applecider_batch.catalog.crossmatch import pairs_within, unit_vectors
from applecider_batch.catalog.layers import layers, read_file, replaced_after
from applecider_batch.catalog.parts import write_file
from applecider_batch.catalog.siblings import RADIUS_ARCSEC, Siblings
from applecider_batch.catalog.sky import healpix29
from applecider_batch.catalog.store import INDEX, iter_rows, whole_objects
from applecider_batch.catalog.summary import run_ends
from applecider_batch.storage import Store

COLUMNS = tuple(dict.fromkeys((*Siblings.COLUMNS, *QValues.COLUMNS, "horizon_complete", "as_of_jd")))
POSITIONS = pa.schema(
    [
        ("_healpix_29", pa.int64()),
        ("hash64", pa.uint64()),
        ("objectId", pa.string()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
    ]
)
_CLOSING = pa.schema([("hash64", pa.uint64()), ("as_of_jd", pa.float64())])
_SORT_BYTES = 128 << 20
#: Cells of this order are 51 arcsec wide: what is within the siblings' radius is in the cell or beside it.
_CELL_ORDER = 12
_CELL_SHIFT = 2 * (29 - _CELL_ORDER)


class LayerIndex:
    """Index of a layer, fed with its rows in row order, whole objects at a time."""

    def __init__(self) -> None:
        self._positions = Spill(_SORT_BYTES, key="_cell")
        self._closing = [_CLOSING.empty_table()]

    def update(self, table: pa.Table) -> None:
        """Take the rows of a table with ``COLUMNS``."""
        where = positions_of(table)
        cell = where.column("_healpix_29").to_numpy().astype(np.uint64)
        self._positions.add("positions", where.append_column("_cell", pa.array(cell)))
        opened = pc.fill_null(pc.invert(table.column("horizon_complete")), False)
        self._closing.append(table.filter(opened).select(_CLOSING.names).cast(_CLOSING))

    def write(self, out: Store, build: str) -> dict[str, dict[str, Any]]:
        """Write the files; what the layer says of them."""
        closing = pa.concat_tables(self._closing).sort_by(
            [("as_of_jd", "ascending"), ("hash64", "ascending")]
        )
        with self._positions as spill:
            return {
                "positions": write_file(out, f"{INDEX}/positions-{build}.parquet", POSITIONS, _by_sky(spill)),
                "closing": write_file(out, f"{INDEX}/closing-{build}.parquet", _CLOSING, [closing]),
            }


def _by_sky(spill: Spill) -> Iterator[pa.Table]:
    for lo, hi in spill.ranges(_SORT_BYTES) if spill.names else ():
        rows = spill.read("positions", lo, hi).drop_columns(["_cell"])
        yield rows.sort_by([("_healpix_29", "ascending"), ("hash64", "ascending")])


def positions_of(table: pa.Table) -> pa.Table:
    """Where the objects of a table are, as their last rows say; objects without a position are left out."""
    last = table.filter(pa.array(run_ends(table.column("objectId").combine_chunks())))
    cells = healpix29(last.column("ra"), last.column("dec"))
    placed = last.select(POSITIONS.names[1:]).add_column(0, "_healpix_29", cells)
    return placed.filter(pc.is_valid(placed.column("_healpix_29"))).cast(POSITIONS)


def index_of_base(store: Store, info: Mapping[str, Any], build: str) -> tuple[dict[str, Any], QValues]:
    """Index and p-values of a release without deltas, from one pass over a few of its columns."""
    index, qvalues = LayerIndex(), QValues()
    for table in whole_objects(iter_rows(store, info, COLUMNS)):
        index.update(table)
        qvalues.update(table)
    return index.write(store, build), qvalues


def closing_objects(store: Store, info: Mapping[str, Any], until: float) -> np.ndarray:
    """hash64 (uint64, ascending) of objects with a horizon that is over by then (JD) and was not."""
    found = [np.empty(0, np.uint64)]
    for layer, gone in zip(layers(info), replaced_after(store, info), strict=True):
        table = read_file(store, layer["index"]["closing"])
        hashes = table.filter(pc.less_equal(table.column("as_of_jd"), until)).column("hash64").to_numpy()
        found.append(hashes[~np.isin(hashes, gone)])
    return np.unique(np.concatenate(found))


class Regrouped:
    """Sibling groups after some objects were replaced, found from their surroundings alone.

    Parameters
    ----------
    store, info
        The release before.
    replaced : ndarray, uint64, ascending
    before, after : pyarrow.Table
        Positions (:data:`POSITIONS`) of the replaced objects in the release before and now.
    """

    def __init__(
        self, store: Store, info: Mapping[str, Any], replaced: np.ndarray, before: pa.Table, after: pa.Table
    ) -> None:
        self._store, self._info, self._replaced = store, info, replaced
        self._gone = replaced_after(store, info)
        around = self._around(pa.concat_tables([before, after]))
        self._old, self._new = (_groups(pa.concat_tables([around, table])) for table in (before, after))
        empty = around.append_column("sibling_group", pa.nulls(around.num_rows, pa.string()))
        old, new = (groups.annotate(empty).column("sibling_group") for groups in (self._old, self._new))
        same = pc.equal(pc.fill_null(old, ""), pc.fill_null(new, ""))
        chosen = around.append_column("sibling_group", new).filter(pc.invert(same))
        #: hash64 and sibling_group of objects that were not replaced and whose group is another now.
        self.changes = chosen.select(["hash64", "sibling_group"]).sort_by("hash64")

    def annotate(self, table: pa.Table) -> pa.Table:
        """Rows of the replaced objects with their ``sibling_group``."""
        return self._new.annotate(table)

    def describe(self) -> dict[str, int]:
        """``objects`` in groups and ``groups`` of the release now."""
        before, old, new = self._info["siblings"], self._old.describe(), self._new.describe()
        return {name: before[name] - old[name] + new[name] for name in ("objects", "groups")}

    def _around(self, seeds: pa.Table) -> pa.Table:
        """Objects that were not replaced and are linked to the seeds by steps of the siblings' radius."""
        from scipy.spatial import cKDTree

        found = [POSITIONS.empty_table()]
        known = self._replaced
        while seeds.num_rows:
            near = self._near(seeds)
            near = near.filter(pa.array(~np.isin(near.column("hash64").to_numpy(), known)))
            tree = cKDTree(unit_vectors(floats(seeds, "ra"), floats(seeds, "dec")))
            row, _, _ = pairs_within(
                tree, unit_vectors(floats(near, "ra"), floats(near, "dec")), RADIUS_ARCSEC
            )
            seeds = near.take(pa.array(np.unique(row)))
            known = np.union1d(known, seeds.column("hash64").to_numpy())
            found.append(seeds)
        return pa.concat_tables(found)

    def _near(self, seeds: pa.Table) -> pa.Table:
        """Objects of the release in the cells of the seeds and beside them."""
        from cdshealpix import nested

        own = np.unique(seeds.column("_healpix_29").to_numpy() >> _CELL_SHIFT)
        beside = nested.neighbours(own.astype(np.uint64), _CELL_ORDER).astype(np.int64)
        cells = np.unique(beside[beside >= 0])
        found = [POSITIONS.empty_table()]
        for layer, gone in zip(layers(self._info), self._gone, strict=True):
            table = _in_cells(self._store, layer["index"]["positions"], cells)
            found.append(table.filter(pa.array(~np.isin(table.column("hash64").to_numpy(), gone))))
        return pa.concat_tables(found)


def _groups(positions: pa.Table) -> Siblings:
    groups = Siblings()
    groups.update(positions)
    groups.find()
    groups.name(positions)
    return groups


def _in_cells(store: Store, entry: Mapping[str, Any], cells: Sequence[int] | np.ndarray) -> pa.Table:
    """Rows of a file of positions in some cells; row groups without any are not read."""
    found = [POSITIONS.empty_table()]
    with store.open_input(entry["file"]) as source, pq.ParquetFile(source) as reader:
        for group in range(reader.metadata.num_row_groups):
            limits = reader.metadata.row_group(group).column(0).statistics
            first = np.searchsorted(cells, limits.min >> _CELL_SHIFT, side="left")
            if first < np.searchsorted(cells, limits.max >> _CELL_SHIFT, side="right"):
                table = reader.read_row_group(group)
                cell = table.column("_healpix_29").to_numpy() >> _CELL_SHIFT
                found.append(table.filter(pa.array(np.isin(cell, cells))))
    return pa.concat_tables(found)


def of_hashes(tables: Iterable[pa.Table], hashes: np.ndarray) -> Iterator[pa.Table]:
    """The rows of some objects (uint64, ascending), whole objects at a time."""
    for table in whole_objects(tables):
        chosen = table.filter(pa.array(np.isin(table.column("hash64").to_numpy(), hashes)))
        if chosen.num_rows:
            yield chosen
