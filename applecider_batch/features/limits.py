"""Upper limits beside the events of a light curve, behind the same wall.

Limits of a band within 12 h are merged like events, as measurements of a flux of 0. Kept are those from 30 d
before a sequence's first event up to its last event, the latest 63 of them.
"""

from __future__ import annotations

import numpy as np

from applecider_batch.features.curve_summary import LIMIT_DAYS, N_LIMIT
from applecider_batch.features.light_curves import Events, Sequences, merge_events
from applecider_batch.features.points import Points, latest_revisions, repeated_measurements
from applecider_batch.features.profiles import Profile
from applecider_batch.features.segments import counts_of, starts_of

MAX_LIMITS = 63


def merge_limits(points: Points, sequence: np.ndarray, position: np.ndarray, profile: Profile) -> Events:
    """Merged upper limits of all sequences, with flux 0.

    Parameters
    ----------
    points : Points
    sequence, position : ndarray of int64, shape (p,)
        Visible (sequence, point) pairs, sequence ascending.
    profile : Profile
    """
    keep = latest_revisions(points, sequence, position)
    keep &= ~repeated_measurements(points, sequence, position)
    keep &= np.isfinite(points.limit_err[position])
    keep &= (points.fid[position] >= 1) & (points.fid[position] <= 3)
    sequence, position = sequence[keep], position[keep]
    error = points.limit_err[position]
    fid, jd = points.fid[position], points.jd[position]
    return merge_events(sequence, fid, jd, np.zeros(len(error)), error, profile)


def limits_of(events: Events, sequences: Sequences, limits: Events) -> tuple[np.ndarray, np.ndarray]:
    """The limits that belong to sequences, relative to their first event.

    Parameters
    ----------
    events : Events
        Those that the sequences were made of.
    sequences : Sequences
    limits : Events
        Of the same sequence numbers, see :func:`merge_limits`.

    Returns
    -------
    values : ndarray of float32, shape (M, 3)
        Days after the first event, log10 of the 1-sigma error in µJy, band.
    offsets : ndarray of int64, shape (n + 1,)
    """
    n = len(sequences.offsets) - 1
    first, last = np.full(n, np.nan), np.full(n, np.nan)
    starts = starts_of(events.sequence)
    first[events.sequence[starts]] = events.jd[starts]
    filled = np.diff(sequences.offsets) > 0
    last[filled] = np.expm1(sequences.values[sequences.offsets[1:][filled] - 1, 0])
    dt = limits.jd - first[limits.sequence]
    kept = (dt >= -LIMIT_DAYS) & (dt < last[limits.sequence])  # NaN: a sequence without events
    limits, dt = limits.take(kept), dt[kept]
    values = np.empty((len(dt), N_LIMIT), np.float32)
    values[:, 0], values[:, 1], values[:, 2] = dt, np.log10(limits.flux_err), limits.fid
    ends = np.cumsum(counts_of(limits.sequence, n))
    latest = np.arange(len(dt)) >= ends[limits.sequence] - MAX_LIMITS
    counts = counts_of(limits.sequence, n, latest)
    return values[latest], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
