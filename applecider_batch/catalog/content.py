"""Content digest of a catalogue: equal rows give an equal ``content_sha256``, in any order and any files."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.digest import MultisetDigest, multiset_of
from applecider_batch.schema import load_table

#: Where a row was made, not what it says: the same rows made with other shards have other values.
BOOKKEEPING = ("run_id", "shard_id")
#: What follows from the other columns of all rows: every night changes it in rows that nobody touched.
OF_THE_RELEASE = ("anomaly_qvalue", "sibling_group")


def content_columns() -> list[str]:
    """Columns that count, in the order of the schema."""
    return [name for name in load_table("catalogue").names if name not in (*BOOKKEEPING, *OF_THE_RELEASE)]


class ContentDigest:
    """Order-independent digest of catalogue rows, fed table by table.

    SHA-256 over the column names, the end of the full histories, and the sum modulo 2**128 of the rows'
    BLAKE2b-128 digests (NaN equals NaN, 0.0 equals -0.0, null differs from both; see
    :mod:`applecider_batch.digest`).  ``as_of_jd`` of a full history is that common end, and is left out of
    its row's digest, so that rows can be taken out and others put in when a night moves the end on.

    Parameters
    ----------
    state : str, optional
        Of an earlier digest, to go on from.
    """

    def __init__(self, state: str | None = None) -> None:
        self._columns = content_columns()
        self._rows = MultisetDigest() if state is None else MultisetDigest.from_hex(state)
        self._ends: set[float] = set()

    def update(self, table: pa.Table) -> None:
        """Add the rows of a table in the schema ``catalogue``."""
        self._rows.merge(self._digest_of(table))

    def add(self, other: ContentDigest) -> None:
        """Add the rows that another one has."""
        self._rows.merge(other._rows)
        self._ends |= other._ends

    def remove(self, table: pa.Table) -> None:
        """Take out rows that were added."""
        digest = self._digest_of(table)
        self._rows.total = (self._rows.total - digest.total) % (1 << 128)
        self._rows.count -= digest.count

    def _digest_of(self, table: pa.Table) -> MultisetDigest:
        full = table.column("horizon_days").is_null()
        end = table.column("as_of_jd")
        self._ends.update(pc.unique(end.filter(full)).drop_null().to_pylist())
        at = table.schema.get_field_index("as_of_jd")
        common = pc.if_else(full, pa.scalar(None, end.type), end)
        return multiset_of(table.set_column(at, "as_of_jd", common), self._columns)

    @property
    def state(self) -> str:
        """The sum, to go on from later."""
        return self._rows.hexdigest()

    @property
    def end(self) -> float | None:
        """The latest end of the full histories fed (JD); None where no row has one."""
        return max(self._ends, default=None)

    def hexdigest(self, end: float | None = None) -> str:
        """64 hex digits; ``end`` takes the place of those of the rows fed."""
        said = [self._columns, sorted(self._ends) if end is None else [end]]
        return hashlib.sha256((json.dumps(said) + self._rows.hexdigest()).encode()).hexdigest()
