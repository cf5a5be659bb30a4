"""Which object of the archive does a spectrum or a light-curve table belong to?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.objects import ObjectPositions, object_positions
from applecider_batch.archive.part_reader import PartReader
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
    return _owned(spectra, pa.array(names, pa.string()), pa.array(matched, pa.string()))


def _groups(store: Store, snapshot: Snapshot) -> Iterator[tuple[PartReader, int]]:
    """All row groups of spectra."""
    for record in snapshot.parts:
        part = PartReader(store, record)
        index = part.index("spectra") if record.rows("spectra") else None
        for group in range(len(index.rows)) if index is not None else ():
            yield part, group


def _owned(spectra: pa.Table, ids: pa.Array, matched_by: pa.Array) -> pa.Table:
    """Spectra under the names of their objects."""
    columns = {name: spectra.column(name) for name in spectra.column_names}
    columns |= {
        "objectId": ids,
        "hash64": pa.array(hash64(ids)),
        "matched_by": matched_by,
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


class UnmatchedSpectra:
    """The archive's spectra that matched no object: those with a position may belong to new alerts.

    A spectrum that is matched later gets a second row under its object's name, in the part of the packets
    that brought the object.
    """

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        names = ["spec_id", "ra", "dec", "matched_by"]
        groups = [part.read_groups("spectra", [group], names) for part, group in _groups(store, snapshot)]
        table = pa.concat_tables([load_table("spectra").empty().select(names), *groups])
        matched = pc.is_valid(table.column("matched_by"))
        done = table.filter(matched).column("spec_id")
        again = pc.is_in(table.column("spec_id"), value_set=done.combine_chunks())
        open_rows = table.filter(pc.invert(pc.or_(matched, again)))
        self._spec_id = open_rows.column("spec_id").to_pylist()
        self._ra, self._dec = (open_rows.column(axis).to_numpy() for axis in ("ra", "dec"))
        self._best: dict[str, tuple[float, str]] = {}

    def offer(self, alerts: pa.Table) -> dict[str, tuple[float, str]]:
        """Separation (arcsec) and name of the nearest of new alerts (schema ``alerts``), by ``spec_id``."""
        if not self._spec_id or not alerts.num_rows:
            return {}
        ra, dec = (alerts.column(axis).to_numpy() for axis in ("ra", "dec"))
        objects = ObjectPositions(alerts.column("objectId").combine_chunks(), ra, dec)
        return {self._spec_id[row]: found for row, found in _nearest(self._ra, self._dec, objects).items()}

    def take(self, offers: dict[str, tuple[float, str]]) -> None:
        """Keep the nearest; spectra that have found their object already are passed over."""
        still_open = {spec_id: offers[spec_id] for spec_id in offers.keys() & set(self._spec_id)}
        self._best = nearest_of(self._best, still_open)

    def matched(self, store: Store, snapshot: Snapshot) -> pa.Table:
        """Rows (schema ``spectra``) of what found its object, each once."""
        owner = {spec_id: name for spec_id, (_, name) in self._best.items()}
        wanted = pa.array(sorted(owner), pa.string())
        tables = [load_table("spectra").empty()]
        if owner:
            for part, group in _groups(store, snapshot):
                keys = part.read_groups("spectra", [group], ["spec_id"])
                mask = pc.is_in(keys.column("spec_id"), value_set=wanted)
                if pc.any(mask).as_py():
                    tables.append(part.read_groups("spectra", [group]).filter(mask))
        table = pa.concat_tables(tables)
        names = pa.array([owner[spec_id] for spec_id in table.column("spec_id").to_pylist()], pa.string())
        return _owned(table, names, pa.array(["position"] * len(names), pa.string()))


def nearest_of(
    some: dict[str, tuple[float, str]], others: dict[str, tuple[float, str]]
) -> dict[str, tuple[float, str]]:
    """The nearer of both for every key."""
    return some | {key: min(found, some.get(key, found)) for key, found in others.items()}


def _nearest(ra: np.ndarray, dec: np.ndarray, objects: ObjectPositions) -> dict[int, tuple[float, str]]:
    """Separation (arcsec) and name of the nearest object within the radius, by row of the positions given."""
    order = np.argsort(objects.dec, kind="stable")
    sorted_dec = objects.dec[order]
    radius = MATCH_ARCSEC / 3600
    starts, stops = np.searchsorted(sorted_dec, dec - radius), np.searchsorted(sorted_dec, dec + radius)
    out: dict[int, tuple[float, str]] = {}
    for row in np.flatnonzero((stops > starts) & np.isfinite(ra) & np.isfinite(dec)).tolist():
        near = order[starts[row] : stops[row]]
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
