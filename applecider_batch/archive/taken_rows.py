"""Rows of a table in another order, of which large values (stamps) are copied once, when they are wanted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


class TakenRows:
    """Chosen rows of a table, some at a time.

    Parameters
    ----------
    table : Table
    rows : ndarray, int64, shape (n,)
        Which rows, in their new order.
    """

    def __init__(self, table: pa.Table, rows: np.ndarray) -> None:
        self.schema = table.schema
        self.num_rows = len(rows)
        kinds = {name: table.schema.field(name).type for name in table.column_names}
        self._values = {
            name: _values(table.column(name), rows)
            for name, kind in kinds.items()
            if pa.types.is_binary(kind)
        }
        self._light = table.drop_columns(list(self._values)).take(pa.array(rows))

    def column(self, name: str) -> pa.ChunkedArray:
        """A column that is not binary."""
        return self._light.column(name)

    def slice(self, start: int, count: int) -> pa.Table:
        """The rows from ``start`` on, copied."""
        light = self._light.slice(start, count)
        columns = dict(zip(light.column_names, light.columns, strict=True))
        for name, values in self._values.items():
            columns[name] = _joined(values[start : start + count])
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a table as ``table.take`` gives them, faster where values are large and chunks many."""
    if table.nbytes >= 1 << 31:  # more than the offsets of one array can say: as Arrow does it, or refuses to
        return table.take(pa.array(rows))
    return TakenRows(table, rows).slice(0, len(rows))


def _values(column: pa.ChunkedArray, rows: np.ndarray) -> list[np.ndarray | None]:
    """Views of the values of some rows, None for null."""
    views: list[np.ndarray | None] = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        places = np.frombuffer(offsets, np.int32, len(chunk) + 1, 4 * chunk.offset).tolist()
        here = chunk.is_valid().to_pylist()
        held = np.frombuffer(data if data is not None else b"", np.uint8)
        views += [
            held[start:stop] if ok else None
            for start, stop, ok in zip(places, places[1:], here, strict=False)
        ]
    return [views[row] for row in rows.tolist()]


def _joined(values: list[np.ndarray | None]) -> pa.Array:
    given = [value for value in values if value is not None]
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    data = pa.allocate_buffer(int(lengths.sum()))
    if given:
        np.concatenate(given, out=np.frombuffer(data, np.uint8))
    here = np.fromiter((value is not None for value in values), bool, len(values))
    bitmap = None if here.all() else pa.array(here).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), len(values), [bitmap, pa.py_buffer(ends), data])
