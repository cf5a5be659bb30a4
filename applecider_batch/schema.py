"""The contract, read from ``schemas/``: columns with type, nullability, unit, UCD and description.

Each ``schemas/<name>.toml`` holds::

    title = "…"
    [[column]]
    name = "candid"
    type = "int64"            # int8 … uint64, float32, float64, bool, string, binary, list<float32>
    nullable = false
    unit = ""                 # astropy unit string, "" for none
    ucd = "meta.id"
    description = "…"

A table with ``extends = "other"`` has all columns of that one, too: first its own, in which a name alone puts
a column of the other at that place, then the rest.

The Arrow schemas, the VOTable fields and the documentation tables are all made from these files.
"""

from __future__ import annotations

import functools
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from applecider_batch.errors import InternalError, UserError

_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "list<float32>": pa.list_(pa.field("item", pa.float32(), nullable=True)),
    "list<float64>": pa.list_(pa.field("item", pa.float64(), nullable=True)),
    "list<int64>": pa.list_(pa.field("item", pa.int64(), nullable=True)),
    "list<string>": pa.list_(pa.field("item", pa.string(), nullable=True)),
}


def schemas_folder() -> Path:
    """The folder of the schema files, in a checkout or in an installed wheel."""
    return _data_folder("schemas")


def jobs_folder() -> Path:
    """The folder of the Ray job entry points, in a checkout or in an installed wheel."""
    return _data_folder("jobs")


def _data_folder(name: str) -> Path:
    here = Path(__file__).resolve().parent
    for folder in (here / "_data" / name, here.parent / name):
        if folder.is_dir():
            return folder
    raise InternalError(
        f"The folder '{name}' is neither in the package nor beside it; reinstall the package."
    )


@dataclass(frozen=True)
class Column:
    """One column of a table: name, Arrow type name, nullability, unit, UCD and what it is."""

    name: str
    type: str
    nullable: bool
    unit: str
    ucd: str
    description: str

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow data type."""
        return _TYPES[self.type]


@dataclass(frozen=True)
class TableSchema:
    """A table's columns, in order."""

    name: str
    title: str
    columns: tuple[Column, ...]
    extends: str | None = None

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    @functools.cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema; unit, UCD and description are each field's metadata."""
        return pa.schema([self._field(column) for column in self.columns])

    @staticmethod
    def _field(column: Column) -> pa.Field:
        metadata = {"unit": column.unit, "ucd": column.ucd, "description": column.description}
        return pa.field(
            column.name, column.arrow_type, column.nullable, {k: v for k, v in metadata.items() if v}
        )

    def column(self, name: str) -> Column:
        """The column of that name."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def empty(self) -> pa.Table:
        """A table of this schema without rows."""
        return self.arrow.empty_table()

    def conform(self, table: pa.Table) -> pa.Table:
        """Bring a table into this schema: order, types, missing nullable columns as null; others are dropped.

        Raises
        ------
        UserError
            If a column that must not be null is missing, holds nulls, or a type cannot be cast.
        """
        arrays = []
        given = dict(zip(table.column_names, table.columns, strict=True))
        for column in self.columns:
            array = given.get(column.name)
            if array is None:
                if not column.nullable:
                    raise UserError(
                        f"The {self.name} table lacks the column '{column.name}'; it has "
                        f"{table.column_names}."
                    )
                arrays.append(pa.nulls(table.num_rows, column.arrow_type))
                continue
            if array.type != column.arrow_type:
                try:
                    array = array.cast(column.arrow_type)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise UserError(
                        f"The {self.name} column '{column.name}' is {array.type}, not {column.type}: {error}."
                    ) from error
            if not column.nullable and array.null_count:
                raise UserError(f"The {self.name} column '{column.name}' holds {array.null_count} nulls.")
            arrays.append(array)
        return pa.table(arrays, schema=self.arrow)

    def markdown(self) -> str:
        """The documentation table."""
        lines = ["| column | type | null | unit | UCD | what |", "|---|---|---|---|---|---|"]
        others = load_table(self.extends).columns if self.extends else ()
        for c in self.columns:
            if c in others:
                continue
            null = "yes" if c.nullable else "no"
            lines.append(f"| `{c.name}` | {c.type} | {null} | {c.unit} | {c.ucd} | {c.description} |")
        if self.extends:
            lines += ["", f"All columns of [{self.extends}](#{self.extends}) as well."]
        return "\n".join(lines)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; without a copy, which Arrow's own functions make, if it is one already."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def list_tables() -> list[str]:
    """Names of all tables in the contract."""
    return sorted(path.stem for path in schemas_folder().glob("*.toml"))


@functools.cache
def load_table(name: str) -> TableSchema:
    """Read ``schemas/<name>.toml``.

    Raises
    ------
    InternalError
        If there is no such table or its file is wrong.
    """
    path = schemas_folder() / f"{name}.toml"
    if not path.is_file():
        raise InternalError(f"There is no schema '{name}'; there are {list_tables()}.")
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    parent = load_table(document["extends"]) if "extends" in document else None
    columns = tuple(
        parent.column(entry["name"]) if parent and "type" not in entry else _column(name, entry)
        for entry in document["column"]
    )
    if parent:
        own = {column.name for column in columns}
        columns += tuple(column for column in parent.columns if column.name not in own)
    if len({column.name for column in columns}) != len(columns):
        raise InternalError(f"schemas/{name}.toml names a column twice.")
    return TableSchema(name, document["title"], columns, document.get("extends"))


def _column(table: str, entry: dict[str, Any]) -> Column:
    if entry["type"] not in _TYPES:
        raise InternalError(
            f"schemas/{table}.toml: '{entry['name']}' has the unknown type '{entry['type']}'."
        )
    return Column(
        name=entry["name"],
        type=entry["type"],
        nullable=entry.get("nullable", True),
        unit=entry.get("unit", ""),
        ucd=entry.get("ucd", ""),
        description=entry["description"],
    )


@functools.cache
def load_answers() -> dict[str, dict[str, str]]:
    """The JSON answers of the commands: per command, key -> what it is (``schemas/answers.json``)."""
    return json.loads((schemas_folder() / "answers.json").read_text(encoding="utf-8"))


def reference() -> str:
    """The documentation page of all tables (``python -m applecider_batch.schema > docs/schemas.md``)."""
    parts = ["# Tables", "", "Made from `schemas/` by `python -m applecider_batch.schema > docs/schemas.md`."]
    for name in list_tables():
        table = load_table(name)
        parts += ["", f"## {name}", "", f"{table.title}.", "", table.markdown()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
