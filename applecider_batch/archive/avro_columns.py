"""Columns of Avro records while they are read, and their way to Arrow.

A column is n values of one type of the writer schema. Text stays a pair of places in the records' bytes
until it is asked for, so stamps are never copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


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
            return pa.DictionaryArray.from_arrays(codes, pa.array(self.symbols, pa.string())).cast(
                pa.string()
            )
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
            return pa.array(
                [{}] * self.size, pa.struct([]), mask=None if mask is None else mask.to_numpy(False)
            )
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
