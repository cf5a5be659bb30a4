"""Differences of the preprocessing from the recorded tables and arrays, for `benchmarks.golden_table`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from applecider_batch.features.cutouts import STAMPS, make_cutouts
from applecider_batch.features.light_curves import event_features
from applecider_batch.features.points import mag_to_flux
from applecider_batch.features.profiles import get_profile
from applecider_batch.features.spectra import preprocess_spectrum
from applecider_batch.features.upstream import event_metadata, event_table, merge_points
from tests.features.tables import stamps_table

# File, column, precision, largest difference, share of the tolerance.
Values = tuple[str, str, str, float, float]
FLOAT64, FLOAT32, DAYS = (1e-11, 0.0), (1e-6, 0.0), (0.0, 1e-8)
_MAIN = get_profile("upstream-main")


def _row(
    file: str, column: str, ours: np.ndarray, golden: np.ndarray, tolerance: tuple[float, float]
) -> Values:
    """Compare; ``tolerance`` is (relative, absolute). NaN must stand where it was recorded."""
    a, b = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return (file, column, "", float("inf"), float("inf"))
    difference = np.where(np.isnan(b) | (a == b), 0.0, np.abs(a - b))
    allowed = tolerance[0] * np.abs(b) + tolerance[1]
    used = np.divide(difference, allowed, out=np.where(difference > 0, np.inf, 0.0), where=allowed > 0)
    return (file, column, "", float(difference.max(initial=0.0)), float(used[~np.isnan(b)].max(initial=0.0)))


def preprocessing_rows(golden: Path) -> Iterator[Values]:
    """All recorded tables, tensors, spectra and stamps."""
    points = pq.read_table(golden / "photometry_input.parquet")
    table = pl.from_arrow(points)
    flux, error = mag_to_flux(table["magpsf"].to_numpy(), table["sigmapsf"].to_numpy())
    yield _row("photometry_input", "flux", flux, table["flux"].to_numpy(), FLOAT64)
    yield _row("photometry_input", "flux_error", error, table["flux_error"].to_numpy(), FLOAT64)
    objects, events = merge_points(points)
    merged = pl.read_parquet(golden / "photometry_merged.parquet").sort("objectId", "mjd", "fid")
    yield _row("photometry_merged", "jd", events.jd, merged["jd"].to_numpy(), DAYS)
    yield _row("photometry_merged", "flux", events.flux, merged["flux"].to_numpy(), FLOAT64)
    yield _row("photometry_merged", "flux_error", events.flux_err, merged["flux_error"].to_numpy(), FLOAT64)
    recorded = (
        pl.read_parquet(golden / "photometry_events.parquet").with_row_index("row").sort("objectId", "row")
    )
    columns = event_table(events)
    for name in ("dt", "dt_prev", "logflux", "logflux_err"):
        tolerance = (1e-6, 1e-8) if name.startswith("dt") else FLOAT32
        yield _row("photometry_events", name, columns[name], recorded[name].to_numpy(), tolerance)
    for name in ("g_r", "g_r_err", "r_i", "r_i_err"):
        values = recorded[name].fill_null(float("nan")).to_numpy()
        yield _row("photometry_events", name, columns[name], values, (1e-11, 1e-12))
    with np.load(golden / "photo_tensors.npz") as arrays:
        tensors = dict(arrays)
    for horizon in (10.0, 30.0, 100.0):
        made = event_features(events, len(objects), _MAIN, np.full(len(objects), horizon))
        ours, theirs = [], []
        for item in np.flatnonzero(tensors["horizon_days"] == np.float32(horizon)):
            number = objects.index(str(tensors["object_ids"][item]))
            ours.append(made.values[made.offsets[number] : made.offsets[number + 1]])
            theirs.append(tensors["tensors"][tensors["offsets"][item] : tensors["offsets"][item + 1]])
        yield _row(
            "photo_tensors", f"{horizon:.0f} d", np.concatenate(ours), np.concatenate(theirs), (1e-6, 1e-8)
        )
    yield from _metadata(golden, objects, events)
    yield from _spectra(golden)
    yield from _stamps(golden)


def _metadata(golden: Path, objects: list[str], events: object) -> Iterator[Values]:
    recorded = (
        pl.read_parquet(golden / "multimodal_meta.parquet").with_row_index("row").sort("objectId", "row")
    )
    index, columns = event_metadata(objects, events, pq.read_table(golden / "alert_candidates.parquet"))  # type: ignore[arg-type]
    names = np.array([objects[i] for i in events.sequence])[index]  # type: ignore[attr-defined]
    keep = np.isin(names, recorded["objectId"].unique().to_list())
    numeric = [
        n for n in recorded.columns if n in columns and n not in ("policy", "jd_alert", "alert_dt_days")
    ]
    worst = [
        _row(
            "multimodal_meta",
            n,
            columns[n][keep],
            recorded[n].to_numpy(),
            (1e-6, 1e-8 if "days" in n else 0.0),
        )
        for n in numeric
    ]
    name = max(worst, key=lambda r: r[4])[1]
    label = f"{len(numeric)} columns (worst: {name})"
    yield ("multimodal_meta", label, "", max(r[3] for r in worst), max(r[4] for r in worst))
    yield _row(
        "multimodal_meta", "jd_alert", columns["jd_alert"][keep], recorded["jd_alert"].to_numpy(), DAYS
    )


def _spectra(golden: Path) -> Iterator[Values]:
    table = pl.read_parquet(golden / "spectra_input.parquet")
    legacy = dataclasses.replace(_MAIN, name="legacy", spectrum_norm="mad_unguarded")
    with np.load(golden / "spectra_preprocessed.npz") as arrays:
        recorded = {k: arrays[k] for k in arrays.files if k != "wave_grid"}
    for prefix, profile in (("", _MAIN), ("legacy_", legacy)):
        worst: list[Values] = []
        for key, theirs in recorded.items():
            if key.startswith("legacy_") != bool(prefix):
                continue
            case = table.filter(pl.col("case") == key.removeprefix("legacy_"))
            ours = preprocess_spectrum(case["wavelength"].to_numpy(), case["flux"].to_numpy(), profile)
            ours = np.full(theirs.shape, np.nan) if ours is None else ours
            scale = max(1.0, float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0)))
            worst.append(_row("spectra_preprocessed", key, ours, theirs, (0.0, 2e-6 * scale)))
        label = f"{prefix or 'main, '}{len(worst)} cases"
        yield ("spectra_preprocessed", label, "", max(r[3] for r in worst), max(r[4] for r in worst))


def _stamps(golden: Path) -> Iterator[Values]:
    with (
        np.load(golden / "stamps_decoded.npz") as decoded,
        np.load(golden / "stamps_legacy_triplets.npz") as legacy,
    ):
        stamps = [[decoded[f"{case}_{name.lower()}"] for name in STAMPS] for case in legacy.files]
        theirs = np.stack([np.moveaxis(legacy[case], -1, 0) for case in legacy.files])
        ours = make_cutouts(stamps_table(stamps), get_profile("upstream-archive"))[:, :3]
        yield _row("stamps_legacy_triplets", f"{len(stamps)} cases", ours, theirs, (2e-6, 1e-12))
