"""Many Avro records of one writer schema straight into Arrow columns.

Every record keeps its own cursor and all records move together: a field is read for all of them with a few NumPy
operations, an array item by item for the records that still have items.  So a damaged record spoils nothing but
itself: its cursor leaves its bytes or does not end at their end, and it is handed back to be looked at alone.
The values equal those of ``fastavro``, which is the oracle of the tests and reads what this module hands back.

Schemas with maps or with unions other than "null or one type" are not read here (:func:`compile_schema` says so).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.avro import WriterSchema

_STEP_COST = 1.0  # of reading one more item of an array for any number of records, in about 0.7 ms ...
_RECORD_COST, _ITEM_COST = 2.0, 0.03  # ... and of handing a record with its items to fastavro instead


class UnsupportedSchemaError(Exception):
    """The schema needs fastavro."""


# --- columns as they are read -------------------------------------------------------------------------------


@dataclass
class Leaf:
    """Numbers, booleans or enum codes: ``values`` (n,), ``valid`` (n,) or None for no nulls."""

    values: np.ndarray
    valid: np.ndarray | None
    type: pa.DataType
    symbols: tuple[str, ...] = ()

    def take(self, index: np.ndarray) -> Leaf:
        valid = None if self.valid is None else self.valid[index]
        return Leaf(self.values[index], valid, self.type, self.symbols)

    def spread(self, index: np.ndarray, size: int) -> Leaf:
        values = np.zeros(size, self.values.dtype)
        values[index] = self.values
        return Leaf(values, _spread_valid(self.valid, index, size), self.type, self.symbols)

    def to_arrow(self, buffer: np.ndarray) -> pa.Array:
        mask = None if self.valid is None else ~self.valid
        if self.symbols:
            codes = pa.array(self.values.astype(np.int32), mask=mask)
            return pa.DictionaryArray.from_arrays(codes, pa.array(self.symbols, pa.string())).cast(pa.string())
        return pa.array(self.values, self.type, mask=mask)


@dataclass
class Text:
    """Strings or bytes, as places in the buffer: ``start`` and ``length`` (n,)."""

    start: np.ndarray
    length: np.ndarray
    valid: np.ndarray | None
    type: pa.DataType

    def take(self, index: np.ndarray) -> Text:
        valid = None if self.valid is None else self.valid[index]
        return Text(self.start[index], self.length[index], valid, self.type)

    def spread(self, index: np.ndarray, size: int) -> Text:
        start, length = np.zeros(size, np.int64), np.zeros(size, np.int64)
        start[index], length[index] = self.start, self.length
        return Text(start, length, _spread_valid(self.valid, index, size), self.type)

    def to_arrow(self, buffer: np.ndarray) -> pa.Array:
        length = self.length if self.valid is None else np.where(self.valid, self.length, 0)
        ends = np.cumsum(length)
        total = int(ends[-1]) if len(ends) else 0
        place = np.repeat(self.start - (ends - length), length) + np.arange(total)
        offsets = np.concatenate([[0], ends]).astype(np.int64)
        kind = pa.large_string() if pa.types.is_string(self.type) else pa.large_binary()
        bitmap = None if self.valid is None else pa.array(self.valid).buffers()[1]
        array = pa.Array.from_buffers(
            kind, len(length), [bitmap, pa.py_buffer(offsets), pa.py_buffer(buffer[place])]
        )
        array.validate(full=True)  # UTF-8
        return array.cast(self.type)


@dataclass
class Struct:
    """Records: one column per kept field."""

    fields: dict[str, Column]
    size: int
    valid: np.ndarray | None

    def take(self, index: np.ndarray) -> Struct:
        valid = None if self.valid is None else self.valid[index]
        return Struct({name: col.take(index) for name, col in self.fields.items()}, len(index), valid)

    def spread(self, index: np.ndarray, size: int) -> Struct:
        fields = {name: col.spread(index, size) for name, col in self.fields.items()}
        return Struct(fields, size, _spread_valid(self.valid, index, size))

    def to_arrow(self, buffer: np.ndarray) -> pa.Array:
        mask = None if self.valid is None else pa.array(~self.valid)
        arrays = [col.to_arrow(buffer) for col in self.fields.values()]
        if not arrays:
            return pa.array([{}] * self.size, pa.struct([]), mask=None if mask is None else mask.to_numpy(False))
        return pa.StructArray.from_arrays(arrays, list(self.fields), mask=mask)


@dataclass
class Items:
    """Arrays: ``counts`` (n,) and all items one record after the other."""

    counts: np.ndarray
    items: Column
    valid: np.ndarray | None

    def take(self, index: np.ndarray) -> Items:
        starts = np.cumsum(self.counts) - self.counts
        counts = self.counts[index]
        place = np.repeat(starts[index] - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
        return Items(counts, self.items.take(place), None if self.valid is None else self.valid[index])

    def spread(self, index: np.ndarray, size: int) -> Items:
        counts = np.zeros(size, np.int64)
        counts[index] = self.counts
        return Items(counts, self.items, _spread_valid(self.valid, index, size))

    def to_arrow(self, buffer: np.ndarray) -> pa.Array:
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int32))
        mask = None if self.valid is None else pa.array(~self.valid)
        return pa.ListArray.from_arrays(offsets, self.items.to_arrow(buffer), mask=mask)


Column = Leaf | Text | Struct | Items


def _spread_valid(valid: np.ndarray | None, index: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros(size, bool)
    out[index] = True if valid is None else valid
    return out


def _concat_valid(columns: Sequence[Any], sizes: Sequence[int]) -> np.ndarray | None:
    if all(col.valid is None for col in columns):
        return None
    return np.concatenate(
        [np.ones(n, bool) if c.valid is None else c.valid for c, n in zip(columns, sizes, strict=True)]
    )


def concat(columns: Sequence[Any]) -> Column:
    """One column of several of the same kind."""
    first = columns[0]
    if isinstance(first, Leaf):
        values = np.concatenate([c.values for c in columns])
        return Leaf(values, _concat_valid(columns, [len(c.values) for c in columns]), first.type, first.symbols)
    if isinstance(first, Text):
        valid = _concat_valid(columns, [len(c.start) for c in columns])
        start = np.concatenate([c.start for c in columns])
        return Text(start, np.concatenate([c.length for c in columns]), valid, first.type)
    if isinstance(first, Struct):
        fields = {name: concat([c.fields[name] for c in columns]) for name in first.fields}
        sizes = [c.size for c in columns]
        return Struct(fields, sum(sizes), _concat_valid(columns, sizes))
    sizes = [len(c.counts) for c in columns]
    counts = np.concatenate([c.counts for c in columns])
    return Items(counts, concat([c.items for c in columns]), _concat_valid(columns, sizes))


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

    def long_at(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Zigzag varints at the places ``at`` (n,): values int64 and the places behind them."""
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
        return ((value >> np.uint64(1)) ^ -(value & np.uint64(1))).view(np.int64), at + size

    def check(self, rows: np.ndarray, at: np.ndarray) -> None:
        """Mark the records whose cursor has left their bytes and stop it (in place)."""
        over = at > self.ends[rows]
        if over.any():
            self.bad[rows[over]] = True
            at[over] = self.ends[rows[over]]

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

    def read(self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool) -> tuple[Leaf | None, np.ndarray]:
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
            return Leaf(data.buffer[at] == 1, None, self.type)
        return Leaf(data.views[self.kind][at], None, self.type)


