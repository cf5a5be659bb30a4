"""Confusion of a catalogue with what is known to be true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.read import one_row_per_episode
from applecider_batch.catalog.store import iter_rows
from applecider_batch.errors import UserError
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES, GATES, to_class5

_CLASS_COLUMNS = ("class5", "class", "type")


def read_truth(url: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """True class by objectId from a Parquet or CSV table.

    Parameters
    ----------
    url : str
        Needs the column ``objectId`` and one of ``class5``, ``class``, ``type``; where the class is null and
        there is a column ``gate``, that stands instead.

    Raises
    ------
    UserError
        If it cannot be read or lacks a column.
    """
    from pyarrow import csv, parquet

    folder, _, name = url.rpartition("/")
    try:
        data = pa.BufferReader(Store(folder or ".", storage_options).read_bytes(name))
        table = csv.read_csv(data) if name.endswith(".csv") else parquet.read_table(data)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise UserError(f"The truth table '{url}' cannot be read: {error}.") from error
    column = next((c for c in _CLASS_COLUMNS if c in table.column_names), None)
    if "objectId" not in table.column_names or column is None:
        raise UserError(
            f"The truth table '{url}' needs objectId and one of {', '.join(_CLASS_COLUMNS)}; "
            f"it has {', '.join(table.column_names)}."
        )
    classes = table.column(column).cast(pa.string()).to_pylist()
    gates = table.column("gate").to_pylist() if "gate" in table.column_names else [None] * len(classes)
    names = table.column("objectId").cast(pa.string()).to_pylist()
    pairs = (
        (n, (c if c in CLASSES else to_class5(c)) or g) for n, c, g in zip(names, classes, gates, strict=True)
    )
    return {name: value for name, value in pairs if value is not None}


def confusion(
    store: Store, info: Mapping[str, Any], horizon: str, truth: Mapping[str, str]
) -> list[tuple[str, dict[str, int]]]:
    """Episodes by true class (rows) and by class or gate in the catalogue (columns), at one horizon."""
    counts: dict[str, Counter[str]] = {}
    for table in iter_rows(store, info, ["objectId", "t0", "horizon_days", "class_top1", "gate"]):
        rows = one_row_per_episode(table, horizon)
        said = pc.coalesce(rows.column("class_top1"), rows.column("gate"), pa.scalar("failed"))
        for name, value in zip(rows.column("objectId").to_pylist(), said.to_pylist(), strict=True):
            if name in truth:
                counts.setdefault(truth[name], Counter())[value] += 1
    order = {name: number for number, name in enumerate((*CLASSES, *GATES))}
    return [(name, dict(counts[name])) for name in sorted(counts, key=lambda n: (order.get(n, 99), n))]
