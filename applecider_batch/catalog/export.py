"""``catalog export``: a catalogue for other tools.

``parquet`` and ``csv`` are streamed, ``hats`` is written partition by partition (:mod:`.hats_export`),
``votable``, ``fits`` and ``ecsv`` are made by astropy in memory (VOTable at about a thousand rows a second:
for selections, not for surveys).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from applecider_batch.catalog.read import check_horizon, numpy_column, only_horizon, read_table
from applecider_batch.catalog.store import BATCH_ROWS, iter_rows, open_catalog
from applecider_batch.catalog.summary import FULL
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from applecider_batch.spread import ProgressLike, Spread
from applecider_batch.storage import Store, store_of

if TYPE_CHECKING:
    from astropy.table import Table

FORMATS = ("parquet", "csv", "ecsv", "hats", "votable", "fits")


def export_catalog(
    url: str,
    out: str,
    to: str,
    *,
    horizon: float | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: ProgressLike | None = None,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Write a catalogue in another format.

    Parameters
    ----------
    url : str
        The catalogue's folder.
    out : str
        The file to write; for ``hats`` a new folder, with one collection per horizon in it.
    to : {"parquet", "csv", "ecsv", "hats", "votable", "fits"}
    horizon : float or "full", optional
        Only this horizon; all by default.
    progress : ProgressLike, optional
        Counts rows, for ``hats`` in both passes; those made in memory when they are written.
    spread : Spread, optional
        Where ``hats`` is made; by default in this process. The other formats are one file, written here.

    Returns
    -------
    dict
        ``format, out, rows, files`` and, for hats, ``catalogues`` and ``rows_without_position`` (left out).

    Raises
    ------
    UserError
        An unknown format, no catalogue, no such horizon, or the extra ``hats`` is not installed.
    """
    if to not in FORMATS:
        raise UserError(f"'{to}' is no export format; allowed are {', '.join(FORMATS)}.")
    store, info = open_catalog(url, storage_options)
    label = None if horizon is None else check_horizon(info, horizon)
    if to == "hats":
        from applecider_batch.catalog.hats_export import export_hats

        found = sorted(info["classes"], key=lambda name: float("inf") if name == FULL else float(name))
        labels = found if label is None else [label]
        return export_hats(
            store, info, out, labels, storage_options=storage_options, progress=progress, spread=spread
        )
    target, name = store_of(out, storage_options)
    if to in ("parquet", "csv"):
        tables = _counted(iter_rows(store, info), info["rows"], progress)
        if label is not None:
            tables = (only_horizon(table, label) for table in tables)
        rows = (_write_parquet if to == "parquet" else _write_csv)(target, name, tables)
    else:
        table = read_table(url, horizon=label, storage_options=storage_options)
        writer = {"votable": _write_votable, "fits": _write_fits, "ecsv": _write_ecsv}[to]
        writer(target, name, table, info)
        rows = table.num_rows
        if progress is not None:
            progress.update(rows)
    return {"format": to, "out": out, "rows": rows, "files": 1}


def _counted(tables: Iterator[pa.Table], total: int, progress: ProgressLike | None) -> Iterator[pa.Table]:
    if progress is not None:
        progress.expect(total)
    for table in tables:
        yield table
        if progress is not None:
            progress.update(table.num_rows)


def _write_parquet(target: Store, name: str, tables: Iterator[pa.Table]) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with (
        target.open_output(name) as file,
        pq.ParquetWriter(file, load_table("catalogue").arrow, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=BATCH_ROWS)
            rows += table.num_rows
    return rows


def _write_csv(target: Store, name: str, tables: Iterator[pa.Table]) -> int:
    from pyarrow import csv

    rows = 0
    with target.open_output(name) as file, csv.CSVWriter(file, load_table("catalogue").arrow) as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _plain_table(table: pa.Table) -> Table:
    """An astropy Table of masked columns with units and descriptions.

    ``hash64`` becomes its decimal text: VOTable has no unsigned 64-bit integer.
    """
    from astropy.table import MaskedColumn, Table

    schema = load_table("catalogue")
    result = Table()
    for name in table.column_names:
        column = schema.column(name)
        arrow = table.column(name).cast(pa.string()) if column.type == "uint64" else table.column(name)
        values, null = numpy_column(arrow)
        if pa.types.is_floating(arrow.type):
            values = values.copy()
            values[null] = float("nan")
        result[name] = MaskedColumn(
            values, mask=null, unit=column.unit or None, description=column.description
        )
    return result


def _write_votable(target: Store, name: str, table: pa.Table, info: Mapping[str, Any]) -> None:
    from astropy.io.votable import from_table, writeto
    from astropy.io.votable.tree import Info

    document = from_table(_plain_table(table), table_id="catalogue")
    resource = document.resources[0]
    for key in ("run_id", "content_sha256", "trained", "partial"):
        resource.infos.append(Info(name=key, value=str(info[key])))
    schema = load_table("catalogue")
    for field in document.get_first_table().fields:
        field.ucd = schema.column(field.name).ucd or None
    with target.open_output(name) as file:
        # BINARY2 carries a null flag for every cell, so no sentinel is needed.
        writeto(document, file, tabledata_format="binary2")


def _write_ecsv(target: Store, name: str, table: pa.Table, info: Mapping[str, Any]) -> None:
    """CSV with units, descriptions and UCDs in its header, masked cells empty."""
    schema = load_table("catalogue")
    plain = _plain_table(table)
    for column in plain.colnames:
        plain[column].info.meta = {"ucd": schema.column(column).ucd}
    for key in ("run_id", "content_sha256", "trained", "partial"):
        plain.meta[key] = info[key]
    text = io.StringIO()
    plain.write(text, format="ascii.ecsv")
    target.write_atomic(name, text.getvalue().encode())


def _write_fits(target: Store, name: str, table: pa.Table, info: Mapping[str, Any]) -> None:
    from astropy.io import fits

    schema = load_table("catalogue")
    plain = _plain_table(table)
    for column in schema.columns:
        if column.type == "bool":
            # A FITS logical column read by astropy has no null: 1, 0 and TNULL instead.
            plain[column.name] = plain[column.name].astype("int16")
        if column.type.startswith("int") or column.type == "bool":
            plain[column.name].fill_value = -32768
    hdu = fits.table_to_hdu(plain)
    for number, column in enumerate(schema.columns, 1):
        hdu.header[f"TCOMM{number}"] = column.description
        hdu.header[f"TUCD{number}"] = column.ucd
    for key, value in (("RUNID", info["run_id"]), ("TRAINED", info["trained"]), ("PARTIAL", info["partial"])):
        hdu.header[key] = value
    hdu.header["CONTENT"] = info["content_sha256"]
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    target.write_atomic(name, buffer.getvalue())
