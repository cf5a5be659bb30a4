"""Content digest of a catalogue: equal rows give an equal ``content_sha256``, in any order and any files."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa

from applecider_batch.digest import MultisetDigest, multiset_of
from applecider_batch.schema import load_table

#: Where a row was made, not what it says: the same rows made with other shards have other values.
BOOKKEEPING = ("run_id", "shard_id")


def content_columns() -> list[str]:
    """Columns that count, in the order of the schema."""
    return [name for name in load_table("catalogue").names if name not in BOOKKEEPING]


class ContentDigest:
    """Order-independent digest of catalogue rows, fed table by table.

    SHA-256 over the column names and the sum modulo 2**128 of the rows' BLAKE2b-128 digests (NaN equals NaN,
    0.0 equals -0.0, null differs from both; see :mod:`applecider_batch.digest`).
    """

    def __init__(self) -> None:
        self._columns = content_columns()
        self._rows = MultisetDigest()

    def update(self, table: pa.Table) -> None:
        """Add the rows of a table in the schema ``catalogue``."""
        self._rows.merge(multiset_of(table, self._columns))

    def hexdigest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256((json.dumps(self._columns) + self._rows.hexdigest()).encode()).hexdigest()
