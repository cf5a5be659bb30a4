"""Many Avro records of one writer schema read at once.

Every record keeps its own cursor and all records move together: a field is read for all of them with a few
NumPy operations, an array record by record in compiled code (`avro_items`). So a damaged record spoils
nothing but itself: its cursor leaves its bytes or does not end at their end, and it is handed back to be
looked at alone. The values equal those of ``fastavro``, which is the oracle of the tests and reads what is
handed back.

Schemas with maps, with unions other than "null or one type" or with more than flat records in arrays are not
read here (``compile_schema`` says so).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.avro import WriterSchema
from applecider_batch.archive.avro_columns import Column, Items, Leaf, Struct, Text
from applecider_batch.archive.avro_items import (
    BOOLEAN,
    DOUBLE,
    ENUM,
    FIXED,
    FLOAT,
    LONG,
    NULL,
    TEXT,
    Field,
    FlatItems,
)


class UnsupportedSchemaError(Exception):
    """The schema needs fastavro."""


# --- the records' bytes and cursors -------------------------------------------------------------------------


@dataclass
class Bodies:
    """Bytes of n records in one buffer, with views of it for numbers at any place.

    Attributes
    ----------
    starts, ends : ndarray, int64, shape (n,)
    bad : ndarray, bool, shape (n,)
        Records that could not be read here.
    """

    buffer: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    bad: np.ndarray = field(init=False)
    views: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.bad = np.zeros(len(self.starts), bool)
        size = len(self.buffer)
        self.views = {
            kind: np.ndarray((size - int(kind[2:]) + 1,), kind, self.buffer.data, strides=(1,))
            for kind in ("<f4", "<f8", "<u8")
        }

    @classmethod
    def join(cls, bodies: Sequence[bytes], padding: int) -> Bodies:
        """Put records one after the other, with zeros behind that a runaway cursor may read."""
        lengths = np.fromiter((len(b) for b in bodies), np.int64, len(bodies))
        ends = np.cumsum(lengths)
        buffer = np.frombuffer(b"".join([*bodies, bytes(padding)]), np.uint8)
        return cls(buffer, ends - lengths, ends)

    def long_at(self, rows: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Zigzag varints of the records ``rows`` at ``at`` (n,): values int64 and the places behind them."""
        word = self.views["<u8"][at]
        if not np.bitwise_and(word, 0x80).any():
            value = word & np.uint64(0x7F)
            return ((value >> np.uint64(1)) ^ -(value & np.uint64(1))).view(np.int64), at + 1
        stop = ~word & np.uint64(0x8080808080808080)
        whole = stop == 0
        low = stop & -stop  # the 0x80 bit of the last byte
        size = ((np.bitwise_count(low - np.uint64(1)).astype(np.int64)) + 1) >> 3
        word &= low | (low - np.uint64(1))
        value = _squeeze_varint(word)
        if whole.any():  # nine or ten bytes: candid
            far = at[whole]
            ninth = self.buffer[far + 8].astype(np.uint64)
            tenth = self.buffer[far + 9].astype(np.uint64)
            longer = ninth >= 0x80
            head = _squeeze_varint(self.views["<u8"][far])
            head |= (ninth & np.uint64(0x7F)) << np.uint64(56)
            head |= np.where(longer, (tenth & np.uint64(0x01)) << np.uint64(63), np.uint64(0))
            value[whole] = head
            size[whole] = 9 + longer
            self.bad[rows[whole][longer & (tenth > 1)]] = True  # more than 64 bits: fastavro decides
        return ((value >> np.uint64(1)) ^ -(value & np.uint64(1))).view(np.int64), at + size

    def spoil(self, rows: np.ndarray, at: np.ndarray, wrong: np.ndarray) -> None:
        """Mark the records of ``wrong`` and put their cursors to the end (in place)."""
        self.bad[rows[wrong]] = True
        at[wrong] = self.ends[rows[wrong]]


def _squeeze_varint(word: np.ndarray) -> np.ndarray:
    """Take the continuation bits out of little-endian groups of seven bits."""
    u = np.uint64
    word = word & u(0x7F7F7F7F7F7F7F7F)
    word = (word & u(0x007F007F007F007F)) | ((word & u(0x7F007F007F007F00)) >> u(1))
    word = (word & u(0x00003FFF00003FFF)) | ((word & u(0x3FFF00003FFF0000)) >> u(2))
    return (word & u(0x000000000FFFFFFF)) | ((word & u(0x0FFFFFFF00000000)) >> u(4))


