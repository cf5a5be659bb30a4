"""Upstream's own tables: merged photometry, events with colours, and the metadata of every event.

The merge and the events are those of :mod:`light_curves` under the profile ``upstream-main``; here stands
what upstream has besides. It follows the description of the public code (skyportal/applecider, main); the
rule that picks an alert for an event may look into the future and is not used in a run: see :mod:`metadata`
for ours.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.features.float32_log import log10_float32
from applecider_batch.features.light_curves import Events, event_times, log_fluxes, merge_events
from applecider_batch.features.metadata import CANDIDATE_FIELDS
from applecider_batch.features.points import LN10
from applecider_batch.features.profiles import Profile, get_profile
from applecider_batch.features.segments import (
    expand_ranges,
    float_column,
    int_column,
    run_numbers,
    search_in_segments,
    starts_of,
)

COLOUR_DAYS = 1.0
WINDOW_DAYS = 0.5
_MAG_FLUX_FLOOR = 1e-12
POLICIES: tuple[str, ...] = ("in_window_min_sigmapsf", "fallback_last_in_filter", "fallback_nearest_any")


def merge_points(points: pa.Table, profile: Profile | None = None) -> tuple[list[str], Events]:
    """Merge a table of points (objectId, jd, fid, flux, flux_error) by upstream's rule.

    Returns
    -------
    objects : list of str
        Sorted; ``sequence`` of the events counts in this list.
    events : Events
        Sorted by (object, time, band).
    """
    names = points.column("objectId").cast(pa.string()).combine_chunks()
    objects = sorted(set(names.to_pylist()))
    sequence = pc.index_in(names, value_set=pa.array(objects, pa.string())).to_numpy(zero_copy_only=False)
    events = merge_events(
        sequence.astype(np.int64),
        int_column(points, "fid", 0),
        float_column(points, "jd"),
        float_column(points, "flux"),
        float_column(points, "flux_error"),
        profile or get_profile("upstream-main"),
    )
    return objects, events


def event_table(events: Events, profile: Profile | None = None) -> dict[str, np.ndarray]:
    """Upstream's event columns, in its precision: dt, dt_prev, logflux, logflux_err, colours g_r and r_i."""
    profile = profile or get_profile("upstream-main")
    dt, dt_prev = event_times(events)
    log_flux, log_err = log_fluxes(events, profile)
    columns: dict[str, np.ndarray] = {
        "dt": dt.astype(np.float32),
        "dt_prev": dt_prev.astype(np.float32),
        "band_id": (events.fid - 1).astype(np.int8),
        "logflux": log_flux.astype(np.float32),
        "logflux_err": log_err.astype(np.float32),
    }
    for name, blue, red in (("g_r", 1, 2), ("r_i", 2, 3)):
        columns[name], columns[f"{name}_err"] = _colour(events, blue, red)
        columns[f"has_{name}"] = np.isfinite(columns[name]).astype(np.float32)
    return columns


def _colour(events: Events, blue: int, red: int) -> tuple[np.ndarray, np.ndarray]:
    """m_blue - m_red of bluer events with the redder event nearest in time within 1 d; else NaN."""
    here, there = np.flatnonzero(events.fid == blue), np.flatnonzero(events.fid == red)
    nearest = _nearest(events.sequence[there], events.jd[there], events.sequence[here], events.jd[here])
    paired = nearest >= 0
    here, other = here[paired], there[nearest[paired]]
    close = np.abs(events.jd[other] - events.jd[here]) <= COLOUR_DAYS
    here, other = here[close], other[close]
    colour, error = np.full(len(events), np.nan), np.full(len(events), np.nan)
    # Upstream keeps the flux in float32 here, its error in float64.
    flux = np.maximum(events.flux.astype(np.float32), np.float32(_MAG_FLUX_FLOOR))
    mag = np.float32(-2.5) * log10_float32(flux)
    colour[here] = mag[here] - mag[other]
    relative = 2.5 / LN10 * events.flux_err / flux.astype(np.float64)
    error[here] = np.hypot(relative[here], relative[other])
    return colour, error


def _nearest(
    segment: np.ndarray, value: np.ndarray, query_segment: np.ndarray, query: np.ndarray
) -> np.ndarray:
    """Position of the value nearest to each query in its own segment, the earlier at a tie; -1 for none."""
    if not len(value):
        return np.full(len(query), -1, np.int64)
    after = search_in_segments(segment, value, query_segment, query)
    before = after - 1
    last = len(value) - 1
    has_after = (after <= last) & (segment[np.minimum(after, last)] == query_segment)
    has_before = (before >= 0) & (segment[np.maximum(before, 0)] == query_segment)
    to_after = np.where(has_after, np.abs(value[np.minimum(after, last)] - query), np.inf)
    to_before = np.where(has_before, np.abs(value[np.maximum(before, 0)] - query), np.inf)
    return np.where(has_before & (to_before <= to_after), before, np.where(has_after, after, -1))


