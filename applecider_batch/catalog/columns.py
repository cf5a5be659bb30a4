"""Columns of Arrow tables as NumPy arrays and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: Modality of a network -> short name in the columns.
SHORT_NAMES: dict[str, str] = {"photometry": "phot", "image": "img", "spectra": "spec"}


def float_values(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A numeric column as float64, shape (n,); NaN where null."""
    return pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()


def floats(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column of a table as float64, shape (n,); NaN where null."""
    return float_values(table.column(name))


def equals(table: pa.Table, name: str, value: object) -> np.ndarray:
    """Where a column has this value, bool, shape (n,); null counts as no."""
    return pc.fill_null(pc.equal(table.column(name), pa.scalar(value)), False).to_numpy()


def float32(values: np.ndarray) -> pa.Array:
    """Values as a float32 column; NaN becomes null."""
    return pa.array(values.astype(np.float32), mask=np.isnan(values))
