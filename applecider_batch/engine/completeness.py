"""``candidates completeness``: what fraction of real transients would the search find?

Real light curves are re-injected as packets (:mod:`applecider_batch.catalog.injection`) and go the very way
of any other: ingest, classify, catalog build, candidates find.

::

    OUT/injected.tar.gz       the packets
    OUT/archive, run, catalogue
    OUT/injections.parquet    one row per injection: what was put in and how far it came
    OUT/recovery.csv, recovery.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidates import FindOptions, Search
from applecider_batch.catalog.injection import Curve, Injection, Sites, inject, packets_of, read_curve
from applecider_batch.catalog.ranking import TRANSIENT_WEIGHTS
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.recovery import recovery_table
from applecider_batch.catalog.table_files import write_table
from applecider_batch.digest import json_digest
from applecider_batch.engine import api
from applecider_batch.errors import InternalError, UsageError, UserError
from applecider_batch.features.gate import GAIA_STAR_ARCSEC, STAR_ARCSEC, STAR_SGSCORE
from applecider_batch.models.model_set import ModelSet
from applecider_batch.schema import load_table
from applecider_batch.simulate.packets import NightTar
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES
from applecider_batch.training.labels import LabelTable, read_labels

TRANSIENTS = tuple(name for key, name in zip(CLASS_KEYS, CLASSES, strict=True) if key in TRANSIENT_WEIGHTS)
MAX_CURVES = 400
MAX_SITES = 5000
_RANGE_BYTES = 32 << 20
NOTE = (
    "Real light curves, dimmed and moved in time, at the sites and with the measured quality of real alerts; "
    "stamps, forced photometry, spectra and another cadence are not simulated."
)
_UNIX_JD = 2440587.5


def measure_completeness(
    archive_url: str,
    models: str,
    labels_url: str,
    out: str,
    *,
    count: int = 1000,
    seed: int = 0,
    horizon: float | None = None,
    threshold: float = 0.5,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Inject, search, count.

    Parameters
    ----------
    archive_url : str
        The archive with the light curves and the alerts.
    models : str
        The model set.
    labels_url : str
        Table of objects and classes (`training.labels`); SN I, SN II and TDE are injected in equal parts.
        Objects that trained a network of the set are left out.
    out : str
        Local folder to write; one of an earlier run with the same options is used again.
    count, seed : int
        Number of injections, and their seed.
    horizon : float, optional
        Days after t0 at which is searched; the full history by default.
    threshold : float
        An injection is recovered if it is a candidate with ``prob_transient`` of this at least.

    Returns
    -------
    dict
        Keys as ``candidates completeness`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        If inputs cannot be read, the archive has no usable light curve or no site, or ``out`` holds
        something else.
    """
    if count < 1:
        raise UsageError(f"--injections must be at least 1, and is {count}.")
    archive = Archive.open(archive_url, storage_options)
    model_set = ModelSet.load(models, storage_options=storage_options, check_weights=False)
    labels = read_labels(labels_url, storage_options=storage_options)
    said = list(zip(labels.object_id.tolist(), labels.label.tolist(), strict=True))
    asked = {"archive": archive.snapshot.logical_digest, "labels": said, "models": model_set.digest,
             "count": count, "seed": seed, "horizon": horizon}  # fmt: skip
    folder = _claim(out, json_digest(asked))
    training, training_known = model_set.training_ids()
    curves, left_out = _curves(archive, labels, training, seed)
    alerts = _site_alerts(archive, seed)
    sites = Sites(alerts)
    span = pc.min(alerts.column("jd")).as_py(), pc.max(alerts.column("jd")).as_py()
    injections = inject(curves, sites, count, span, seed)
    packets = _write_packets(folder / "injected.tar.gz", injections, sites, seed)
    stored = ingest([str(folder / "injected.tar.gz")], str(folder / "archive"))
    if not stored["already"] and stored["stored"] != packets:
        raise InternalError(f"Of {packets} injected packets {stored['stored']} were stored.")
    api.classify(
        str(folder / "archive"), models, str(folder / "run"), horizons=[horizon], progress=False,
        storage_options=storage_options,
    )  # fmt: skip
    build_catalog(str(folder / "run"), str(folder / "catalogue"))
    rows = _injection_rows(injections, _found(str(folder / "catalogue"), threshold))
    table = recovery_table(rows)
    schema = load_table("injections")
    pq.write_table(pa.Table.from_pylist(rows, schema.arrow), folder / "injections.parquet")
    whole = table[0]
    answer = {
        "out": out,
        "injections": count,
        "packets": packets,
        "light_curves": len(curves),
        "light_curves_left_out": left_out,
        "sites": len(sites.hosts),
        "horizon": "full" if horizon is None else horizon,
        "threshold": threshold,
        "stages": {stage: whole[stage] for stage in
                   ("injected", "alerts", "t0", "in_scope", "classified", "recovered")},
        "share": whole["share"],
        "share_low": whole["share_low"],
        "share_high": whole["share_high"],
        "lost_at": dict(sorted(Counter(row["lost_by"] for row in rows if row["lost_by"]).items())),
        "trained": model_set.trained,
        "training_ids_known": training_known,
        "seed": seed,
        "note": NOTE,
        "recovery": table,
    }  # fmt: skip
    as_table = pa.Table.from_pylist(table, load_table("recovery").arrow)
    write_table(as_table, str(folder / "recovery.csv"))
    Store(str(folder)).write_json_atomic("recovery.json", answer)
    return answer


