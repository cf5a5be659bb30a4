"""Which rows a report shows, and everything that is shown of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.latent_neighbours import LatentNeighbour, has_latents, latent_neighbours
from applecider_batch.catalog.read import one_row_per_episode
from applecider_batch.catalog.side import CROSSMATCHES
from applecider_batch.catalog.store import iter_rows
from applecider_batch.errors import UserError
from applecider_batch.features.points import load_points
from applecider_batch.report.light_curve import BANDS, ZERO_POINT_UJY, LightCurve
from applecider_batch.report.png import data_url
from applecider_batch.report.sky_map import ORDER as SKY_ORDER
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES

STAMPS = ("Science", "Template", "Difference")
_FORCED = 2
_KEY = ("hash64", "objectId", "episode")


@dataclass
class Candidate:
    """One episode in the report.

    Attributes
    ----------
    row : dict
        Its catalogue row at the reference horizon.
    horizons : list of dict
        Its rows at all horizons, in order.
    rank : int
        Rank within its class, or in the list of candidates, from 1.
    listed : bool
        Whether the row is one of a list of candidates (schema ``candidates``).
    siblings : list of str
        Other objects of its sibling group.
    crossmatches : list of dict
        Every listed source within the radius (schema ``crossmatches``).
    latent_neighbours : dict of str to list of LatentNeighbour
        By modality.
    curve : LightCurve or None
    stamps : dict of str to str
        ``data:`` URL by stamp name.
    stamps_of : int or None
        candid of the packet that they came with.
    spectrum : (wavelength, flux) or None
    """

    row: dict[str, Any]
    rank: int
    listed: bool = False
    horizons: list[dict[str, Any]] = field(default_factory=list)
    siblings: list[str] = field(default_factory=list)
    crossmatches: list[dict[str, Any]] = field(default_factory=list)
    latent_neighbours: dict[str, list[LatentNeighbour]] = field(default_factory=dict)
    curve: LightCurve | None = None
    stamps: dict[str, str] = field(default_factory=dict)
    stamps_of: int | None = None
    spectrum: tuple[np.ndarray, np.ndarray] | None = None


@dataclass
class Selection:
    """What one pass over the catalogue gives the report.

    Attributes
    ----------
    candidates : list of Candidate
        By class in the order of the taxonomy, best first.
    sky_in_scope, sky_rest : dict
        HEALPix cell -> episodes.
    """

    candidates: list[Candidate]
    sky_in_scope: dict[int, int]
    sky_rest: dict[int, int]


def select(
    store: Store, info: Mapping[str, Any], horizon: str, per_class: int, listed: pa.Table | None = None
) -> Selection:
    """The rows with the highest probability of each class, in scope, and counts on the sky; bounded memory.

    Parameters
    ----------
    horizon : str
        Label of the reference horizon.
    per_class : int
        Rows per class; equal probabilities are ordered by (hash64, objectId, episode).
    listed : pyarrow.Table, optional
        Schema ``candidates``: these are shown instead, in their order.

    Raises
    ------
    UserError
        If a listed episode is not in the catalogue.
    """
    best: dict[str, pa.Table] = {}
    sky: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for table in iter_rows(store, info):
        rows = one_row_per_episode(table, horizon)
        in_scope = pc.fill_null(pc.equal(rows.column("gate"), "in_scope"), False)
        for counts, mask in ((sky[0], in_scope), (sky[1], pc.invert(in_scope))):
            _count_cells(counts, rows.column("_healpix_29").filter(mask))
        for name in CLASSES if listed is None else ():
            mine = rows.filter(pc.fill_null(pc.equal(rows.column("class_top1"), name), False))
            if mine.num_rows:
                joined = pa.concat_tables([best[name], mine]) if name in best else mine
                order = [("prob_top1", "descending"), *((key, "ascending") for key in _KEY)]
                best[name] = joined.sort_by(order).slice(0, per_class)
    candidates = [
        Candidate(row, rank)
        for name in CLASSES
        if name in best
        for rank, row in enumerate(best[name].to_pylist(), 1)
    ]
    if listed is not None:
        candidates = [Candidate(row, row["rank"], listed=True) for row in listed.to_pylist()]
    _add_horizons(store, info, candidates)
    if lost := [c.row["objectId"] for c in candidates if not c.horizons]:
        raise UserError(
            f"{len(lost)} of the candidates are not in the catalogue '{store.url}', for example {lost[0]}.",
            hint="Give the file that `applecider-batch candidates find` made of this catalogue.",
        )
    return Selection(candidates, *sky)


def _count_cells(counts: dict[int, int], index: pa.ChunkedArray) -> None:
    cells = pc.drop_null(index).to_numpy() >> 2 * (29 - SKY_ORDER)
    for cell, count in zip(*np.unique(cells, return_counts=True), strict=True):
        counts[int(cell)] = counts.get(int(cell), 0) + int(count)


def _add_horizons(store: Store, info: Mapping[str, Any], candidates: Sequence[Candidate]) -> None:
    by_key = {(c.row["objectId"], c.row["episode"]): c for c in candidates}
    for row in _rows_of(candidates, lambda hashes: iter_rows(store, info, hashes=hashes)):
        candidate = by_key.get((row["objectId"], row["episode"]))
        if candidate is not None:
            candidate.horizons.append(row)


def _rows_of(
    candidates: Sequence[Candidate], read: Callable[[np.ndarray], Iterable[pa.Table]]
) -> Iterator[dict[str, Any]]:
    """Rows of the candidates' objects in tables that ``read`` gives for their hashes."""
    wanted = pa.array(sorted({c.row["objectId"] for c in candidates}), pa.string())
    hashes = np.unique(np.array([c.row["hash64"] for c in candidates], np.uint64))
    for table in read(hashes):
        yield from table.filter(pc.is_in(table.column("objectId"), value_set=wanted)).to_pylist()


