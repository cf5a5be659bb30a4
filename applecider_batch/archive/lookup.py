"""Which of some candids does an archive hold already?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.resolve import pairs_of
from applecider_batch.archive.snapshot import Snapshot
from applecider_batch.schema import load_table
from applecider_batch.storage import Store


def lookup_candids(store: Store, snapshot: Snapshot, candids: np.ndarray) -> tuple[pa.Table, pa.Table]:
    """Stored alerts and recorded duplicates of the given candids.

    A candid begins with the night, so only parts of the same nights are looked into, by their candid range.

    Parameters
    ----------
    candids : ndarray, int64, shape (n,)
        Distinct, ascending.

    Returns
    -------
    stored, duplicates : Table
        Schema ``duplicates``; ``stored`` has one row per candid that the archive stores.
    """
    schema = load_table("duplicates").arrow
    found: dict[str, list[pa.Table]] = {"alerts": [], "duplicates": []}
    for record in snapshot.parts:
        if record.candid_lo is None or record.candid_hi is None:
            continue
        if np.searchsorted(candids, record.candid_lo) == np.searchsorted(
            candids, record.candid_hi, side="right"
        ):
            continue
        part = PartReader(store, record)
        for name, tables in found.items():
            index = part.index(name)
            for group in range(len(index.rows)) if index is not None else ():
                column = part.read_groups(name, [group], ["candid"]).column("candid").to_numpy()
                mask = np.isin(column, candids)
                if mask.any():
                    tables.append(
                        part.read_groups(name, [group], schema.names, schema).filter(pa.array(mask))
                    )
    stored, duplicates = (pa.concat_tables([schema.empty_table(), *tables]) for tables in found.values())
    if duplicates.num_rows and stored.num_rows:
        stored = stored.filter(pa.array(~np.isin(pairs_of(stored), pairs_of(duplicates))))
    return stored, duplicates
