"""Other objects of a catalogue beside its candidates: neighbours, and siblings (the same source under
several names, because ZTF opens a new objectId where an old one is a little off)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.columns import floats
from applecider_batch.catalog.crossmatch import pairs_within, unit_vectors

RADIUS_ARCSEC = 10.0
SIBLING_ARCSEC = 2.0
_VALUES = ("objectId", "sep", "class", "status")


def neighbour_columns(
    candidates: pa.Table, tables: Iterable[pa.Table], *, radius_arcsec: float = RADIUS_ARCSEC
) -> dict[str, pa.Array]:
    """The neighbour columns and ``sibling_group`` of the schema ``candidates``.

    Parameters
    ----------
    candidates : pyarrow.Table
        With ``objectId, ra, dec``.
    tables : iterable of pyarrow.Table
        All episodes of the catalogue, one row each: ``objectId, ra, dec, gate, class_top1, known_status``.
        Of an object with several episodes the last counts.
    radius_arcsec : float
        Up to which neighbours are listed.  Sibling links are followed within the larger of this and
        2 arcsec around the candidate.

    Returns
    -------
    dict of str to pyarrow.Array
    """
    from scipy.spatial import cKDTree

    names = candidates.column("objectId").to_pylist()
    ra, dec = floats(candidates, "ra"), floats(candidates, "dec")
    placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    found: list[dict[str, tuple[float, dict[str, Any], np.ndarray]]] = [{} for _ in names]
    if len(placed):
        tree = cKDTree(unit_vectors(ra[placed], dec[placed]))
        for table in tables:
            table = table.filter(pc.is_valid(table.column("ra")))
            xyz = unit_vectors(floats(table, "ra"), floats(table, "dec"))
            row, point, sep = pairs_within(tree, xyz, max(radius_arcsec, SIBLING_ARCSEC))
            rows = table.take(pa.array(row)).to_pylist()
            for entry, at, distance, vector in zip(rows, placed[point], sep, xyz[row], strict=True):
                if entry["objectId"] != names[at]:
                    found[at][entry["objectId"]] = (float(distance), entry, vector)
    lists: dict[str, list[list[Any]]] = {name: [] for name in _VALUES}
    groups: list[str | None] = []
    for at, near in enumerate(found):
        ordered = sorted(near.items(), key=lambda item: (item[1][0], item[0]))
        inside = [(name, sep, entry) for name, (sep, entry, _) in ordered if sep <= radius_arcsec]
        lists["objectId"].append([name for name, _, _ in inside])
        lists["sep"].append([sep for _, sep, _ in inside])
        lists["class"].append([entry["class_top1"] or entry["gate"] for _, _, entry in inside])
        lists["status"].append([entry["known_status"] for _, _, entry in inside])
        own = unit_vectors(ra[at : at + 1], dec[at : at + 1])[0]
        groups.append(_sibling_group(names[at], own, {name: vector for name, (_, _, vector) in near.items()}))
    columns = {
        f"neighbour_{name}": pa.array(values, pa.list_(pa.float32() if name == "sep" else pa.string()))
        for name, values in lists.items()
    }
    return {**columns, "sibling_group": pa.array(groups, pa.string())}


def _sibling_group(name: str, own: np.ndarray, others: dict[str, np.ndarray]) -> str | None:
    """Smallest name of the objects that steps of at most 2 arcsec lead to; None if there is no other."""
    chord = 2.0 * np.sin(np.deg2rad(SIBLING_ARCSEC / 3600.0) / 2.0)
    group, waiting, rest = {name}, [own], dict(others)
    while waiting:
        here = waiting.pop()
        for other in [o for o, vector in rest.items() if np.linalg.norm(vector - here) <= chord]:
            group.add(other)
            waiting.append(rest.pop(other))
    return min(group) if len(group) > 1 else None