def add_context(
    store: Store,
    info: Mapping[str, Any],
    horizon: str,
    candidates: Sequence[Candidate],
    truth: Mapping[str, str] | None,
) -> None:
    """Siblings, cross-matches and nearest labelled latents of every candidate.

    Parameters
    ----------
    truth : mapping of objectId to class, or None
        Labels that count before those of the cross-match.
    """
    if not candidates:
        return
    _add_siblings(store, info, candidates)
    by_key = {(c.row["objectId"], c.row["episode"]): c for c in candidates}

    def matches(hashes: np.ndarray) -> Iterator[pa.Table]:
        yield from iter_rows(store, info, name=CROSSMATCHES, hashes=hashes)

    for row in _rows_of(candidates, matches):
        if (row["objectId"], row["episode"]) in by_key:
            by_key[row["objectId"], row["episode"]].crossmatches.append(row)
    if has_latents(info):
        labels = {**_known_labels(store, info), **(truth or {})}
        for key, near in latent_neighbours(store, info, horizon, list(by_key), labels).items():
            by_key[key].latent_neighbours = near


def _add_siblings(store: Store, info: Mapping[str, Any], candidates: Sequence[Candidate]) -> None:
    groups: dict[str, set[str]] = {c.row["sibling_group"]: set() for c in candidates}
    wanted = pa.array([group for group in groups if group is not None], pa.string())
    for table in iter_rows(store, info, ["objectId", "sibling_group"]) if len(wanted) else ():
        for row in table.filter(pc.is_in(table.column("sibling_group"), value_set=wanted)).to_pylist():
            groups[row["sibling_group"]].add(row["objectId"])
    for candidate in candidates:
        candidate.siblings = sorted(groups[candidate.row["sibling_group"]] - {candidate.row["objectId"]})


