"""Small tables in files, by the file's ending: Parquet, CSV (lists joined with semicolons) or JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from applecider_batch.errors import UsageError, UserError
from applecider_batch.storage import json_bytes, store_of

ENDINGS = (".parquet", ".csv", ".json")
_LIST_SEPARATOR = ";"


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
