"""Objects within 2 arcsec of each other: one source under several names, often.

Groups are transitive (friends of friends), over all objects of a release; a group's name is the smallest
objectId in it.  The position of an object is that of its last row.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.columns import floats
from applecider_batch.catalog.crossmatch import unit_vectors
from applecider_batch.catalog.summary import run_ends

RADIUS_ARCSEC = 2.0


class Siblings:
    """Sibling groups of a release: fed with all rows, named from all rows again, asked for each table's.

    Memory is 24 bytes an object while pairs are sought, and grows with the grouped objects alone afterwards.
    """

    COLUMNS = ("hash64", "objectId", "ra", "dec")

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._hashes = np.empty(0, np.uint64)  # of the grouped objects, ascending
        self._group = np.empty(0, np.int64)
        self._names: dict[int, str] = {}

    def update(self, table: pa.Table) -> None:
        """Take the positions of a table that holds whole objects in row order (``COLUMNS``)."""
        if table.num_rows:
            last = table.filter(pa.array(run_ends(table.column("objectId").combine_chunks())))
            ra, dec = floats(last, "ra"), floats(last, "dec")
            placed = np.isfinite(ra) & np.isfinite(dec)
            self._parts.append((last.column("hash64").to_numpy()[placed], ra[placed], dec[placed]))

    def find(self) -> int:
        """Find the groups; returns the number of objects in them."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self._parts:
            return 0
        hashes, ra, dec = (np.concatenate(values) for values in zip(*self._parts, strict=True))
        self._parts = []
        left, right = close_pairs(ra, dec, RADIUS_ARCSEC)
        member, index = np.unique(np.concatenate([left, right]), return_inverse=True)
        if not len(member):
            return 0
        edge = np.ones(len(left), np.int8)
        ends = (index[: len(left)], index[len(left) :])
        _, group = connected_components(
            coo_array((edge, ends), shape=(len(member), len(member))), directed=False
        )
        order = np.argsort(hashes[member])
        self._hashes, self._group = hashes[member][order], group[order].astype(np.int64)
        return len(member)

    def name(self, table: pa.Table) -> None:
        """Learn the names of grouped objects from a table with ``hash64`` and ``objectId``."""
        row, group = self._grouped(table)
        for name, number in set(
            zip(table.column("objectId").take(row).to_pylist(), group.tolist(), strict=True)
        ):
            self._names[number] = min(name, self._names.get(number, name))

    def annotate(self, table: pa.Table) -> pa.Table:
        """The same rows with ``sibling_group``, null for an object that stands alone."""
        row, group = self._grouped(table)
        names: list[str | None] = [None] * table.num_rows
        for i, number in zip(row.tolist(), group.tolist(), strict=True):
            names[i] = self._names[number]
        at = table.schema.get_field_index("sibling_group")
        return table.set_column(at, table.schema.field(at), pa.array(names, pa.string()))

    def _grouped(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Rows of grouped objects, and their groups."""
        hashes = table.column("hash64").to_numpy()
        if not len(self._hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        row = np.flatnonzero(self._hashes[at] == hashes)
        return row, self._group[at[row]]

    def describe(self) -> dict[str, int]:
        """``objects`` in groups, and ``groups``, for ``catalog.json``."""
        return {"objects": len(self._hashes), "groups": len(np.unique(self._group))}


def close_pairs(ra: np.ndarray, dec: np.ndarray, radius_arcsec: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of positions within a radius.

    Parameters
    ----------
    ra, dec : ndarray of float64, shape (n,)
        Degrees.
    radius_arcsec : float

    Returns
    -------
    left, right : ndarray of int64, shape (p,)
        Each pair once.
    """
    order = np.argsort(dec, kind="stable")
    ra, dec = ra[order], dec[order]
    radius = radius_arcsec / 3600.0
    chord = 2.0 * np.sin(np.deg2rad(radius) / 2.0)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    active, step = np.arange(len(ra)), 0
    while len(active):
        # The next neighbour in declination of all that may still have one: work is the number of pairs in a
        # band of the radius' height.
        step += 1
        active = active[active + step < len(ra)]
        active = active[dec[active + step] - dec[active] <= radius]
        other = active + step
        apart = np.abs((ra[other] - ra[active] + 180.0) % 360.0 - 180.0)
        near = apart * np.cos(np.deg2rad(np.minimum(np.abs(dec[other]) + radius, 90.0))) <= 1.01 * radius
        left, right = active[near], other[near]
        distance = np.linalg.norm(
            unit_vectors(ra[left], dec[left]) - unit_vectors(ra[right], dec[right]), axis=1
        )
        within = distance <= chord
        if within.any():
            found.append((order[left[within]], order[right[within]]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    lefts, rights = (np.concatenate(values) for values in zip(*found, strict=True))
    return lefts, rights
