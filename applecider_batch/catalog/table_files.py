"""Small tables in files.

Written by the file's ending as Parquet, CSV (lists joined with semicolons) or JSON; read, by their content,
in what others write as well: FITS, ECSV, VOTable, packed CSV.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from applecider_batch.errors import UsageError, UserError
from applecider_batch.storage import json_bytes, store_of

ENDINGS = (".parquet", ".csv", ".json")
_LIST_SEPARATOR = ";"
_READ = TypeVar("_READ")


def check_ending(out: str) -> None:
    """Refuse a file ending that is none of :data:`ENDINGS`."""
    if not out.endswith(ENDINGS):
        raise UsageError(f"A table can be written to {', '.join(ENDINGS)}, and not to '{out}'.")


def write_table(
    table: pa.Table,
    out: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    about: tuple[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a table to a file.

    Parameters
    ----------
    table : pyarrow.Table
    out : str
        Local path or fsspec URL.  In CSV, lists are joined with semicolons, an empty place standing for null.
    about : (str, mapping), optional
        A key and a document about the table: Parquet keeps it as metadata under that key, JSON beside the
        rows; CSV holds the rows alone.
    """
    store, name = store_of(out, storage_options)
    key, document = about or ("", {})
    if out.endswith(".parquet"):
        meta = {**(table.schema.metadata or {}), **({key: json.dumps(dict(document))} if key else {})}
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(meta), sink, compression="zstd")
        data = sink.getvalue()
    elif out.endswith(".json"):
        data = json_bytes({**document, "rows": table.to_pylist()})
    else:
        sink = io.BytesIO()
        csv.write_csv(_flat(table), sink)
        data = sink.getvalue()
    store.write_atomic(name, data)


def _flat(table: pa.Table) -> pa.Table:
    for at, field in enumerate(table.schema):
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
            texts = [
                None if items is None else
                _LIST_SEPARATOR.join("" if item is None else _text(item) for item in items)
                for items in table.column(at).to_pylist()
            ]  # fmt: skip
            table = table.set_column(at, pa.field(field.name, pa.string()), pa.array(texts, pa.string()))
    return table


def _text(item: Any) -> str:
    return f"{item:.6g}" if isinstance(item, float) else str(item)


def read_csv_text(url: str, storage_options: Mapping[str, Any] | None = None) -> pa.Table:
    """A CSV file with a header, every column as text; empty cells are null.

    Raises
    ------
    UserError
        If it is absent or no CSV.
    """
    store, name = store_of(url, storage_options)
    try:
        data = store.read_bytes(name)
        head = csv.read_csv(io.BytesIO(data)).column_names
        options = csv.ConvertOptions(column_types=dict.fromkeys(head, pa.string()), strings_can_be_null=True)
        return csv.read_csv(io.BytesIO(data), convert_options=options)
    except FileNotFoundError:
        raise UserError(f"The table '{url}' is not there.") from None
    except pa.ArrowException as error:
        raise UserError(f"The table '{url}' cannot be read as CSV: {error}.") from error


def read_file(
    url: str, what: str, parse: Callable[[bytes], _READ], storage_options: Mapping[str, Any] | None = None
) -> tuple[_READ, bytes]:
    """A file of a user's, unpacked (.gz, .zip of one member) and parsed; and its bytes as they are.

    Parameters
    ----------
    url : str
        Local path or fsspec URL.
    what : str
        What it is to the user, for errors.
    parse : callable
        Bytes to value, for example :func:`frame_of`.

    Raises
    ------
    UserError
        If it is absent, or ``parse`` cannot read it.
    """
    store, name = store_of(url, storage_options)
    try:
        data = store.read_bytes(name)
        return parse(_unpacked(data)), data
    except FileNotFoundError:
        raise UserError(f"The {what} '{url}' is not there.") from None
    except (pl.exceptions.PolarsError, pa.ArrowException, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"The {what} '{url}' cannot be read: {error}.",
            hint="Allowed are Parquet, CSV (.gz, .zip), FITS, ECSV and VOTable.",
        ) from error


def _unpacked(data: bytes) -> bytes:
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [m for m in archive.namelist() if not m.endswith("/") and "__MACOSX" not in m]
            if len(members) != 1:
                raise ValueError(f"a zip file must hold one table, and it holds {len(members)} files")
            return archive.read(members[0])
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def frame_of(data: bytes) -> pl.DataFrame:
    """A table from the bytes of a Parquet, FITS, ECSV, VOTable or (every column as text) CSV file."""
    if data[:4] == b"PAR1":
        return pl.read_parquet(data)
    if data[:6] == b"SIMPLE" or data[:8] == b"# %ECSV " or b"<VOTABLE" in data[:2000]:
        from astropy.table import Table

        kind = "fits" if data[:6] == b"SIMPLE" else "votable" if b"<VOTABLE" in data[:2000] else "ascii.ecsv"
        table = Table.read(io.BytesIO(data), format=kind)
        columns = [c for c in table.colnames if table[c].ndim == 1]
        return pl.DataFrame({c: [_plain(v) for v in table[c]] for c in columns}, strict=False)
    return pl.read_csv(data, infer_schema=False, truncate_ragged_lines=True, encoding="utf8-lossy")


def _plain(value: Any) -> Any:
    if value is np.ma.masked or (isinstance(value, float) and np.isnan(value)):
        return None
    value = getattr(value, "value", value)
    item = value.item() if hasattr(value, "item") else value
    return item.decode(errors="replace") if isinstance(item, bytes) else item