# --- the schema as a tree of readers ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Number:
    """Fixed width: float, double, boolean."""

    kind: str
    width: int
    type: pa.DataType

    def read(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool
    ) -> tuple[Leaf | None, np.ndarray]:
        return (self._values(data, rows, at) if keep else None), at + self.width

    def read_where(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, some: np.ndarray, keep: bool
    ) -> tuple[Leaf | None, np.ndarray]:
        leaf = None
        if keep:
            leaf = self._values(data, rows, at)
            leaf.values[~some] = 0
            leaf.valid = some
        return leaf, at + self.width * some

    def _values(self, data: Bodies, rows: np.ndarray, at: np.ndarray) -> Leaf:
        if self.kind == "boolean":
            return Leaf(data.buffer[at] != 0, None, self.type)
        return Leaf(data.views[self.kind][at], None, self.type)


@dataclass(frozen=True)
class _Long:
    """int, long and enum."""

    symbols: tuple[str, ...] = ()

    def read(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool
    ) -> tuple[Leaf | None, np.ndarray]:
        values, behind = data.long_at(rows, at)
        if self.symbols:
            wrong = (values < 0) | (values >= len(self.symbols))
            if wrong.any():
                data.spoil(rows, behind, wrong)
                values[wrong] = 0
        return (Leaf(values, None, pa.int64(), self.symbols) if keep else None), behind

    def read_where(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, some: np.ndarray, keep: bool
    ) -> tuple[Leaf | None, np.ndarray]:
        index = np.flatnonzero(some)
        leaf, behind = self.read(data, rows[index], at[index], keep)
        at = at.copy()
        at[index] = behind
        return (None if leaf is None else leaf.spread(index, len(rows))), at


@dataclass(frozen=True)
class _Text:
    """string, bytes and fixed."""

    type: pa.DataType
    fixed: int = -1

    def read(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool
    ) -> tuple[Text | None, np.ndarray]:
        if self.fixed >= 0:
            length, start = np.full(len(at), self.fixed, np.int64), at.copy()
        else:
            length, start = data.long_at(rows, at)
        wrong = (length < 0) | (length > data.ends[rows] - start)
        behind = start + length
        if wrong.any():
            data.spoil(rows, behind, wrong)
            start[wrong], length[wrong] = 0, 0
        return (Text(start, length, None, self.type) if keep else None), behind

    read_where = _Long.read_where


@dataclass(frozen=True)
class _Null:
    def read(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool
    ) -> tuple[Leaf | None, np.ndarray]:
        empty = Leaf(np.zeros(len(rows), np.int64), np.zeros(len(rows), bool), pa.int64())
        return (empty if keep else None), at.copy()


@dataclass(frozen=True)
class _Record:
    names: tuple[str, ...]
    readers: tuple[Any, ...]
    kept: tuple[bool, ...]

    def read(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool
    ) -> tuple[Struct | None, np.ndarray]:
        fields: dict[str, Column] = {}
        for name, reader, kept in zip(self.names, self.readers, self.kept, strict=True):
            column, at = reader.read(data, rows, at, keep and kept)
            if column is not None:
                fields[name] = column
        return (Struct(fields, len(rows), None) if keep else None), at

    read_where = _Long.read_where


@dataclass(frozen=True)
class _Array:
    items: FlatItems

    def read(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool
    ) -> tuple[Items | None, np.ndarray]:
        items, behind, bad = self.items.read(data.buffer, at, data.ends[rows], keep)
        data.bad[rows[bad]] = True
        return items, behind

    read_where = _Long.read_where


@dataclass(frozen=True)
class _Nullable:
    reader: Any
    null: int  # the byte of the null branch, 0 or 2

    def read(
        self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool
    ) -> tuple[Column | None, np.ndarray]:
        branch = data.buffer[at]
        some = branch == 2 - self.null
        at = at + 1
        wrong = ~some & (branch != self.null)
        if wrong.any():
            data.spoil(rows, at, wrong)
        column, at = self.reader.read_where(data, rows, at, some, keep)
        return column, at


_PRIMITIVES: dict[str, Any] = {
    "null": _Null(),
    "boolean": _Number("boolean", 1, pa.bool_()),
    "int": _Long(),
    "long": _Long(),
    "float": _Number("<f4", 4, pa.float32()),
    "double": _Number("<f8", 8, pa.float64()),
    "bytes": _Text(pa.binary()),
    "string": _Text(pa.string()),
}


_NUMBERS = {"boolean": BOOLEAN, "<f4": FLOAT, "<f8": DOUBLE}


@dataclass(frozen=True)
class Plan:
    """A compiled schema."""

    reader: _Record
    padding: int


