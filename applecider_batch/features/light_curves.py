"""Light curves: points to merged events to the seven features of an event, for all sequences of a shard at
once.

The way of a point (arXiv:2507.16088, section 3.1 and Table 4; upstream's variants through the profile):

1. *Which points.* Detections of either sign. A forced point counts where the profile's ``forced_snr`` is
   reached (in absolute value, so that neither sign is favoured) and where no detection came from the same
   exposure: the alert's own fit is kept, the same photons are not counted twice. Without the threshold half
   of the forced points before an explosion would be events made of noise and would start the clock; 5 sigma
   is what an alert needs.
2. *Merge.* Per sequence and band in time order: a group begins at an event and takes all that follow within
   <= 0.5 d of its **first**. ``inverse_variance``: w = 1/sigma^2, sigma_merged = (sum w)^(-1/2);
   ``inverse_error`` (upstream): w = 1/(sigma + 1e-8), sigma_merged = the weighted mean of sigma. Time and
   flux are weighted means. Fluxes are signed (upstream: absolute values).
3. *Events.* All bands by time. Merged events whose flux is not positive leave the sequence and are counted.
   dt is measured from the first event that is left, dt_prev from the previous one (0 for the first).
4. *Features*: log1p(dt), log1p(dt_prev), log10 max(flux, floor), sigma/(flux ln 10), one-hot g, r, i.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from applecider_batch.compiled import compiled
from applecider_batch.features.float32_log import log10_float32
from applecider_batch.features.order import order_within
from applecider_batch.features.points import (
    CANDIDATE,
    FORCED,
    LN10,
    Points,
    latest_revisions,
    repeated_measurements,
)
from applecider_batch.features.profiles import Profile
from applecider_batch.features.segments import (
    counts_of,
    expand_ranges,
    run_numbers,
    starts_of,
)

N_FEATURES = 7
HOURS_PER_DAY = 24.0


@dataclass(frozen=True)
class Events:
    """Merged events of many sequences, sorted by (sequence, time, band).

    Attributes
    ----------
    sequence : ndarray of int64, shape (n,)
        Ascending.
    jd : ndarray of float64, shape (n,)
        Weighted mean time, d.
    fid : ndarray of int64, shape (n,)
    flux, flux_err : ndarray of float64, shape (n,)
        µJy.
    n_points : ndarray of int64, shape (n,)
        Points in the event.
    """

    sequence: np.ndarray
    jd: np.ndarray
    fid: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    n_points: np.ndarray

    def __len__(self) -> int:
        return len(self.jd)

    def take(self, index: np.ndarray) -> Events:
        """The events at these positions (or under this mask)."""
        return Events(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def choose_points(
    points: Points, sequence: np.ndarray, position: np.ndarray, profile: Profile
) -> tuple[np.ndarray, np.ndarray]:
    """Which visible points make the light curve (step 1 above).

    Parameters
    ----------
    points : Points
    sequence, position : ndarray of int64, shape (p,)
        Visible (sequence, point) pairs, sequence ascending.
    profile : Profile

    Returns
    -------
    sequence, position : ndarray of int64, shape (q,)
    """
    keep = latest_revisions(points, sequence, position)
    keep &= ~repeated_measurements(points, sequence, position)
    forced = points.forced[position]
    usable = np.isfinite(points.flux[position])
    bands = (points.fid[position] >= 1) & (points.fid[position] <= 3)
    if profile.forced_snr is None:
        # A table's flux still counts where it is a detection: the object may have nothing else.
        measured = points.detection[position] & (points.origin[position] != FORCED)
    else:
        measured = np.abs(points.flux[position]) >= profile.forced_snr * points.flux_err[position]
    chosen = np.flatnonzero(keep & usable & bands & np.where(forced, measured, points.detection[position]))
    sequence, position = sequence[chosen], position[chosen]
    if profile.one_per_exposure:
        first = _first_per_exposure(points, sequence, position)
        sequence, position = sequence[first], position[first]
    return sequence, position


def _first_per_exposure(points: Points, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Upstream's rule: of each (band, jd to 5 decimals) the first, alerts before their histories."""
    exposure = np.round(points.jd[position], 5)
    fid, later = points.fid[position], points.origin[position] != CANDIDATE
    keys = (sequence, fid, exposure)
    ties = (later, points.known_jd[position], points.jd[position], points.candid[position])
    order = order_within(*keys, *ties)
    return np.sort(order[starts_of(*(key[order] for key in keys))])


