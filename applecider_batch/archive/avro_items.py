"""Items of Avro arrays, the histories of packets: read record by record in compiled code.

An array is blocks of items: their count (negative: its absolute value, and the block's bytes behind it), the
items; a count of 0 ends it. Items are flat here: a record of numbers, text and "null or one of these", or one
such value. Each is a row of `FlatItems`; what is damaged in any way ends the record that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from applecider_batch.archive.avro_columns import Column, Items, Leaf, Struct, Text
from applecider_batch.compiled import compiled

NULL, BOOLEAN, FLOAT, DOUBLE, LONG, ENUM, TEXT, FIXED = range(8)
_NOT_NULLABLE = -1


@dataclass(frozen=True)
class Field:
    """A field of an item.

    Attributes
    ----------
    name : str
        "" where the item is no record.
    kind : int
        NULL, BOOLEAN, FLOAT, DOUBLE, LONG, ENUM, TEXT or FIXED.
    type : DataType
    null : int
        The byte of the null branch of a union, 0 or 2; -1 if there is no union.
    size : int
        Bytes of FIXED.
    symbols : tuple of str
        Of ENUM.
    kept : bool
    """

    name: str
    kind: int
    type: pa.DataType
    null: int = _NOT_NULLABLE
    size: int = 0
    symbols: tuple[str, ...] = ()
    kept: bool = True


@dataclass(frozen=True)
class FlatItems:
    """The items of an array, a column per field that is kept."""

    fields: tuple[Field, ...]

    def read(
        self, buffer: np.ndarray, at: np.ndarray, ends: np.ndarray, keep: bool
    ) -> tuple[Items | None, np.ndarray, np.ndarray]:
        """Read the array of each of n records.

        Parameters
        ----------
        buffer : ndarray, uint8
        at, ends : ndarray, int64, shape (n,)
            Where each array begins, and where its record ends.
        keep : bool
            Whether the values are wanted; None is given for them otherwise.

        Returns
        -------
        items : Items or None
        behind : ndarray, int64, shape (n,)
            The place behind each array.
        bad : ndarray, bool, shape (n,)
            Records whose array is damaged; it has no items then.
        """
        kept = [field for field in self.fields if field.kept]
        slots = np.cumsum([field.kept for field in self.fields]) - 1
        table = np.array(
            [
                (field.kind, field.null, len(field.symbols) or field.size, slot if field.kept else -1)
                for field, slot in zip(self.fields, slots.tolist(), strict=True)
            ],
            np.int64,
        ).reshape(-1, 4)
        n = len(at)
        counts, behind, bad = np.zeros(n, np.int64), np.empty(n, np.int64), np.zeros(n, bool)
        none = np.empty((0, 0), np.int64)
        _walk(buffer, at, ends, table, counts, behind, bad, False, none, none, none.astype(bool))
        counts[bad], behind[bad] = 0, ends[bad]
        if not keep:
            return None, behind, bad
        shape = len(kept), int(counts.sum())
        values, lengths, valid = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.ones(shape, bool)
        _walk(buffer, at, ends, table, counts, behind, bad, True, values, lengths, valid)
        columns = [_column(*each) for each in zip(kept, values, lengths, valid, strict=True)]
        if self.fields and not self.fields[0].name:
            return Items(counts, columns[0], None), behind, bad
        names = [field.name for field in kept]
        return (
            Items(counts, Struct(dict(zip(names, columns, strict=True)), shape[1], None), None),
            behind,
            bad,
        )


def _column(field: Field, values: np.ndarray, lengths: np.ndarray, valid: np.ndarray) -> Column:
    some = None if field.null == _NOT_NULLABLE and field.kind != NULL else valid
    if field.kind in (TEXT, FIXED):
        return Text(values, lengths, some, field.type)
    if field.kind == BOOLEAN:
        return Leaf(values != 0, some, field.type)
    if field.kind == FLOAT:
        return Leaf(values.astype(np.uint32).view(np.float32), some, field.type)
    if field.kind == DOUBLE:
        return Leaf(values.view(np.float64), some, field.type)
    return Leaf(values, some, field.type, field.symbols)


@compiled
def _walk(
    buffer: np.ndarray,
    at: np.ndarray,
    ends: np.ndarray,
    table: np.ndarray,
    counts: np.ndarray,
    behind: np.ndarray,
    bad: np.ndarray,
    fill: bool,
    values: np.ndarray,
    lengths: np.ndarray,
    valid: np.ndarray,
) -> None:
    """Go through the arrays: without ``fill`` for counts, places behind and damage, else for the values.

    ``table`` (fields, 4) holds kind, null branch, symbols or bytes, and row of ``values`` (-1: not kept).
    """
    item = 0
    for record in range(len(at)):
        if fill and bad[record]:
            continue
        place, end = at[record], ends[record]
        number = np.int64(0)  # what the last varint said
        left, count, field, skip = np.int64(0), np.int64(0), 0, False
        done = damaged = False
        while not done and not damaged:
            # --- between items: the count of the next block, or its bytes after a negative count
            block = field == 0 and left == 0
            kind, slot = LONG, -1
            if not block:
                kind, slot = table[field, 0], table[field, 3]
                null = table[field, 1]
                if null >= 0:
                    if place >= end or (buffer[place] != null and buffer[place] != 2 - null):
                        damaged = True
                        continue
                    place += 1
                some = null < 0 or buffer[place - 1] != null
                if not some or kind == NULL:
                    if fill and slot >= 0:
                        valid[slot, item] = False
                    kind = NULL
            # --- one value
            start, size = place, np.int64(0)
            if kind in (LONG, ENUM, TEXT):
                raw, shift, more = np.uint64(0), np.uint64(0), True
                while more:
                    if place >= end or shift > 63 or (shift == 63 and buffer[place] > 1):
                        damaged = True
                        break
                    byte = np.uint64(buffer[place])
                    place += 1
                    raw |= (byte & np.uint64(127)) << shift
                    shift += np.uint64(7)
                    more = bool(byte >= 128)
                if damaged:
                    continue
                number = np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1))
                start = place
                if kind == TEXT:
                    size = number
                elif kind == ENUM and not 0 <= number < table[field, 2]:
                    damaged = True
            elif kind == FLOAT:
                size = np.int64(4)
            elif kind == DOUBLE:
                size = np.int64(8)
            elif kind == BOOLEAN:
                size = np.int64(1)
            elif kind == FIXED:
                size = table[field, 2]
            if damaged or size < 0 or size > end - place:
                damaged = True
                continue
            place += size
            if block:
                if skip:  # the block's bytes
                    skip, left = False, count
                    continue
                count = abs(number)
                if number == 0:
                    done = True
                elif count < 0 or count > end - place:
                    damaged = True
                elif number < 0:
                    skip = True
                else:
                    left = count
                continue
            if fill and slot >= 0 and kind != NULL:
                if kind in (TEXT, FIXED):
                    values[slot, item], lengths[slot, item] = start, size
                elif kind in (LONG, ENUM):
                    values[slot, item] = number
                else:
                    bits = np.uint64(0)
                    for i in range(size):
                        bits |= np.uint64(buffer[start + i]) << np.uint64(8 * i)
                    values[slot, item] = np.int64(bits)
            # --- the next field
            field += 1
            if field == len(table):
                field = 0
                left -= 1
                item += 1
                if not fill:
                    counts[record] += 1
        if not fill:
            behind[record], bad[record] = place, damaged
