"""Label tables: which object is what, and which names are one object.

A table (Parquet or CSV) has one row per object:

===========  ==========================================================================================
object       objectId, object_id, oid, ztf_id, object or name
class        class10, class5, class or type (the first that is there), or the column that is asked for
group        object_key or group, where given: names that are one object of the sky never part
source       source or kind, where given: who took the data; only the source probe reads it
===========  ==========================================================================================

Names that have any of the five classes, wanted or not, are the ``population`` that splits are made of, so
that trainings on five and on ten classes agree on who is on which side.

A row without a usable class, of a class outside those asked for, or with ``conflict_class5`` true (sources
disagree) is left out and counted.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from applecider_batch.errors import UserError
from applecider_batch.storage import store_of
from applecider_batch.taxonomy import CLASSES, CLASSES10, OTHER, to_class5, to_class10

CLASS_SETS: dict[str, tuple[str, ...]] = {"five": CLASSES, "ten": CLASSES10}
OBJECT_COLUMNS = ("objectId", "object_id", "oid", "ztf_id", "object", "name")
CLASS_COLUMNS = {
    "five": ("class5", "class10", "class", "type", "type_raw"),
    "ten": ("class10", "class", "type", "type_raw"),
}
GROUP_COLUMNS = ("object_key", "group")
SOURCE_COLUMNS = ("source", "kind")
CONFLICT_COLUMN = "conflict_class5"


@dataclass(frozen=True)
class LabelTable:
    """Labels, sorted by object, each object once.

    Attributes
    ----------
    classes : tuple of str
        Meaning of ``label``.
    object_id : ndarray of str, shape (n,)
    label : ndarray of int64, shape (n,)
        Position in ``classes``.
    group : ndarray of str, shape (n,)
        The object on the sky; the name itself where the table says nothing.
    source : ndarray of str, shape (n,)
        Empty where the table says nothing.
    left_out : dict
        Rows that were not used, by reason.
    population : dict of str to (str, int)
        Every name with one of the five classes: its group and its position in `taxonomy.CLASSES`.
    """

    classes: tuple[str, ...]
    object_id: np.ndarray
    label: np.ndarray
    group: np.ndarray
    source: np.ndarray
    left_out: dict[str, int]
    population: dict[str, tuple[str, int]]

    def __len__(self) -> int:
        return len(self.object_id)

    def positions(self, names: list[str]) -> np.ndarray:
        """Position of each name in this table, -1 where it has no label; int64 (m,)."""
        where = {name: i for i, name in enumerate(self.object_id.tolist())}
        return np.array([where.get(name, -1) for name in names], np.int64)


def read_labels(
    url: str,
    *,
    class_set: str = "five",
    column: str | None = None,
    others: bool = False,
    storage_options: Any = None,
) -> LabelTable:
    """Read a label table.

    Parameters
    ----------
    url : str
        Parquet or CSV file, a path or any fsspec URL.
    class_set : {"five", "ten"}
    column : str, optional
        Column of the class; chosen as above if not given.
    others : bool
        Keep known types outside the class set too, as the last class, ``OTHER``.
    storage_options : mapping, optional

    Raises
    ------
    UserError
        If the file cannot be read, a column is missing, or no row can be used.
    """
    table = read_table(url, storage_options)
    return label_table(table, class_set=class_set, column=column, others=others, name=url)


def label_table(
    table: pa.Table,
    *,
    class_set: str = "five",
    column: str | None = None,
    others: bool = False,
    name: str = "the table",
) -> LabelTable:
    """As :func:`read_labels`, from a table in memory."""
    if class_set not in CLASS_SETS:
        raise UserError(f"Unknown class set '{class_set}'; allowed are {', '.join(CLASS_SETS)}.")
    classes, to_class = CLASS_SETS[class_set], to_class5 if class_set == "five" else to_class10
    if others:
        classes = (*classes, OTHER)
    ids = column_texts(table, find_column(table, OBJECT_COLUMNS, "object", name))
    wanted = (column,) if column else CLASS_COLUMNS[class_set]
    types = column_texts(table, find_column(table, wanted, "class", name))
    optional = [
        next((c for c in names if c in table.column_names), None) for names in (GROUP_COLUMNS, SOURCE_COLUMNS)
    ]
    groups, sources = (column_texts(table, c) if c else [None] * len(ids) for c in optional)
    conflict = (
        table.column(CONFLICT_COLUMN).to_pylist()
        if CONFLICT_COLUMN in table.column_names
        else [False] * len(ids)
    )
    broad = [wanted] if column else [(name,) for name in CLASS_COLUMNS["five"] if name in table.column_names]
    kinds = [column_texts(table, find_column(table, names_, "class", name)) for names_ in broad]
    number = {c: i for i, c in enumerate(classes)}
    found: dict[str, tuple[int, str, str]] = {}
    left_out: Counter[str] = Counter()
    for object_id, kind, group, source, disputed in zip(ids, types, groups, sources, conflict, strict=True):
        known = kind if kind in number else to_class(kind)
        if object_id is None:
            left_out["no object"] += 1
        elif known is None or known not in number:
            left_out["no class" if known is None else "other class"] += 1
        elif disputed:
            left_out["sources disagree"] += 1
        elif object_id in found and found[object_id][0] != number[known]:
            raise UserError(
                f"'{name}' gives '{object_id}' two classes: {classes[found[object_id][0]]} and {known}.",
                hint="Keep one row per object.",
            )
        else:
            found[object_id] = (number[known], group or object_id, source or "")
    if not found:
        raise UserError(
            f"'{name}' has no row that can be used: {dict(left_out)}; the classes are {', '.join(classes)}."
        )
    names = sorted(found)
    return LabelTable(
        classes,
        np.array(names, object),
        np.array([found[n][0] for n in names], np.int64),
        np.array([found[n][1] for n in names], object),
        np.array([found[n][2] for n in names], object),
        dict(sorted(left_out.items())),
        _population(ids, groups, zip(*kinds, strict=True)),
    )


def _population(
    ids: Sequence[str | None], groups: Sequence[str | None], kinds: Iterable[tuple[str | None, ...]]
) -> dict[str, tuple[str, int]]:
    """Group and broad class of every name, from the first of its class columns that says one."""
    out = {}
    for object_id, group, said in zip(ids, groups, kinds, strict=True):
        broad = next((b for b in map(to_class5, said) if b in CLASSES), None)
        if object_id is not None and broad is not None:
            out[object_id] = (group or object_id, CLASSES.index(broad))
    return out


def read_table(url: str, storage_options: Any) -> pa.Table:
    """A Parquet or CSV file of labels as a table."""
    store, name = store_of(str(url), storage_options)
    try:
        data = store.read_bytes(name)
        if name.endswith(".csv"):
            return pacsv.read_csv(io.BytesIO(data))
        return pq.read_table(io.BytesIO(data))
    except FileNotFoundError as error:
        raise UserError(f"There is no label table '{url}'.") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"The label table '{url}' is neither Parquet nor CSV: {error}.") from error


def find_column(table: pa.Table, names: tuple[str, ...], what: str, file: str) -> str:
    """The first of the names that is a column; UserError if none is."""
    for name in names:
        if name in table.column_names:
            return name
    raise UserError(
        f"'{file}' has no column for the {what} ({', '.join(names)}); it has {', '.join(table.column_names)}."
    )


def column_texts(table: pa.Table, column: str) -> list[str | None]:
    """A column's values as text, empty as None."""
    return [None if v is None or v == "" else str(v) for v in table.column(column).to_pylist()]