def event_metadata(
    objects: list[str], events: Events, candidates: pa.Table
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Upstream's metadata row of every event whose band has an alert of the object.

    Parameters
    ----------
    objects : list of str
    events : Events
        As :func:`merge_points` gives them.
    candidates : pyarrow.Table
        Alerts: objectId, jd, fid and the fields of ``CANDIDATE_FIELDS``.

    Returns
    -------
    index : ndarray of int64, shape (n,)
        The events that have a row.
    columns : dict of str to ndarray
        jd_alert, alert_dt_days, policy (number in ``POLICIES``), the 36 candidate fields (null is -999, NaN
        stays; ra/180 - 1, dec/90) and the running history, each (n,).
    """
    alert, policy = _choose_alerts(objects, events, candidates)
    index = np.flatnonzero(alert >= 0)
    alert = alert[index]
    jd = float_column(candidates, "jd")[alert]
    columns: dict[str, np.ndarray] = {
        "jd_alert": jd,
        "alert_dt_days": np.abs(jd - events.jd[index]),
        "policy": policy[index],
    }
    for name in CANDIDATE_FIELDS:
        column = candidates.column(name)
        missing = column.is_null().to_numpy()
        values = np.where(missing, -999.0, float_column(candidates, name))[alert]
        if name == "ra":
            values = values / 180.0 - 1.0
        elif name == "dec":
            values = values / 90.0
        columns[name] = values
    history = running_history(events)
    return index, columns | {name: values[index] for name, values in history.items()}


def _choose_alerts(objects: list[str], events: Events, candidates: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Alert (row of ``candidates``, -1 for none) and policy of every event."""
    names = candidates.column("objectId").cast(pa.string()).combine_chunks()
    found = pc.index_in(names, value_set=pa.array(objects, pa.string())).fill_null(-1)
    obj = found.to_numpy(zero_copy_only=False).astype(np.int64)
    jd, fid = float_column(candidates, "jd"), int_column(candidates, "fid", 0)
    sigma = float_column(candidates, "sigmapsf")
    order = np.lexsort((jd, fid, obj))
    order = order[obj[order] >= 0]
    band = obj[order] * 4 + fid[order]
    event_band = events.sequence * 4 + events.fid

    first = search_in_segments(band, jd[order], event_band, events.jd - WINDOW_DAYS, "left")
    last = search_in_segments(band, jd[order], event_band, events.jd + WINDOW_DAYS, "right")
    event, where = expand_ranges(first, last)
    best = np.lexsort((where, sigma[order][where], event))
    best = best[starts_of(event[best])] if len(best) else best
    chosen = np.full(len(events), -1, np.int64)
    chosen[event[best]] = where[best]
    policy = np.where(chosen >= 0, 0, 1)

    # Per band in time order: the first event may need the nearest alert, later ones the last one used.
    by_band = np.lexsort((events.jd, event_band))
    starts = starts_of(event_band[by_band])
    seeds = by_band[starts]
    lacking = seeds[chosen[seeds] < 0]
    chosen[lacking] = _nearest(band, jd[order], event_band[lacking], events.jd[lacking])
    policy[lacking] = 2
    known = np.where(chosen[by_band] >= 0, np.arange(len(by_band)), -1)
    latest = np.maximum.accumulate(known) if len(known) else known
    own = starts[run_numbers(starts, len(by_band))] if len(by_band) else known
    filled = np.where(latest >= own, chosen[by_band[np.maximum(latest, 0)]], -1)
    chosen[by_band] = filled
    return np.where(chosen >= 0, order[np.maximum(chosen, 0)] if len(order) else -1, -1), policy


def running_history(events: Events) -> dict[str, np.ndarray]:
    """Peak, faintest event and counts up to and including each event, float64 (n,) each."""
    n = len(events)
    starts = starts_of(events.sequence)
    run = run_numbers(starts, n)
    own = starts[run] if n else run
    brightest, peak = _running_best(events.flux, run)
    faintest, _ = _running_best(-events.flux, run)
    peak_mag, max_mag = _mag(brightest), _mag(-faintest)
    since, until = events.jd - events.jd[peak], events.jd[peak] - events.jd[own]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = max_mag / peak_mag
    out = {
        "days_since_peak": since,
        "days_to_peak": until,
        "age_sum_days": since + until,
        "peakmag_so_far": peak_mag,
        "maxmag_so_far": max_mag,
        "max_over_peak_mag": ratio,
        "n_photometry_total": (np.arange(n) - own + 1).astype(np.float64),
    }
    for fid in (1, 2, 3):
        total = np.cumsum(events.fid == fid)
        before = total[own] - (events.fid[own] == fid)
        out[f"n_photometry_fid_{fid}"] = (total - before).astype(np.float64)
    return out


def _running_best(values: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest value so far in each run, and where it was reached first."""
    n = len(values)
    _, rank = np.unique(values, return_inverse=True)
    # Integers that grow from run to run: an ordinary running maximum never looks into the run before.
    key = run * (n + 1) + rank
    so_far = np.maximum.accumulate(key) if n else key
    is_new = np.ones(n, bool)
    is_new[1:] = so_far[1:] > so_far[:-1]
    where = np.maximum.accumulate(np.where(is_new, np.arange(n), 0)) if n else run
    return values[where], where


def _mag(flux: np.ndarray) -> np.ndarray:
    return -2.5 * np.log10(np.maximum(flux, _MAG_FLUX_FLOOR))