@dataclass(frozen=True)
class _Long:
    """int, long and enum."""

    symbols: tuple[str, ...] = ()

    def read(self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool) -> tuple[Leaf | None, np.ndarray]:
        values, behind = data.long_at(at)
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

    def read(self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool) -> tuple[Text | None, np.ndarray]:
        if self.fixed >= 0:
            length, start = np.full(len(at), self.fixed, np.int64), at.copy()
        else:
            length, start = data.long_at(at)
        wrong = (length < 0) | (length > data.ends[rows] - start)
        behind = start + length
        if wrong.any():
            data.spoil(rows, behind, wrong)
            start[wrong], length[wrong] = 0, 0
        return (Text(start, length, None, self.type) if keep else None), behind

    read_where = _Long.read_where  # type: ignore[assignment]


@dataclass(frozen=True)
class _Null:
    def read(self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool) -> tuple[Leaf | None, np.ndarray]:
        empty = Leaf(np.zeros(len(rows), np.int64), np.zeros(len(rows), bool), pa.int64())
        return (empty if keep else None), at.copy()


@dataclass(frozen=True)
class _Record:
    names: tuple[str, ...]
    readers: tuple[Any, ...]
    kept: tuple[bool, ...]

    def read(self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool) -> tuple[Struct | None, np.ndarray]:
        fields: dict[str, Column] = {}
        for name, reader, kept in zip(self.names, self.readers, self.kept, strict=True):
            column, at = reader.read(data, rows, at, keep and kept)
            if column is not None:
                fields[name] = column
        return (Struct(fields, len(rows), None) if keep else None), at

    read_where = _Long.read_where  # type: ignore[assignment]