@functools.lru_cache(maxsize=128)
def compile_schema(schema: WriterSchema, kept: frozenset[str]) -> Plan:
    """Make the readers of a schema.

    Parameters
    ----------
    schema : WriterSchema
    kept : frozenset of str
        Of the records in arrays at the top level (the histories) only these fields are kept.

    Raises
    ------
    UnsupportedSchemaError
        If it holds maps, recursion, unions other than "null or one type", or arrays of nested records.
    """
    builder = _Builder(kept)
    reader = builder.build(schema.parsed, 0, ())
    # Each field is read at most once behind the end of a record, and only text moves a cursor over 10 bytes.
    return Plan(reader, 16 * builder.nodes + 64)


class _Builder:
    def __init__(self, kept: frozenset[str]) -> None:
        self.kept = kept
        self.named: dict[str, Any] = {}
        self.nodes = 0

    def build(self, node: Any, depth: int, open_names: tuple[str, ...], history: bool = False) -> Any:
        self.nodes += 1
        if isinstance(node, list):
            return self._union(node, depth, open_names, history)
        if isinstance(node, str):
            if node in _PRIMITIVES:
                return _PRIMITIVES[node]
            if node in open_names or node not in self.named:
                raise UnsupportedSchemaError(f"the type '{node}' holds itself")
            return self.build(self.named[node], depth, open_names, history)
        kind = node["type"]
        if kind in ("record", "error"):
            name = node["name"]
            self.named[name] = node
            fields = node["fields"]
            readers = [self.build(f["type"], depth + 1, (*open_names, name)) for f in fields]
            names = tuple(f["name"] for f in fields)
            kept = tuple(not history or name in self.kept for name in names)
            return _Record(names, tuple(readers), kept)
        if kind == "array":
            return _Array(_flat(self.build(node["items"], depth + 1, open_names, history=depth == 1)))
        if kind == "enum":
            self.named[node["name"]] = node
            return _Long(tuple(node["symbols"]))
        if kind == "fixed":
            self.named[node["name"]] = node
            return _Text(pa.binary(), int(node["size"]))
        if kind == "map":
            raise UnsupportedSchemaError("maps")
        return self.build(kind, depth, open_names, history)

    def _union(self, node: list[Any], depth: int, open_names: tuple[str, ...], history: bool) -> Any:
        others = [branch for branch in node if branch != "null"]
        if len(others) != 1 or len(node) > 2:
            raise UnsupportedSchemaError("unions of several types")
        reader = self.build(others[0], depth, open_names, history)
        if len(node) == 1:
            raise UnsupportedSchemaError("unions of one type")
        return _Nullable(reader, 2 * node.index("null"))


def _flat(item: Any) -> FlatItems:
    if isinstance(item, _Record):
        named = zip(item.names, item.readers, item.kept, strict=True)
        fields = [_field(name, reader, kept) for name, reader, kept in named]
    else:
        fields = [_field("", item, True)]
    if not fields:
        raise UnsupportedSchemaError("arrays of nothing")
    return FlatItems(tuple(fields))


def _field(name: str, reader: Any, kept: bool) -> Field:
    null = -1
    if isinstance(reader, _Nullable):
        reader, null = reader.reader, reader.null
    if isinstance(reader, _Null):
        return Field(name, NULL, pa.int64(), null, kept=kept)
    if isinstance(reader, _Number):
        return Field(name, _NUMBERS[reader.kind], reader.type, null, kept=kept)
    if isinstance(reader, _Long):
        kind = ENUM if reader.symbols else LONG
        return Field(name, kind, pa.int64(), null, symbols=reader.symbols, kept=kept)
    if isinstance(reader, _Text):
        kind = TEXT if reader.fixed < 0 else FIXED
        return Field(name, kind, reader.type, null, max(reader.fixed, 0), kept=kept)
    raise UnsupportedSchemaError("arrays of records or arrays within arrays")


def read_columns(plan: Plan, bodies: Sequence[bytes]) -> tuple[Struct, Bodies]:
    """Read records of one schema.

    Returns
    -------
    columns : Struct
        The top-level fields, n rows; rows of bad records hold nonsense.
    data : Bodies
        The buffer, and in ``bad`` which records have to be read alone.
    """
    data = Bodies.join(bodies, plan.padding)
    rows = np.arange(len(bodies))
    with np.errstate(over="ignore"):
        columns, at = plan.reader.read(data, rows, data.starts.copy(), True)
    data.bad |= at != data.ends
    assert columns is not None
    return columns, data
