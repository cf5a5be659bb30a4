"""``read_catalog(url)``: a catalogue as a Polars frame that knows its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.store import iter_rows, open_catalog
from applecider_batch.catalog.summary import FULL, horizon_label
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.table import QTable


class CatalogueFrame(pl.DataFrame):
    """A Polars frame of catalogue rows; :meth:`to_astropy` and :attr:`coords` add units from the schema."""

    def to_astropy(self) -> QTable:
        """The rows as an astropy QTable (see :func:`to_astropy`)."""
        return to_astropy(self.to_arrow())

    @property
    def coords(self) -> SkyCoord:
        """ICRS positions, shape (n,); NaN where unknown."""
        return sky_coordinates(self.to_arrow())


def read_catalog(
    url: str,
    *,
    columns: Sequence[str] | None = None,
    horizon: float | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> CatalogueFrame:
    """Read a catalogue.

    Parameters
    ----------
    url : str
        The catalogue's folder, local or any fsspec URL.
    columns : sequence of str, optional
        Only these columns.
    horizon : float or "full", optional
        Only the rows of this horizon in days; all by default.

    Returns
    -------
    CatalogueFrame
        In row order (hash64, objectId, episode, horizon_days with null last).

    Raises
    ------
    UserError
        If it is no catalogue, or has no such column or horizon.
    """
    return CatalogueFrame(pl.from_arrow(read_table(url, columns, horizon, storage_options=storage_options)))


def read_table(
    url: str,
    columns: Sequence[str] | None = None,
    horizon: float | str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> pa.Table:
    """The same as an Arrow table (see :func:`read_catalog`)."""
    store, info = open_catalog(url, storage_options)
    unknown = sorted(set(columns or ()) - set(info["columns"]))
    if unknown:
        raise UserError(f"The catalogue has no column {unknown}; it has {', '.join(info['columns'])}.")
    wanted = None if columns is None else list(dict.fromkeys(columns))
    days = None if horizon is None else check_horizon(info, horizon)
    loaded = wanted if wanted is None or days is None else list(dict.fromkeys([*wanted, "horizon_days"]))
    schema = load_table("catalogue").arrow
    tables = [pa.schema([schema.field(name) for name in loaded or schema.names]).empty_table()]
    for table in iter_rows(store, info, loaded):
        tables.append(table if days is None else only_horizon(table, days))
    joined = pa.concat_tables(tables)
    return joined if wanted is None else joined.select(wanted)


def check_horizon(info: Mapping[str, Any], horizon: float | str) -> str:
    """The label of a horizon of this catalogue.

    Raises
    ------
    UserError
        If the catalogue has no such horizon.
    """
    try:
        label = FULL if horizon == FULL else horizon_label(float(horizon))
    except ValueError:
        label = str(horizon)
    if label not in info["classes"]:
        raise UserError(f"The catalogue has no horizon '{horizon}'; it has {', '.join(info['classes'])}.")
    return label


def only_horizon(table: pa.Table, label: str) -> pa.Table:
    """Rows of one horizon, given by its label."""
    column = table.column("horizon_days")
    return table.filter(pc.is_null(column) if label == FULL else pc.equal(column, float(label)))


def one_row_per_episode(table: pa.Table, label: str) -> pa.Table:
    """Rows of one horizon, and the only rows of objects without t0."""
    column = table.column("horizon_days")
    chosen = pc.is_null(column) if label == FULL else pc.fill_null(pc.equal(column, float(label)), False)
    return table.filter(pc.or_(chosen, pc.is_null(table.column("t0"))))


def to_astropy(table: pa.Table) -> QTable:
    """Catalogue rows as a QTable: units and descriptions from the schema, nulls masked.

    Raises
    ------
    KeyError
        If a column is not one of the catalogue's.
    """
    from astropy import units
    from astropy.table import MaskedColumn, QTable
    from astropy.utils.masked import Masked

    schema = load_table("catalogue")
    result = QTable()
    for name in table.column_names:
        column = schema.column(name)
        values, null = numpy_column(table.column(name))
        if column.unit:
            quantity = units.Quantity(values, column.unit, copy=False)
            result[name] = Masked(quantity, mask=null) if null.any() else quantity
        else:
            result[name] = MaskedColumn(values, mask=null) if null.any() else values
        result[name].info.description = column.description
        result[name].info.meta = {"ucd": column.ucd}
    return result


def numpy_column(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Values, with a harmless filler where null, and the mask of nulls, both of shape (n,)."""
    null = column.is_null().to_numpy()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = pc.fill_null(column, "").to_pylist()
        return np.array(texts, dtype=str), null
    filler: Any = False if pa.types.is_boolean(kind) else 0
    return pc.fill_null(column, pa.scalar(filler, kind)).to_numpy(), null


def sky_coordinates(table: pa.Table) -> SkyCoord:
    """ICRS positions of catalogue rows, shape (n,); NaN where unknown."""
    from astropy.coordinates import SkyCoord

    ra, dec = (pc.fill_null(table.column(name), float("nan")).to_numpy() for name in ("ra", "dec"))
    return SkyCoord(ra, dec, unit="deg", frame="icrs")
