"""Summary numbers of light curves: brightness, rates, colours and a Gaussian process on a grid of phases.

All from what stands behind the wall: the merged events of a sequence and the upper limits between 30 d before
its first event and its last one. A limit after the last event would be known from a later packet only, so it
is never used, whatever the source of the curve delivers.

The Gaussian process (Rasmussen & Williams 2006, eqs. 2.23-2.24) has mean 0 and the covariance

    k = A^2 (1 + r) exp(-r) rho^|b - b'|,   r = sqrt(3) |t - t'| / 20 d   (Matérn 3/2)

in units of the brightest event's flux, with bands b = 0, 1, 2 (g, r, i), as is common for supernovae (Lochner
et al. 2016, arXiv:1603.00882; Boone 2019, arXiv:1907.04690). An upper limit enters as a flux of 0 with its
error.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from applecider_batch.features.segments import (
    counts_of,
    expand_ranges,
    reduce_segments,
    run_numbers,
    search_in_segments,
)

#: What `features.inputs.prepare_shard` is asked for.
CURVE_SUMMARY = "curve_summary"
N_LIMIT = 3
LIMIT_DAYS = 30.0
BANDS = "gri"
#: Days after the brightest event, and after the first one, at which the process is asked.
PEAK_PHASES = (-30, -20, -15, -10, -5, 0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 110, 140, 180)
FIRST_PHASES = (-3, 0, 2, 4, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100)

_AMPLITUDE, _SCALE_DAYS, _RHO, _NUGGET = 0.7, 20.0, 0.75, 0.03
_LEAST_FLUX = 0.02  # of the peak, in colours of the process
_PAIR_DAYS = 1.5
_FLOOR_MAG = 0.05  # added to errors in slopes, so that no single point decides
_SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 320)  # 257 events and 63 limits at most
_CHUNK = 1 << 21  # elements of the covariances that are solved together

_OVERALL = (
    "n", "last_dt", "peak_dt", "after_peak", "peak_mag", "rise_mag", "fade_mag", "n_limits_before",
    "limit_gap", "limit_depth", "limit_rate", "limit_mag", "n_limits_between",
)  # fmt: skip
_WINDOWS = ("rise", "decline", "peak_0_15", "peak_12_40", "peak_35", "first_0_5", "first_5_15")
_PER_BAND = (
    "n", "first_dt", "peak_after", "peak_mag", "rise_mag", "fade_mag", "after_peak", "width", "std",
    *(f"slope_{w}" for w in _WINDOWS),
)  # fmt: skip
_COLOUR = ("n", "first", "last", "mean", "min", "max", "at_peak", "slope", "slope_before", "slope_after",
           "first_dt", "last_dt")  # fmt: skip
_BETWEEN = ("peak_dt", "peak_mag")
_PHASES = (*(f"peak{p:+d}" for p in PEAK_PHASES), *(f"first{p:+d}" for p in FIRST_PHASES))

#: Numbers that can be undefined (NaN), then those of the process, which never are.
DIRECT_NAMES: tuple[str, ...] = (
    *_OVERALL,
    *(f"{band}_{name}" for band in BANDS for name in _PER_BAND),
    *(f"gr_{name}" for name in (*_COLOUR, *_BETWEEN)),
)
PROCESS_NAMES: tuple[str, ...] = (
    *(f"{band}_{p}" for band in "gr" for p in _PHASES),
    *(f"{band}_error_{p}" for band in "gr" for p in _PHASES),
    *(f"gr_{p}" for p in _PHASES),
)
SUMMARY_NAMES: tuple[str, ...] = (*DIRECT_NAMES, *PROCESS_NAMES)


def curve_summary(
    values: np.ndarray, offsets: np.ndarray, limits: np.ndarray, limit_offsets: np.ndarray
) -> np.ndarray:
    """Summary numbers of curves; those of one do not depend on its neighbours.

    Parameters
    ----------
    values : ndarray of float32, shape (N, 7)
        Events, see `light_curves.Sequences`; every curve has at least one.
    offsets : ndarray of int64, shape (n + 1,)
    limits : ndarray of float32, shape (M, 3)
        Days after the first event, log10 of the 1-sigma error of a flux of 0 (µJy), band (1 g, 2 r, 3 i).
    limit_offsets : ndarray of int64, shape (n + 1,)

    Returns
    -------
    ndarray of float32, shape (n, len(SUMMARY_NAMES))
        NaN where a number is not defined, in columns of :data:`DIRECT_NAMES` only.
    """
    n = len(offsets) - 1
    if not n:
        return np.empty((0, len(SUMMARY_NAMES)), np.float32)
    curves = _Curves(values, offsets)
    columns = _overall(curves, limits.astype(np.float64), limit_offsets)
    for band in range(len(BANDS)):
        columns += _one_band(curves, band)
    columns += _colours(curves)
    direct = np.stack(columns, axis=1)
    process = _process(curves, offsets, limits.astype(np.float64), limit_offsets)
    return np.concatenate([direct, process], axis=1).astype(np.float32)


class _Curves:
    """Events as columns, and what is asked of each curve's events."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        x = values.astype(np.float64)
        self.starts, self.n = offsets[:-1], len(offsets) - 1
        self.of = run_numbers(self.starts, len(x))
        self.t = np.expm1(x[:, 0])
        self.mag = -2.5 * x[:, 2]  # AB magnitude - 23.9
        self.mag_err = 2.5 * x[:, 3]
        self.band = x[:, 4:7].argmax(axis=1)
        self.every = np.ones(len(x), bool)
        self.peak_mag = self.lowest(self.mag, self.every)
        self.peak_t = self.lowest(self.t, self.mag == self.peak_mag[self.of])
        self.last_t = self.highest(self.t, self.every)

    def total(self, values: np.ndarray) -> np.ndarray:
        out: np.ndarray = np.add.reduceat(values, self.starts)
        return out

    def count(self, where: np.ndarray) -> np.ndarray:
        return self.total(where.astype(np.float64))

    def lowest(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return _finite(np.minimum.reduceat(np.where(where, values, np.inf), self.starts))

    def highest(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return _finite(np.maximum.reduceat(np.where(where, values, -np.inf), self.starts))

    def at(self, values: np.ndarray, when: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Value of the first event with ``where`` whose time is that of its curve in ``when``."""
        return self.lowest(values, where & (self.t == when[self.of]))

    def spread(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        count = self.count(where)
        mean = self.total(np.where(where, values, 0.0)) / np.maximum(count, 1)
        square = self.total(np.where(where, (values - mean[self.of]) ** 2, 0.0))
        return np.where(count > 0, np.sqrt(square / np.maximum(count, 1)), np.nan)

    def slope(self, where: np.ndarray) -> np.ndarray:
        """Magnitudes per day; NaN below two events or half a day."""
        weight = np.where(where, 1.0 / (self.mag_err**2 + _FLOOR_MAG**2), 0.0)
        return _slope(self.of, self.starts, self.t, self.mag, weight)


def _slope(
    of: np.ndarray, starts: np.ndarray, t: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    used = weight > 0
    total = np.add.reduceat(weight, starts)
    safe = np.where(total > 0, total, 1.0)
    dt = t - (np.add.reduceat(weight * np.where(used, t, 0.0), starts) / safe)[of]
    dy = np.where(used, y, 0.0) - (np.add.reduceat(weight * np.where(used, y, 0.0), starts) / safe)[of]
    variance = np.add.reduceat(weight * dt**2, starts)
    span = np.maximum.reduceat(np.where(used, t, -np.inf), starts)
    span = span - np.minimum.reduceat(np.where(used, t, np.inf), starts)
    enough = (np.add.reduceat(used.astype(np.float64), starts) > 1) & (span >= 0.5) & (variance > 0)
    covariance = np.add.reduceat(weight * dt * dy, starts)
    return np.where(enough, covariance / np.where(enough, variance, 1.0), np.nan)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _overall(c: _Curves, limits: np.ndarray, limit_offsets: np.ndarray) -> list[np.ndarray]:
    of = np.repeat(np.arange(c.n), np.diff(limit_offsets))
    t, depth = limits[:, 0], -2.5 * (limits[:, 1] + np.log10(5.0))  # 5 sigma, as a magnitude - 23.9
    before = t < 0
    last = np.full(c.n, -np.inf)
    seen = reduce_segments(np.maximum, t[before], of[before], c.n, -np.inf)
    last = np.where(np.isfinite(seen), seen, np.nan)
    latest = before & (t == last[of])
    mag = _finite(reduce_segments(np.maximum, depth[latest], of[latest], c.n, -np.inf))
    first_mag = c.at(c.mag, np.zeros(c.n), c.every)
    return [
        c.count(c.every),
        c.last_t,
        c.peak_t,
        c.last_t - c.peak_t,
        c.peak_mag,
        first_mag - c.peak_mag,
        c.at(c.mag, c.last_t, c.every) - c.peak_mag,
        counts_of(of, c.n, before).astype(np.float64),
        -last,
        mag - first_mag,
        (mag - first_mag) / np.maximum(-last, 0.3),
        mag,
        counts_of(of, c.n, ~before).astype(np.float64),
    ]


def _one_band(c: _Curves, band: int) -> list[np.ndarray]:
    own = c.band == band
    peak = c.lowest(c.mag, own)
    peak_t = c.lowest(c.t, own & (c.mag == peak[c.of]))
    first_t, last_t = c.lowest(c.t, own), c.highest(c.t, own)
    bright = own & (c.mag < peak[c.of] + 0.5)
    phase = c.t - c.peak_t[c.of]
    windows = (
        c.t <= peak_t[c.of],
        c.t >= peak_t[c.of],
        (phase >= 0) & (phase <= 15),
        (phase > 12) & (phase <= 40),
        phase > 35,
        c.t < 5,
        (c.t >= 5) & (c.t < 15),
    )
    return [
        c.count(own),
        first_t,
        peak_t - c.peak_t,
        peak - c.peak_mag,
        c.at(c.mag, first_t, own) - peak,
        c.at(c.mag, last_t, own) - peak,
        last_t - peak_t,
        c.highest(c.t, bright) - c.lowest(c.t, bright),
        c.spread(c.mag, own),
        *(c.slope(own & window) for window in windows),
    ]


def _colours(c: _Curves) -> list[np.ndarray]:
    """g - r wherever an event in r lies within 1.5 d of one in g, and how the bands' peaks differ."""
    g, r = np.flatnonzero(c.band == 0), np.flatnonzero(c.band == 1)
    after = search_in_segments(c.of[r], c.t[r], c.of[g], c.t[g])
    colour = np.full(len(c.t), np.nan)
    distance = np.full(len(g), np.inf)
    for candidate in (after - 1, after):
        inside = (candidate >= 0) & (candidate < len(r))
        partner = r[np.clip(candidate, 0, max(len(r) - 1, 0))] if len(r) else np.zeros(len(g), np.int64)
        away = np.where(inside & (c.of[partner] == c.of[g]), np.abs(c.t[partner] - c.t[g]), np.inf)
        closer = (away < distance) & (away <= _PAIR_DAYS)
        colour[g[closer]] = (c.mag[g] - c.mag[partner])[closer]
        distance = np.where(closer, away, distance)
    found = np.isfinite(colour)
    value = np.where(found, colour, 0.0)
    first, last = c.lowest(c.t, found), c.highest(c.t, found)
    count = c.count(found)
    phase = c.t - c.peak_t[c.of]
    nearest = c.lowest(np.abs(phase), found)

    def slope(where: np.ndarray) -> np.ndarray:
        return _slope(c.of, c.starts, c.t, value, (found & where).astype(np.float64))

    own = [c.lowest(c.mag, c.band == b) for b in (0, 1)]
    when = [c.lowest(c.t, (c.band == b) & (c.mag == own[b][c.of])) for b in (0, 1)]
    return [
        count,
        c.at(value, first, found),
        c.at(value, last, found),
        np.where(count > 0, c.total(value) / np.maximum(count, 1), np.nan),
        c.lowest(value, found),
        c.highest(value, found),
        c.lowest(value, found & (np.abs(phase) == nearest[c.of])),
        slope(c.every),
        slope(phase <= 5),
        slope(phase >= 0),
        first,
        last,
        when[0] - when[1],
        own[0] - own[1],
    ]


def _process(c: _Curves, offsets: np.ndarray, limits: np.ndarray, limit_offsets: np.ndarray) -> np.ndarray:
    """Mean and error of the process in g and r at all phases, and its g - r; (n, len(PROCESS_NAMES))."""
    peak_flux = 10 ** (-0.4 * c.peak_mag)
    flux = 10 ** (-0.4 * c.mag) / peak_flux[c.of]
    error = np.hypot(flux * c.mag_err * np.log(10) / 2.5, _NUGGET)
    limit_of = np.repeat(np.arange(c.n), np.diff(limit_offsets))
    limit_error = np.hypot(10 ** limits[:, 1] / peak_flux[limit_of], _NUGGET)
    out = np.empty((c.n, len(PROCESS_NAMES)))
    for size, items in _by_size(np.diff(offsets) + np.diff(limit_offsets)):
        t, band, y, noise = (np.zeros((len(items), size)) for _ in range(4))
        for columns, ends, first in (
            ((c.t, c.band, flux, error), offsets, np.zeros(len(items), np.int64)),
            ((limits[:, 0], limits[:, 2] - 1, None, limit_error), limit_offsets, np.diff(offsets)[items]),
        ):
            row, position = expand_ranges(ends[items], ends[items + 1])
            column = position - ends[items][row] + first[row]
            for target, source in zip((t, band, y, noise), columns, strict=True):
                if source is not None:
                    target[row, column] = source[position]
        phases = np.concatenate(
            [c.peak_t[items, None] + PEAK_PHASES, np.zeros((len(items), 1)) + FIRST_PHASES], axis=1
        )
        out[items] = _ask_process(t, band, y, noise, phases)
    return out


def _by_size(sizes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Items in groups that are solved together; the padded size is the item's own, not its group's."""
    number = np.searchsorted(_SIZES, sizes)
    for k, size in enumerate(_SIZES):
        items = np.flatnonzero(number == k)
        chunk = max(_CHUNK // (size * max(size, 2 * len(_PHASES))), 1)
        for start in range(0, len(items), chunk):
            yield size, items[start : start + chunk]


def _ask_process(
    t: np.ndarray, band: np.ndarray, y: np.ndarray, noise: np.ndarray, phases: np.ndarray
) -> np.ndarray:
    """Arrays (b, L), padding with noise 0, and times (b, P); returns (b, 5 P)."""
    real = noise > 0

    def in_time(when: np.ndarray) -> np.ndarray:
        r = np.abs(when[:, :, None] - t[:, None, :]) * (np.sqrt(3.0) / _SCALE_DAYS)
        return _AMPLITUDE**2 * (1 + r) * np.exp(-r) * real[:, None, :]

    by_distance = _RHO ** np.arange(len(BANDS))
    number = band.astype(np.int64)
    k = in_time(t) * by_distance[np.abs(number[:, :, None] - number[:, None, :])] * real[:, :, None]
    diagonal = np.arange(t.shape[1])
    k[:, diagonal, diagonal] += np.where(real, noise**2, 1.0)
    asked = in_time(phases)
    q = np.concatenate(
        [asked * by_distance[np.abs(number - b)][:, None] for b in (0, 1)], axis=1
    )  # (b, 2 P, L)
    solved = np.linalg.solve(k, np.concatenate([y[:, :, None], q.transpose(0, 2, 1)], axis=2))
    mean = (q * solved[:, None, :, 0]).sum(-1)
    variance = _AMPLITUDE**2 - (q * solved[:, :, 1:].transpose(0, 2, 1)).sum(-1)
    half = phases.shape[1]
    bright = np.maximum(mean, _LEAST_FLUX)
    colour = -2.5 * np.log10(bright[:, :half] / bright[:, half:])
    return np.concatenate([mean, np.sqrt(np.maximum(variance, 1e-6)), colour], axis=1)