def merge_events(
    sequence: np.ndarray,
    fid: np.ndarray,
    jd: np.ndarray,
    flux: np.ndarray,
    flux_err: np.ndarray,
    profile: Profile,
) -> Events:
    """Merge points of a band that lie within ``profile.merge_hours`` of a group's first (step 2 above).

    Parameters
    ----------
    sequence, fid : ndarray of int, shape (n,)
        Sequence number and band of each point, in any order.
    jd, flux, flux_err : ndarray of float64, shape (n,)
        Days, µJy, µJy; finite, flux_err > 0.
    profile : Profile

    Returns
    -------
    Events
        All merged events, whatever the sign of their flux.
    """
    if not profile.signed_flux:
        flux = np.abs(flux)
    order = order_within(sequence, fid, jd, flux, flux_err)
    sequence, fid, jd, flux, flux_err = (a[order] for a in (sequence, fid, jd, flux, flux_err))
    starts = _group_starts(sequence, fid, jd, profile.merge_hours / HOURS_PER_DAY)
    if not len(starts):
        empty = np.empty(0)
        return Events(sequence, empty, fid, empty, empty, np.empty(0, np.int64))
    group = run_numbers(starts, len(jd))
    weight = 1.0 / flux_err**2 if profile.merge_weights == "inverse_variance" else 1.0 / (flux_err + 1e-8)
    total = np.add.reduceat(weight, starts)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(weight * values, starts) / total

    # Times relative to the group's first keep the digits that a Julian date would take from the mean.
    time = jd[starts] + mean(jd - jd[starts][group])
    error = 1.0 / np.sqrt(total) if profile.merge_weights == "inverse_variance" else mean(flux_err)
    size = np.diff(np.append(starts, len(jd)))
    events = Events(sequence[starts], time, fid[starts], mean(flux), error, size)
    return events.take(order_within(events.sequence, events.jd, events.fid))


@compiled
def _group_starts(sequence: np.ndarray, fid: np.ndarray, jd: np.ndarray, window_days: float) -> np.ndarray:
    """First positions of the merge groups; input sorted by (sequence, fid, jd)."""
    starts = np.empty(len(jd), np.int64)
    count = 0
    for i in range(len(jd)):
        first = starts[count - 1]
        if (
            count == 0
            or sequence[i] != sequence[first]
            or fid[i] != fid[first]
            or jd[i] - jd[first] > window_days
        ):
            starts[count] = i
            count += 1
    return starts[:count]


@dataclass(frozen=True)
class Sequences:
    """Feature rows of many sequences, ragged.

    Attributes
    ----------
    values : ndarray of float32, shape (N, 7)
        log1p(dt / d), log1p(dt_prev / d), log10(flux / µJy), its error, one-hot g, r, i.
    offsets : ndarray of int64, shape (n + 1,)
        Sequence k is ``values[offsets[k]:offsets[k + 1]]``; empty where nothing is left.
    n_not_positive : ndarray of int64, shape (n,)
        Merged events that were left out because their flux is not positive.
    n_cut : ndarray of int64, shape (n,)
        Events beyond ``max_events``.
    """

    values: np.ndarray
    offsets: np.ndarray
    n_not_positive: np.ndarray
    n_cut: np.ndarray


def in_sequence(events: Events) -> np.ndarray:
    """True for events that enter the log-flux sequence: positive, finite flux."""
    return (events.flux > 0) & np.isfinite(events.flux) & np.isfinite(events.flux_err)


