"""Candidates in files: Parquet and JSON carry the answer of the search along, CSV the rows alone.

A list is any table of objectId (CSV, ECSV, FITS, VOTable), one of labels or of candidates among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.catalog.table_files import frame_of, read_file, write_table
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from applecider_batch.storage import store_of

_ABOUT = "applecider-batch candidates"
LABELS = ("yes", "no", "unsure")


@dataclass(frozen=True)
class Listed:
    """A line of a list: an object, one of its episodes (None: all), and a label where there is one."""

    object_id: str
    episode: int | None
    label: str | None


def write_candidates(
    table: pa.Table, out: str, answer: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Write candidates (schema ``candidates``) to a file by its ending."""
    write_table(table, out, storage_options, about=(_ABOUT, answer))


def read_candidates(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """Candidates and the answer of their search from a Parquet or JSON file.

    Returns
    -------
    table : pyarrow.Table
        Schema ``candidates``.
    answer : dict

    Raises
    ------
    UserError
        If the file is absent, or was not written by ``candidates find`` or ``label`` in one of these forms.
    """
    store, name = store_of(url, storage_options)
    schema = load_table("candidates")
    try:
        data = store.read_bytes(name)
        if name.endswith(".json"):
            document = json.loads(data)
            table = pa.Table.from_pylist(document.pop("rows"), schema.arrow)
            return table, document
        table = pq.read_table(pa.BufferReader(data))
        answer: dict[str, Any] = json.loads((table.schema.metadata or {})[_ABOUT.encode()])
    except FileNotFoundError:
        raise UserError(f"The file of candidates '{url}' is not there.") from None
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"'{url}' holds no candidates of this program ({type(error).__name__}).",
            hint="Give a .parquet or .json file that `applecider-batch candidates find` wrote.",
        ) from error
    return schema.conform(table), answer


def is_list(url: str) -> bool:
    """Whether a file is read as a list, and not as what ``candidates find`` wrote; told by its ending."""
    return not url.endswith((".parquet", ".json"))


def read_list(url: str, storage_options: Mapping[str, Any] | None = None) -> list[Listed]:
    """The lines of a list in their order, each object and episode once.

    Parameters
    ----------
    url : str
        Table with the column ``objectId`` and, if given, ``episode`` and ``label``; others are not read.

    Raises
    ------
    UserError
        If it cannot be read, has no objectId, or an episode that is no number.
    """
    frame, _ = read_file(url, "list of objects", frame_of, storage_options)
    if "objectId" not in frame.columns:
        raise UserError(
            f"The list '{url}' has no column objectId; its columns are {', '.join(frame.columns)}.",
            hint="Needed are objectId and, for one episode of several, episode.",
        )
    nothing = [None] * frame.height
    names, episodes, labels = (
        frame[column].to_list() if column in frame.columns else nothing
        for column in ("objectId", "episode", "label")
    )
    found: dict[tuple[str, int | None], Listed] = {}
    for line, (name, episode, label) in enumerate(zip(names, episodes, labels, strict=True), 1):
        number = None if episode in (None, "") else str(episode).removesuffix(".0")
        if not name or not (number or "0").isdigit():
            raise UserError(
                f"Row {line} of the list '{url}' says objectId '{name}', episode '{episode}'; an objectId is "
                "a name, an episode a number."
            )
        key = str(name).strip(), None if number is None else int(number)
        found.setdefault(key, Listed(*key, label if label in LABELS else None))
    return list(found.values())
