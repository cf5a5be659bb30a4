"""Other objects of a catalogue beside its candidates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.columns import floats
from applecider_batch.catalog.crossmatch import pairs_within, unit_vectors

RADIUS_ARCSEC = 10.0
_VALUES = ("objectId", "sep", "class", "status")


def neighbour_columns(
    candidates: pa.Table, tables: Iterable[pa.Table], *, radius_arcsec: float = RADIUS_ARCSEC
) -> dict[str, pa.Array]:
    """The neighbour columns of the schema ``candidates``.

    Parameters
    ----------
    candidates : pyarrow.Table
        With ``objectId, ra, dec``.
    tables : iterable of pyarrow.Table
        All episodes of the catalogue, one row each: ``objectId, ra, dec, gate, class_top1, known_status``.
        Of an object with several episodes the last counts.
    radius_arcsec : float
        Up to which neighbours are listed.

    Returns
    -------
    dict of str to pyarrow.Array
    """
    from scipy.spatial import cKDTree

    names = candidates.column("objectId").to_pylist()
    ra, dec = floats(candidates, "ra"), floats(candidates, "dec")
    placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    found: list[dict[str, tuple[float, dict[str, Any]]]] = [{} for _ in names]
    if len(placed):
        tree = cKDTree(unit_vectors(ra[placed], dec[placed]))
        for table in tables:
            table = table.filter(pc.is_valid(table.column("ra")))
            xyz = unit_vectors(floats(table, "ra"), floats(table, "dec"))
            row, point, sep = pairs_within(tree, xyz, radius_arcsec)
            rows = table.take(pa.array(row)).to_pylist()
            for entry, at, distance in zip(rows, placed[point], sep, strict=True):
                if entry["objectId"] != names[at]:
                    found[at][entry["objectId"]] = (float(distance), entry)
    lists: dict[str, list[list[Any]]] = {name: [] for name in _VALUES}
    for near in found:
        ordered = sorted(near.items(), key=lambda item: (item[1][0], item[0]))
        lists["objectId"].append([name for name, _ in ordered])
        lists["sep"].append([sep for _, (sep, _) in ordered])
        lists["class"].append([entry["class_top1"] or entry["gate"] for _, (_, entry) in ordered])
        lists["status"].append([entry["known_status"] for _, (_, entry) in ordered])
    return {
        f"neighbour_{name}": pa.array(values, pa.list_(pa.float32() if name == "sep" else pa.string()))
        for name, values in lists.items()
    }
