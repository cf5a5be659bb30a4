"""Avro records read one at a time by fastavro, into the same Arrow columns as :mod:`avro_columns`.

For what is read alone: damaged records, small groups, very long histories, and schemas with maps or mixed
unions (whose values become JSON text).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from applecider_batch.archive.avro import WriterSchema

_PRIMITIVES = {
    "null": pa.int64(),
    "boolean": pa.bool_(),
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}


class _NoColumnError(Exception):
    """The type has no column of its own: JSON text."""


def to_json(value: Any) -> str:
    """Canonical JSON of any value a packet can hold: NaN and infinities as strings, bytes as hex."""
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def records_to_arrow(
    schema: WriterSchema, records: Sequence[dict[str, Any]], kept: frozenset[str], left_out: frozenset[str]
) -> pa.StructArray:
    """Columns of records.

    Parameters
    ----------
    kept : frozenset of str
        Of the records in arrays at the top level (the histories) only these fields are kept.
    left_out : frozenset of str
        Top-level fields to leave out.

    Returns
    -------
    StructArray, length ``len(records)``
    """
    kind, as_text = _layout(schema, kept, left_out)
    if as_text:
        records = [_with_text(record, as_text) for record in records]
    return pa.array(records, kind)


@functools.lru_cache(maxsize=128)
def _layout(schema: WriterSchema, kept: frozenset[str], left_out: frozenset[str]) -> tuple[pa.DataType, Any]:
    named: dict[str, Any] = {}
    fields, as_text = [], {}
    for f in schema.parsed["fields"]:
        kind, text = _field_type(f["type"], named, kept, 1, (schema.parsed["name"],))
        if f["name"] not in left_out:
            fields.append(pa.field(f["name"], kind))
            if text:
                as_text[f["name"]] = text
    return pa.struct(fields), as_text


def _field_type(
    node: Any, named: dict[str, Any], kept: frozenset[str], depth: int, open_names: tuple[str, ...]
) -> tuple[pa.DataType, Any]:
    """Arrow type of a field, and what below it becomes JSON text: False, True or a dict of fields."""
    try:
        return _arrow_type(node, named, kept, depth, open_names, False)
    except _NoColumnError:
        return pa.string(), True


def _arrow_type(
    node: Any,
    named: dict[str, Any],
    kept: frozenset[str],
    depth: int,
    open_names: tuple[str, ...],
    history: bool,
) -> tuple[pa.DataType, Any]:
    if isinstance(node, list):
        others = [branch for branch in node if branch != "null"]
        if len(others) != 1:
            for branch in others:  # so that the names they define are known
                _field_type(branch, named, kept, depth, open_names)
            raise _NoColumnError
        return _arrow_type(others[0], named, kept, depth, open_names, history)
    if isinstance(node, str):
        if node in _PRIMITIVES:
            return _PRIMITIVES[node], False
        if node in open_names or node not in named:
            raise _NoColumnError
        return _arrow_type(named[node], named, kept, depth, open_names, history)
    kind = node["type"]
    if kind in ("record", "error"):
        named[node["name"]] = node
        below = (*open_names, node["name"])
        types = {f["name"]: _field_type(f["type"], named, kept, depth + 1, below) for f in node["fields"]}
        types = {name: found for name, found in types.items() if not history or name in kept}
        as_text = {name: text for name, (_, text) in types.items() if text}
        return pa.struct([pa.field(name, found) for name, (found, _) in types.items()]), as_text or False
    if kind == "array":
        item, text = _arrow_type(node["items"], named, kept, depth + 1, open_names, depth == 1)
        return pa.list_(item), text
    if kind == "enum":
        named[node["name"]] = node
        return pa.string(), False
    if kind == "fixed":
        named[node["name"]] = node
        return pa.binary(), False
    if kind == "map":
        _field_type(node["values"], named, kept, depth + 1, open_names)
        raise _NoColumnError
    return _arrow_type(kind, named, kept, depth, open_names, history)


def _with_text(value: Any, as_text: Any) -> Any:
    if value is None or not as_text:
        return value
    if as_text is True:
        return to_json(value)
    if isinstance(value, list):
        return [_with_text(item, as_text) for item in value]
    return {key: _with_text(item, as_text.get(key, False)) for key, item in value.items()}