def _claim(out: str, digest: str) -> Path:
    """The folder, empty or of the same request."""
    folder, store = Path(out), Store(out)
    if not store.exists("request.json"):
        if store.ls():
            raise UserError(f"'{out}' is not empty.", hint="Name a new folder.")
        store.write_json_atomic("request.json", {"digest": digest})
    elif store.read_json("request.json")["digest"] != digest:
        raise UserError(f"'{out}' was made with other inputs or options.", hint="Name a new folder.")
    return folder


def _curves(
    archive: Archive, labels: LabelTable, training: frozenset[str], seed: int
) -> tuple[list[Curve], dict[str, int]]:
    """Light curves of labelled transients, at most so many of a class, and those left out by reason."""
    left: Counter[str] = Counter()
    curves: list[Curve] = []
    for kind in TRANSIENTS:
        names = labels.object_id[labels.label == labels.classes.index(kind)]
        fresh = sorted(set(names.tolist()) - training)
        left["trained a network"] += len(names) - len(fresh)
        taken = 0
        for number in np.random.default_rng([seed, 7]).permutation(len(fresh)).tolist():
            if taken == MAX_CURVES // len(TRANSIENTS):
                break
            curve = read_curve(archive, fresh[number], kind)
            if curve is None:
                left["fewer than 8 detections in the archive"] += 1
            else:
                curves.append(curve)
                taken += 1
    if not curves:
        raise UserError(
            f"None of {len(labels)} labelled objects has a light curve that can be injected: {dict(left)}.",
            hint="Ingest light curves (ingest --photometry FILE), or give labels of objects that are there.",
        )
    return curves, dict(left)


def _site_alerts(archive: Archive, seed: int) -> pa.Table:
    """Alerts at sites off known stars, from ranges of hashes drawn until there are enough."""
    ranges = archive.ranges(_RANGE_BYTES, ["alerts"])
    pieces: list[pa.Table] = []
    found = 0
    for number in np.random.default_rng([seed, 8]).permutation(len(ranges)).tolist():
        if found >= MAX_SITES:
            break
        alerts = archive.read_alerts(*ranges[number])
        alerts = alerts.filter(_usable_site(alerts))
        pieces.append(alerts)
        found += alerts.num_rows
    if not found:
        raise UserError("The archive has no alert whose site could host an injection.")
    order = [("hash64", "ascending"), ("objectId", "ascending"), ("jd", "ascending"), ("candid", "ascending")]
    return pa.concat_tables(pieces).sort_by(order)


