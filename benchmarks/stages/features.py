"""From rows of the archive to what the networks take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from applecider_batch.archive.read import Archive
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.light_curves import choose_points, event_features, merge_events
from applecider_batch.features.metadata import event_history, packet_metadata
from applecider_batch.features.points import load_alerts, load_points
from applecider_batch.features.profiles import get_profile
from applecider_batch.features.segments import expand_ranges
from applecider_batch.features.spectra import preprocess_spectrum
from benchmarks.stages import Stage
from benchmarks.stages.decoding import EVERYTHING
from benchmarks.stages.inputs import Inputs

_OBJECTS = 150
_HORIZONS = (3.0, 10.0, 30.0, None)


def light_curves(inputs: Inputs) -> Stage:
    """The 12 h merge and the seven features of every event, of all light curves at once."""
    profile = get_profile("paper")
    shard = Archive.open(inputs.curves).read_shard(*EVERYTHING)
    points = load_points(shard.photometry, pa.array(shard.objects, pa.string()))
    sequence, at = choose_points(points, points.obj, np.arange(len(points.jd)), profile)
    columns = {
        "sequence": sequence,
        "fid": points.fid[at],
        "jd": points.jd[at],
        "flux": points.flux[at],
        "flux_err": points.flux_err[at],
    }
    n = len(shard.objects)
    some = np.unique(sequence)[:: max(1, len(np.unique(sequence)) // _OBJECTS)][:_OBJECTS]
    frame = pd.DataFrame(columns)
    frame = frame[frame["sequence"].isin(some)]

    def features() -> Any:
        return event_features(merge_events(*columns.values(), profile), n, profile)

    def ours() -> int:
        features()
        return len(sequence)

    def reference() -> int:
        for _, curve in frame.groupby("sequence"):
            _pandas_features(curve, profile.max_events)
        return len(frame)

    def same() -> None:
        made = features()
        for key, curve in frame.groupby("sequence"):
            expected = _pandas_features(curve, profile.max_events)
            found = made.values[made.offsets[key] : made.offsets[key + 1]]
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)

    note = f"{len(sequence)} {inputs.kind} points of {n} objects; the loop does {len(some)} objects"
    return Stage("light-curve features", "points", ours, reference, "sorting", 200, same, notes=[note])


def _pandas_features(curve: Any, max_events: int) -> np.ndarray:
    """One object with pandas, band by band and group by group, as a script does it."""
    merged = []
    for fid, band in curve.groupby("fid"):
        band = band.sort_values("jd")
        while len(band):
            group = band[band["jd"] - band["jd"].iloc[0] <= 0.5]
            weight = 1 / group["flux_err"] ** 2
            first = group["jd"].iloc[0]
            merged.append(
                {
                    "fid": fid,
                    "jd": first + ((group["jd"] - first) * weight).sum() / weight.sum(),
                    "flux": (group["flux"] * weight).sum() / weight.sum(),
                    "flux_err": 1 / math.sqrt(weight.sum()),
                }
            )
            band = band.iloc[len(group) :]
    events = pd.DataFrame(merged, columns=["fid", "jd", "flux", "flux_err"])
    events = events[events["flux"] > 0].sort_values(["jd", "fid"]).head(max_events)
    out = pd.DataFrame(index=events.index)
    out["dt"] = np.log1p(events["jd"] - events["jd"].min())
    out["dt_prev"] = np.log1p(events["jd"].diff().fillna(0.0))
    out["logflux"] = np.log10(events["flux"].clip(lower=1e-6))
    out["logflux_err"] = events["flux_err"] / (events["flux"].clip(lower=1e-6) * math.log(10))
    for band in (1, 2, 3):
        out[f"band{band}"] = (events["fid"] == band).astype(float)
    return out.to_numpy()


def metadata(inputs: Inputs) -> Stage:
    """The paper's numbers of every packet from its candidate and the events known by then."""
    profile = get_profile("paper")
    shard = Archive.open(inputs.simulated_archive).read_shard(*EVERYTHING)
    objects = pa.array(shard.objects, pa.string())
    alerts, points = load_alerts(shard.alerts, objects), load_points(shard.photometry, objects)
    ends = [np.searchsorted(points.obj, alerts.obj, side) for side in ("left", "right")]
    packet, at = expand_ranges(*ends)
    known = points.known_jd[at] <= alerts.jd[packet]
    packet, at = choose_points(points, packet[known], at[known], profile)
    events = merge_events(
        packet, points.fid[at], points.jd[at], points.flux[at], points.flux_err[at], profile
    )
    n, names = len(alerts), profile.metadata_names
    some = np.arange(0, n, max(1, n // _OBJECTS))[:_OBJECTS]
    candidates = alerts.table.take(pa.array(some)).to_pandas()
    frame = pd.DataFrame({"packet": events.sequence, "jd": events.jd, "flux": events.flux})
    frame = frame[frame["packet"].isin(some)]

    def made() -> np.ndarray:
        return packet_metadata(alerts, np.arange(n), event_history(events, n, alerts.jd, profile), profile)

    def plain() -> np.ndarray:
        rows = []
        for packet, candidate in zip(some, candidates.to_dict("records"), strict=True):
            own = frame[(frame["packet"] == packet) & (frame["flux"] > 0)].head(profile.max_events)
            peak = profile.peak_zero_point - 2.5 * np.log10(own["flux"].max())
            candidate |= {
                "nnondet": candidate["ncovhist"] - candidate["ndethist"],
                "age": candidate["jd"] - own["jd"].min(),
                "peakmag_so_far": peak,
            }
            numbers = np.array([candidate[name] for name in names], np.float32)
            rows.append(np.where(np.isfinite(numbers), numbers, profile.missing_value))
        return np.array(rows)

    def ours() -> int:
        made()
        return n

    def reference() -> int:
        return len(plain())

    def same() -> None:
        np.testing.assert_allclose(made()[some], plain(), rtol=1e-6)

    note = f"{n} simulated packets; the loop does {len(some)}"
    return Stage("metadata", "packets", ours, reference, "columns of Arrow", None, same, notes=[note])


def spectra(inputs: Inputs) -> Stage:
    """Rest frame, grid and z-score of spectra; the reference interpolates with NumPy point by point mask."""
    profile = get_profile("paper")
    rng = np.random.default_rng(0)
    wavelength = np.linspace(3500.0, 9500.0, 2400)
    fluxes = [rng.normal(1.0, 0.1, len(wavelength)) for _ in range(200)]

    def ours() -> int:
        for flux in fluxes:
            preprocess_spectrum(wavelength, flux, profile, 0.05)
        return len(fluxes)

    return Stage("spectra", "spectra", ours, None, "interpolation", notes=["2,400 points each"])


def preparation(inputs: Inputs) -> Stage:
    """Everything of a shard at four horizons: walls, episodes, gate, summaries, all inputs."""
    archive = Archive.open(inputs.simulated_archive)
    shard = archive.read_shard(*EVERYTHING)
    profile = get_profile("paper")
    jd_max = archive.snapshot.jd_max or 0.0

    def ours() -> int:
        made = prepare_shard(shard, _HORIZONS, profile, snapshot_jd_max=jd_max)
        return int(made.rows.num_rows)

    note = f"{len(shard.objects)} simulated objects, four horizons"
    return Stage("preparation of rows", "rows", ours, None, "NumPy over packets and points", notes=[note])


STAGES: tuple[Callable[[Inputs], Stage], ...] = (light_curves, metadata, spectra, preparation)
