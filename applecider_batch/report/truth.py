"""What a catalogue says against what is known to be true: confusion and reliability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.columns import equals, floats
from applecider_batch.catalog.read import one_row_per_episode
from applecider_batch.catalog.store import iter_rows
from applecider_batch.catalog.table_files import frame_of, read_file
from applecider_batch.errors import UserError
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES, GATES, to_class5

_CLASS_COLUMNS = ("class5", "class", "type")
_PROBABILITIES = tuple(f"prob_{key}" for key in CLASS_KEYS)


@dataclass(frozen=True)
class Comparison:
    """A catalogue against the truth at one horizon.

    Attributes
    ----------
    confusion : list of (str, dict of str to int)
        Episodes by true class (rows) and by class or gate in the catalogue.
    label : ndarray of int64, shape (n,)
        True class of the episodes that have one and were classified in scope.
    prob : ndarray of float64, shape (n, 5)
        Their fused probabilities.
    trained_on : int
        Episodes left out of all this, because their objects trained a network.
    """

    confusion: list[tuple[str, dict[str, int]]]
    label: np.ndarray
    prob: np.ndarray
    trained_on: int


def read_truth(url: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """True class by objectId from a table (Parquet, CSV, ECSV, FITS or VOTable).

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
    frame, _ = read_file(url, "truth table", frame_of, storage_options)
    column = next((c for c in _CLASS_COLUMNS if c in frame.columns), None)
    if "objectId" not in frame.columns or column is None:
        raise UserError(
            f"The truth table '{url}' needs objectId and one of {', '.join(_CLASS_COLUMNS)}; "
            f"it has {', '.join(frame.columns)}."
        )
    names, classes = (frame[c].cast(pl.String).to_list() for c in ("objectId", column))
    gates = frame["gate"].to_list() if "gate" in frame.columns else [None] * frame.height
    pairs = (
        (n, (c if c in CLASSES else to_class5(c)) or g) for n, c, g in zip(names, classes, gates, strict=True)
    )
    return {name: value for name, value in pairs if value is not None}


def compare(store: Store, info: Mapping[str, Any], horizon: str, truth: Mapping[str, str]) -> Comparison:
    """Episodes at one horizon whose truth is known; objects that trained a network are counted apart."""
    counts: dict[str, Counter[str]] = {}
    labels: list[int] = []
    probabilities = [np.empty((0, len(CLASSES)))]
    trained_on = 0
    numbers = {name: number for number, name in enumerate(CLASSES)}
    wanted = pa.array(list(truth), pa.string())
    columns = ["objectId", "t0", "horizon_days", "class_top1", "gate", "in_training_set", *_PROBABILITIES]
    for table in iter_rows(store, info, columns):
        rows = one_row_per_episode(table, horizon)
        rows = rows.filter(pc.is_in(rows.column("objectId"), value_set=wanted))
        fresh = ~equals(rows, "in_training_set", True)
        trained_on += int((~fresh).sum())
        rows = rows.filter(pa.array(fresh))
        true = [truth[name] for name in rows.column("objectId").to_pylist()]
        said = pc.coalesce(rows.column("class_top1"), rows.column("gate"), pa.scalar("failed"))
        for name, value in zip(true, said.to_pylist(), strict=True):
            counts.setdefault(name, Counter())[value] += 1
        prob = np.stack([floats(rows, name) for name in _PROBABILITIES], axis=1)
        classified = rows.column("class_top1").is_valid().to_numpy() & np.isfinite(prob).all(axis=1)
        classified &= np.array([name in numbers for name in true], bool)
        labels += [numbers[true[i]] for i in np.flatnonzero(classified)]
        probabilities.append(prob[classified])
    order = {name: number for number, name in enumerate((*CLASSES, *GATES))}
    confusion = [(name, dict(counts[name])) for name in sorted(counts, key=lambda n: (order.get(n, 99), n))]
    return Comparison(confusion, np.array(labels, np.int64), np.concatenate(probabilities), trained_on)
