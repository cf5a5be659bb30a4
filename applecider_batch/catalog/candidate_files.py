"""Candidates in files: Parquet and JSON carry the answer of the search along, CSV the rows alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.catalog.table_files import write_table
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from applecider_batch.storage import store_of

_ABOUT = "applecider-batch candidates"


def write_candidates(
    table: pa.Table, out: str, answer: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Write candidates (schema ``candidates``) to a file by its ending."""
    write_table(table, out, storage_options, about=(_ABOUT, answer))


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
        answer: dict[str, Any] = json.loads((table.schema.metadata or {})[_ABOUT.encode()])
    except FileNotFoundError:
        raise UserError(f"The file of candidates '{url}' is not there.") from None
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"'{url}' holds no candidates of this program ({type(error).__name__}).",
            hint="Give a .parquet or .json file that `applecider-batch candidates find` wrote.",
        ) from error
    return schema.conform(table), answer