def _usable_site(alerts: pa.Table) -> pa.ChunkedArray:
    """Positive, with real-bogus score and position, no solar-system body within 12 arcsec, not on a star."""
    good = pc.greater(alerts.column("isdiffpos"), 0)
    for name in ("rb", "ra", "dec", "magpsf", "candid"):
        good = pc.and_(good, pc.is_valid(alerts.column(name)))
    rock = pc.fill_null(pc.less_equal(alerts.column("ssdistnr"), 12.0), False)
    star = pc.and_(
        pc.fill_null(pc.greater(alerts.column("sgscore1"), STAR_SGSCORE), False),
        pc.fill_null(pc.less_equal(alerts.column("distpsnr1"), STAR_ARCSEC), False),
    )
    gaia = pc.fill_null(pc.less_equal(alerts.column("neargaiabright"), GAIA_STAR_ARCSEC), False)
    return pc.fill_null(pc.and_(good, pc.invert(pc.or_(pc.or_(rock, star), gaia))), False)


def _write_packets(path: Path, injections: list[Injection], sites: Sites, seed: int) -> int:
    tar = NightTar(path)
    for number, injection in enumerate(injections):
        for name, data in packets_of(injection, sites, number, seed):
            tar.add(name, data)
    tar.close()
    return tar.packets


def _found(catalogue: str, threshold: float) -> dict[str, dict[str, Any]]:
    """What became of each injection that has an alert: its first episode's row, and its stage."""
    search = Search(catalogue, FindOptions(top=10**9, include_unchecked=True))
    candidates, _ = search.run()
    chance = dict(
        zip(candidates.column("objectId").to_pylist(), candidates.column("prob_transient").to_pylist(),
            strict=True)
    )  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for row in read_table(
        catalogue, ["objectId", "t0", "gate", "gate_reason", "class_top1", "prob_top1"]
    ).to_pylist():
        found.setdefault(row["objectId"], {**row, "prob_transient": chance.get(row["objectId"])})
    for row in found.values():
        row["stage"], row["lost_by"] = _stage(row, threshold)
    return found


def _stage(row: Mapping[str, Any], threshold: float) -> tuple[str, str | None]:
    if row["t0"] is None:
        return "alerts", f"no t0: {row['gate_reason']}"
    if row["gate"] != "in_scope":
        return "t0", f"gate: {row['gate']} ({row['gate_reason']})"
    if row["prob_transient"] is None:
        return "in_scope", "no probabilities"
    if row["prob_transient"] < threshold:
        return "classified", f"called {row['class_top1']}, prob_transient below {threshold:g}"
    return "recovered", None


def _injection_rows(
    injections: list[Injection], found: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    for injection in injections:
        row = found.get(injection.name, {"stage": "injected", "lost_by": "no point of 5 sigma"})
        rows.append(
            {
                "objectId": injection.name, "light_curve": injection.curve.name,
                "class5": injection.curve.kind,
                "host": injection.host["objectId"], "ra": injection.host["ra"], "dec": injection.host["dec"],
                "abs_galactic_b": _abs_galactic_b(injection.host["ra"], injection.host["dec"]),
                "jd_first": injection.jd_first, "year": _year(injection.jd_first),
                "dimming": injection.dimming, "peak_mag": injection.curve.peak_mag + injection.dimming,
                "n_points": len(injection.jd), "n_detections": int(injection.detected.sum()),
                "stage": row["stage"], "lost_by": row["lost_by"], "class_top1": row.get("class_top1"),
                "prob_transient": row.get("prob_transient"),
            }
        )  # fmt: skip
    return rows


def _abs_galactic_b(ra: float, dec: float) -> float:
    from astropy.coordinates import SkyCoord

    return abs(float(SkyCoord(ra, dec, unit="deg").galactic.b.deg))


def _year(jd: float) -> int:
    days = np.datetime64(int(np.floor(jd - _UNIX_JD)), "D")
    return int(str(days)[:4])
