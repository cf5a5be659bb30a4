"""Simple numbers of truncated light curves: input of the forests beside which a network is judged.

All from the same merged events that the networks see (positive flux, 12 h merge, one horizon).
"""

from __future__ import annotations

import numpy as np

PER_BAND = (
    "n", "first_dt", "last_dt", "peak_dt", "peak_logflux", "first_logflux", "last_logflux", "mean", "std",
    "amplitude", "rise_slope", "fade_slope", "slope", "curvature", "median_err", "skew", "width",
)  # fmt: skip
OVERALL = ("n", "span", "median_gap", "max_gap", "color_gr_mean", "color_gr_first", "color_gr_last",
           "color_gr_slope", "color_gr_peak", "color_ri_mean", "early_rate", "peak_dt")  # fmt: skip
FEATURE_NAMES: tuple[str, ...] = (
    *(f"{band}_{name}" for band in "gri" for name in PER_BAND),
    *OVERALL,
)
_COLOR_DAYS = 2.0


def curve_features(
    values: np.ndarray, offsets: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Features of curves.

    Parameters
    ----------
    values, offsets
        As `features.prepared.PhotometryInputs` (raw).
    items : ndarray of int64, shape (n,)

    Returns
    -------
    features : ndarray of float64, shape (n, F)
        NaN where a number is not defined (a band without events).
    names : tuple of str, length F
    """
    out = np.full((len(items), len(FEATURE_NAMES)), np.nan)
    for i, item in enumerate(items):
        out[i] = _one(values[offsets[item] : offsets[item + 1]].astype(np.float64))
    return out, FEATURE_NAMES


def _one(x: np.ndarray) -> np.ndarray:
    dt, log_flux, err = np.expm1(x[:, 0]), x[:, 2], x[:, 3]
    bands = [x[:, 4 + b] > 0 for b in range(3)]
    parts = [_band(dt[b], log_flux[b], err[b]) for b in bands]
    gap = np.diff(dt)
    color, when = _colors(dt, log_flux, bands[0], bands[1])
    red, _ = _colors(dt, log_flux, bands[1], bands[2])
    peak = dt[log_flux.argmax()]
    early = dt <= dt[0] + 5
    overall = [
        len(dt),
        dt[-1] - dt[0],
        np.median(gap) if len(gap) else np.nan,
        gap.max() if len(gap) else np.nan,
        color.mean() if len(color) else np.nan,
        color[0] if len(color) else np.nan,
        color[-1] if len(color) else np.nan,
        np.polyfit(when, color, 1)[0] if len(color) > 2 and np.ptp(when) > 1 else np.nan,
        color[np.abs(when - peak).argmin()] if len(color) else np.nan,
        red.mean() if len(red) else np.nan,
        (log_flux[early].max() - log_flux[0]) / 5,
        peak,
    ]
    return np.array([*np.concatenate(parts), *overall])


def _band(dt: np.ndarray, log_flux: np.ndarray, err: np.ndarray) -> np.ndarray:
    n = len(dt)
    out = np.full(len(PER_BAND), np.nan)
    out[0] = n
    if not n:
        return out
    peak = int(log_flux.argmax())
    out[1:10] = [
        dt[0],
        dt[-1],
        dt[peak],
        log_flux[peak],
        log_flux[0],
        log_flux[-1],
        log_flux.mean(),
        log_flux.std(),
        np.ptp(log_flux),
    ]
    if dt[peak] > dt[0]:
        out[10] = (log_flux[peak] - log_flux[0]) / (dt[peak] - dt[0])
    if dt[-1] > dt[peak]:
        out[11] = (log_flux[-1] - log_flux[peak]) / (dt[-1] - dt[peak])
    if n > 2 and dt[-1] - dt[0] > 1:
        t = dt - dt[0]
        out[12] = np.polyfit(t, log_flux, 1)[0]
        if n > 4:
            out[13] = np.polyfit(t / t[-1], log_flux, 2)[0]
    out[14] = np.median(err)
    spread = log_flux.std()
    out[15] = ((log_flux - log_flux.mean()) ** 3).mean() / spread**3 if spread > 1e-9 else np.nan
    bright = dt[log_flux >= log_flux[peak] - 0.2]
    out[16] = np.ptp(bright)
    return out


def _colors(
    dt: np.ndarray, log_flux: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log10 flux ratio of two bands wherever the second has an event within two days of the first's."""
    if not (first.any() and second.any()):
        return np.empty(0), np.empty(0)
    t1, t2 = dt[first], dt[second]
    nearest = np.abs(t1[:, None] - t2).argmin(1)
    close = np.abs(t1 - t2[nearest]) <= _COLOR_DAYS
    return (log_flux[first] - log_flux[second][nearest])[close], t1[close]
