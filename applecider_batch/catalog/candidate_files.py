"""Candidates in files: Parquet and JSON carry the answer of the search along, CSV the rows alone."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from applecider_batch.errors import UsageError, UserError
from applecider_batch.schema import load_table
from applecider_batch.storage import json_bytes, store_of

ENDINGS = (".parquet", ".csv", ".json")
_META = b"applecider-batch candidates"
_LIST_SEPARATOR = ";"


def check_target(out: str) -> None:
    """Refuse a file ending that is none of :data:`ENDINGS`."""
    if not out.endswith(ENDINGS):
        raise UsageError(f"The candidates can be written to {', '.join(ENDINGS)}, and not to '{out}'.")


def write_candidates(
    table: pa.Table, out: str, answer: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Write candidates (schema ``candidates``) to a file by its ending.

    In CSV, lists are joined with semicolons, an empty place standing for null.
    """
    store, name = store_of(out, storage_options)
    if out.endswith(".parquet"):
        meta = {**(table.schema.metadata or {}), _META: json.dumps(dict(answer)).encode()}
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(meta), sink, compression="zstd")
        data = sink.getvalue()
    elif out.endswith(".json"):
        data = json_bytes({**answer, "rows": table.to_pylist()})
    else:
        sink = io.BytesIO()
        csv.write_csv(_flat(table), sink)
        data = sink.getvalue()
    store.write_atomic(name, data)


def _flat(table: pa.Table) -> pa.Table:
    for at, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = [
                _LIST_SEPARATOR.join("" if item is None else _text(item) for item in items)
                for items in table.column(at).to_pylist()
            ]
            table = table.set_column(at, pa.field(field.name, pa.string()), pa.array(texts, pa.string()))
    return table


def _text(item: Any) -> str:
    return f"{item:.6g}" if isinstance(item, float) else str(item)


def read_candidates(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """Candidates and the answer of their search from a Parquet or JSON file.

    Returns
    -------
    table : pyarrow.Table
        Schema ``candidates``.
    answer : dict

    Raises
    ------
    UserError
        If the file is absent, or was not written by ``candidates find`` or ``label`` in one of these forms.
    """
    store, name = store_of(url, storage_options)
    schema = load_table("candidates")
    try:
        data = store.read_bytes(name)
        if name.endswith(".json"):
            document = json.loads(data)
            table = pa.Table.from_pylist(document.pop("rows"), schema.arrow)
            return table, document
        table = pq.read_table(pa.BufferReader(data))
        answer: dict[str, Any] = json.loads((table.schema.metadata or {})[_META])
    except FileNotFoundError:
        raise UserError(f"The file of candidates '{url}' is not there.") from None
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"'{url}' holds no candidates of this program ({type(error).__name__}).",
            hint="Give a .parquet or .json file that `applecider-batch candidates find` wrote.",
        ) from error
    return schema.conform(table), answer


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
