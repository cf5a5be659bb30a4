"""The objects of a run that does not classify all: a file in the run folder, named in the plan's identity.

::

    RUN/objects/<digest>.parquet     hash64 of the objects, ascending; written before the plan
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.digest import digest128
from applecider_batch.errors import UserError
from applecider_batch.storage import Store


def describe(hashes: np.ndarray) -> dict[str, Any]:
    """What the plan's identity says of a selection (uint64, ascending)."""
    return {"count": len(hashes), "digest": digest128(hashes.astype("<u8").tobytes())}


def write_selection(store: Store, hashes: np.ndarray) -> None:
    """Put a selection into a run folder, where it is not yet."""
    name = _file(describe(hashes))
    if not store.exists(name):
        sink = io.BytesIO()
        pq.write_table(pa.table({"hash64": hashes}), sink, compression="zstd")
        store.write_atomic(name, sink.getvalue())


def read_selection(store: Store, described: Mapping[str, Any]) -> np.ndarray:
    """The selection that a plan names.

    Raises
    ------
    UserError
        If it is missing or is another one.
    """
    name = _file(described)
    try:
        hashes: np.ndarray = pq.read_table(io.BytesIO(store.read_bytes(name))).column("hash64").to_numpy()
    except FileNotFoundError:
        hashes = np.empty(0, np.uint64)
    if describe(hashes) != dict(described):
        raise UserError(f"The file '{store.url}/{name}', which the plan names, is missing or was changed.")
    return hashes


def _file(described: Mapping[str, Any]) -> str:
    return f"objects/{described['digest']}.parquet"