@dataclass(frozen=True)
class _Array:
    item: Any

    def read(self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool) -> tuple[Items | None, np.ndarray]:
        at = at.copy()
        counts = np.zeros(len(rows), np.int64)
        left = np.zeros(len(rows), np.int64)
        live = np.arange(len(rows))
        parts: list[Any] = []
        owners: list[np.ndarray] = []
        while live.size:
            if (left[live] == 0).any():
                live = self._next_blocks(data, rows, at, left, live)
                if not live.size:
                    break
            part, behind = self.item.read(data, rows[live], at[live], keep)
            data.check(rows[live], behind)
            at[live] = behind
            parts.append(part)
            owners.append(live)
            counts[live] += 1
            left[live] -= 1
            live = live[~data.bad[rows[live]]]
        if not keep:
            return None, at
        if not parts:
            part, _ = self.item.read(data, rows[:0], at[:0], True)
            return Items(counts, part, None), at
        order = np.argsort(np.concatenate(owners), kind="stable")
        return Items(counts, concat(parts).take(order), None), at

    @staticmethod
    def _next_blocks(
        data: Bodies, rows: np.ndarray, at: np.ndarray, left: np.ndarray, live: np.ndarray
    ) -> np.ndarray:
        """Read the next block's count where a block is used up; arrays of very many items go to fastavro."""
        need = live[left[live] == 0]
        count, behind = data.long_at(at[need])
        negative = count < 0
        if negative.any():  # the block's size in bytes stands behind its count
            _, behind[negative] = data.long_at(behind[negative])
            count = np.abs(count)
        wrong = (count < 0) | (count > data.ends[rows[need]] - behind)
        if wrong.any():
            data.spoil(rows[need], behind, wrong)
            count[wrong] = 0
        at[need], left[need] = behind, count
        live = live[left[live] > 0]
        limit = _best_limit(left[live])
        if limit is not None:
            late = left[live] > limit
            data.bad[rows[live[late]]] = True
            live = live[~late]
        return live

    read_where = _Long.read_where  # type: ignore[assignment]


def _best_limit(left: np.ndarray) -> int | None:
    """Items up to which reading all records together is cheaper than handing the longest ones to fastavro."""
    if not left.size:
        return None
    sizes = np.sort(left)
    alone = _RECORD_COST + _ITEM_COST * sizes
    behind = np.concatenate([np.cumsum(alone[::-1])[::-1][1:], [0.0]])  # of handing over all that are longer
    best = int(np.argmin(_STEP_COST * sizes + behind))
    return int(sizes[best]) if sizes[best] < sizes[-1] else None


@dataclass(frozen=True)
class _Nullable:
    reader: Any
    null: int  # the byte of the null branch, 0 or 2

    def read(self, data: Bodies, rows: np.ndarray, at: np.ndarray, keep: bool) -> tuple[Column | None, np.ndarray]:
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
        If it holds maps, recursion or unions other than "null or one type".
    """
    builder = _Builder(kept)
    reader = builder.build(schema.parsed, 0, ())
    # Between two checks of a cursor each field is read at most once, and none but text moves it over 10 bytes.
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
            return _Array(self.build(node["items"], depth + 1, open_names, history=depth == 1))
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