def event_features(
    events: Events, n_sequences: int, profile: Profile, horizon_days: np.ndarray | None = None
) -> Sequences:
    """The seven features of every event (steps 3 and 4 above).

    Parameters
    ----------
    events : Events
    n_sequences : int
        Number of sequences, with the empty ones.
    profile : Profile
    horizon_days : ndarray of float64, shape (n_sequences,), optional
        Keep events with dt <= horizon (NaN: all).

    Returns
    -------
    Sequences
    """
    positive = in_sequence(events)
    n_not_positive = counts_of(events.sequence, n_sequences, ~positive)
    events = events.take(positive)
    dt, dt_prev = event_times(events)
    work = np.dtype(profile.event_dtype)
    dt, dt_prev = dt.astype(work), dt_prev.astype(work)
    if horizon_days is not None:
        limit = horizon_days[events.sequence]
        kept = ~(dt > limit)
        events, dt, dt_prev = events.take(kept), dt[kept], dt_prev[kept]
    starts = starts_of(events.sequence)
    rank = np.arange(len(events)) - (starts[run_numbers(starts, len(events))] if len(events) else 0)
    inside = rank < profile.max_events
    n_cut = counts_of(events.sequence, n_sequences, ~inside)
    events, dt, dt_prev = events.take(inside), dt[inside], dt_prev[inside]

    log_flux, log_err = log_fluxes(events, profile)
    values = np.zeros((len(events), N_FEATURES), np.float32)
    values[:, 0] = np.log1p(dt)
    values[:, 1] = np.log1p(dt_prev)
    values[:, 2] = log_flux
    values[:, 3] = log_err
    values[np.arange(len(events)), 3 + events.fid] = 1.0
    counts = counts_of(events.sequence, n_sequences)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Sequences(values, offsets, n_not_positive, n_cut)


def event_times(events: Events) -> tuple[np.ndarray, np.ndarray]:
    """Days since the sequence's first event and since the previous one (0 for the first), float64 (n,)."""
    starts = starts_of(events.sequence)
    if not len(starts):
        return np.empty(0), np.empty(0)
    dt = events.jd - events.jd[starts][run_numbers(starts, len(events))]
    dt_prev = np.zeros(len(dt))
    dt_prev[1:] = dt[1:] - dt[:-1]
    dt_prev[starts] = 0.0
    return dt, dt_prev


def log_fluxes(events: Events, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """log10 of the floored flux and its error sigma/(f ln 10), in the profile's precision."""
    work = np.dtype(profile.event_dtype)
    flux = np.maximum(events.flux.astype(work), work.type(profile.flux_floor))
    # Upstream divides by ln 10 in float64 and by the flux in float32.
    scaled = (events.flux_err.astype(work).astype(np.float64) / LN10).astype(np.float64)
    wide = flux.astype(np.float64)
    logarithm = log10_float32(flux) if work == np.float32 else np.log10(flux)
    return logarithm, (scaled / wide).astype(work)


def drop_repeated(
    sequences: Sequences, family: np.ndarray, limits: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences that equal their predecessor of the same family to the bit are kept once; empty ones go.

    Parameters
    ----------
    sequences : Sequences
    family : ndarray of int64, shape (n,)
        Only neighbours of one family (an episode) are compared.
    limits : tuple of ndarray, (M, 3) and (n + 1,), optional
        Upper limits and their offsets, which must be equal as well.

    Returns
    -------
    kept : ndarray of int64, shape (k,)
        Sequences to keep.
    item : ndarray of int32, shape (n,)
        Position in ``kept`` of each sequence; -1 for an empty one.
    """
    length = np.diff(sequences.offsets)
    same = np.zeros(len(length), bool)
    same[1:] = (family[1:] == family[:-1]) & (length[1:] > 0)
    for values, offsets in ((sequences.values, sequences.offsets), *([limits] if limits else [])):
        same &= _as_before(values, offsets)
    new = ~same & (length > 0)
    item = np.cumsum(new) - 1
    item[length == 0] = -1
    return np.flatnonzero(new), item.astype(np.int32)


def _as_before(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which ranges hold the same rows as the range before them, bool (n,)."""
    length = np.diff(offsets)
    same = np.zeros(len(length), bool)
    candidates = 1 + np.flatnonzero(length[1:] == length[:-1])
    segment, here = expand_ranges(offsets[candidates], offsets[candidates + 1])
    differs = (values[here] != values[here - length[candidates][segment]]).any(axis=1)
    same[candidates] = counts_of(segment, len(candidates), differs) == 0
    return same
