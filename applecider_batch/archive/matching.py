"""Which object of the archive does a spectrum or a light-curve table belong to?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.objects import ObjectPositions, object_positions
from applecider_batch.archive.snapshot import Snapshot
from applecider_batch.digest import hash64
from applecider_batch.schema import load_table
from applecider_batch.storage import Store

MATCH_ARCSEC = 2.0


def match_spectra(store: Store, snapshot: Snapshot, spectra: pa.Table) -> pa.Table:
    """Give each spectrum its object: by name, else the nearest within 2 arcsec, else its own name.

    Parameters
    ----------
    spectra : Table
        Schema ``spectra``; ``objectId`` is what the file says.

    Returns
    -------
    Table
        The same rows with ``objectId``, ``hash64`` and ``matched_by`` (``objectId``, ``position`` or null).
    """
    names = spectra.column("objectId").to_pylist()
    ra, dec = (spectra.column(axis).to_numpy() for axis in ("ra", "dec"))
    known: set[str] = set()
    best: dict[int, tuple[float, str]] = {}
    wanted = pa.array(sorted(set(names)), pa.string())
    for objects in object_positions(store, snapshot):
        known.update(pc.filter(objects.object_id, pc.is_in(objects.object_id, value_set=wanted)).to_pylist())
        for row, candidate in _nearest(ra, dec, objects).items():
            best[row] = min(candidate, best.get(row, candidate))
    matched: list[str | None] = []
    for row, name in enumerate(names):
        if name in known:
            matched.append("objectId")
        elif row in best:
            names[row] = best[row][1]
            matched.append("position")
        else:
            matched.append(None)
    ids = pa.array(names, pa.string())
    columns = {name: spectra.column(name) for name in spectra.column_names}
    columns |= {
        "objectId": ids,
        "hash64": pa.array(hash64(ids)),
        "matched_by": pa.array(matched, pa.string()),
    }
    return load_table("spectra").conform(pa.table(columns))


def unmatched_points(store: Store, snapshot: Snapshot, photometry: pa.Table) -> int:
    """Points of objects that have no alert in the archive."""
    ids = photometry.column("objectId").combine_chunks()
    wanted = pc.unique(ids)
    known: set[str] = set()
    for objects in object_positions(store, snapshot):
        known.update(pc.filter(objects.object_id, pc.is_in(objects.object_id, value_set=wanted)).to_pylist())
    matched = pc.sum(pc.is_in(ids, value_set=pa.array(sorted(known), pa.string()))).as_py() or 0
    return len(ids) - int(matched)


def _nearest(ra: np.ndarray, dec: np.ndarray, objects: ObjectPositions) -> dict[int, tuple[float, str]]:
    """Separation (arcsec) and name of the nearest object within the radius, by row of the positions given."""
    order = np.argsort(objects.dec, kind="stable")
    sorted_dec = objects.dec[order]
    radius = MATCH_ARCSEC / 3600
    out: dict[int, tuple[float, str]] = {}
    for row in np.flatnonzero(np.isfinite(ra) & np.isfinite(dec)).tolist():
        start, stop = np.searchsorted(sorted_dec, [dec[row] - radius, dec[row] + radius])
        near = order[start:stop]
        if not len(near):
            continue
        apart = separation_arcsec(ra[row], dec[row], objects.ra[near], objects.dec[near])
        inside = np.flatnonzero(apart <= MATCH_ARCSEC)
        if len(inside):
            out[row] = min((float(apart[i]), objects.object_id[int(near[i])].as_py()) for i in inside)
    return out


def separation_arcsec(ra: float, dec: float, other_ra: np.ndarray, other_dec: np.ndarray) -> np.ndarray:
    """Angle between a position and others, arcsec (haversine; positions in deg)."""
    phi, other_phi = np.radians(dec), np.radians(other_dec)
    half = np.sin((other_phi - phi) / 2) ** 2
    half = half + np.cos(phi) * np.cos(other_phi) * np.sin(np.radians(other_ra - ra) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1)))) * 3600