def _known_labels(store: Store, info: Mapping[str, Any]) -> dict[str, str]:
    """The type (else the status) of every object that the cross-match calls known."""
    labels = {}
    for table in iter_rows(store, info, ["objectId", "known_status", "xm_tns_type"]):
        known = pc.is_in(table.column("known_status"), value_set=pa.array(["known", "late"]))
        for row in table.filter(known).to_pylist():
            labels[row["objectId"]] = row["xm_tns_type"] or f"{row['known_status']}, no type"
    return labels


def add_observations(archive: Archive, candidates: Sequence[Candidate]) -> None:
    """Light curve, stamps and spectrum of every candidate, read object by object."""
    for candidate in candidates:
        position, name = candidate.row["hash64"], candidate.row["objectId"]
        photometry = archive.read_photometry(position, position + 1)
        candidate.curve = light_curve_of(photometry, name)
        _add_stamps(archive, candidate)
        if candidate.row["spec_id"] is not None:
            spectra = archive.read_spectra(position, position + 1)
            mine = spectra.filter(pc.equal(spectra.column("spec_id"), candidate.row["spec_id"]))
            if mine.num_rows:
                wavelength, flux = (
                    np.asarray(mine.column(c)[0].as_py(), float) for c in ("wavelength", "flux")
                )
                candidate.spectrum = (wavelength, flux)


def _add_stamps(archive: Archive, candidate: Candidate) -> None:
    """Those the image network saw; where none did, those of the last packet, else of the first."""
    row = candidate.row
    packets = [row[name] for name in ("candid_image", "candid_last", "candid_first") if row[name] is not None]
    if packets:
        stamps = archive.read_stamps(row["hash64"], row["hash64"] + 1, packets)
        by_candid = {found["candid"]: found for found in stamps.to_pylist()}
        candid = next((candid for candid in packets if candid in by_candid), None)
        if candid is not None:
            candidate.stamps, candidate.stamps_of = _stamp_images(by_candid[candid]), candid


def light_curve_of(photometry: pa.Table, name: str) -> LightCurve | None:
    """Stitched photometry of one object (schema ``photometry``) for drawing; None where there is none.

    Of a forced point with several revisions the last is drawn.
    """
    mine = photometry.filter(pc.equal(photometry.column("objectId"), name))
    if not mine.num_rows:
        return None
    points = load_points(mine, pa.array([name]))
    drawn = np.isfinite(points.flux) & np.isin(points.fid, list(BANDS))
    latest: dict[tuple[float, int, int], int] = {}
    for i in np.flatnonzero(drawn & (points.origin == _FORCED)):
        latest[(points.jd[i], int(points.fid[i]), int(points.pid[i]))] = int(i)  # sorted by known_jd
    drawn &= (points.origin != _FORCED) | np.isin(np.arange(len(points)), list(latest.values()))
    limits = mine.filter(
        pc.and_(
            pc.invert(pc.fill_null(mine.column("is_detection"), False)),
            pc.is_valid(mine.column("diffmaglim")),
        )
    )
    limits = limits.filter(pc.not_equal(limits.column("origin"), _FORCED))
    magnitude = limits.column("diffmaglim").cast(pa.float64()).to_numpy()
    return LightCurve(
        jd=points.jd[drawn],
        flux=points.flux[drawn],
        flux_err=points.flux_err[drawn],
        fid=points.fid[drawn],
        forced=points.forced[drawn],
        limit_jd=limits.column("jd").to_numpy(),
        limit_flux=10.0 ** (-0.4 * (magnitude - ZERO_POINT_UJY)),
        limit_fid=pc.fill_null(limits.column("fid").cast(pa.int64()), 0).to_numpy(),
    )


def _stamp_images(row: Mapping[str, Any]) -> dict[str, str]:
    images = {}
    for name in STAMPS:
        pixels, height, width = row[f"cutout{name}"], row[f"height{name}"], row[f"width{name}"]
        if pixels is not None and height and width and len(pixels) == height * width:
            values = np.array([np.nan if p is None else p for p in pixels], np.float32)
            images[name] = data_url(values.reshape(height, width))
    return images
