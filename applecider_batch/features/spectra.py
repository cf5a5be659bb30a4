"""Spectra: which one a row may see, and its way to the network's grid.

Choice: of the object's spectra those dated from t0 to the row's wall; the one nearest to t0. One without a
date enters the full history only, and only where no dated one is left. One taken before t0 shows the host: it
is never an input, the row is flagged. Spectra with the continuum removed (``flux_kind`` contains "flattened")
are another kind of data and are left out.

Preprocessing of the paper (arXiv:2507.16088, section 2.2): wavelength / (1 + z), linear interpolation on
3850–8500 Angstrom, 4096 points, 0 outside the coverage, z-score over the covered, non-zero points. A spectrum
without a redshift is prepared at several (:data:`TRIAL_REDSHIFTS`), over which `inference.marginal` takes the
mean; ``redshift_source`` says so. Upstream's two forms differ through the profile.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.features.asof import RowSet
from applecider_batch.features.episodes import Episodes
from applecider_batch.features.points import index_of_objects
from applecider_batch.features.profiles import Profile
from applecider_batch.features.segments import expand_ranges, float_column, starts_of, text_column

REDSHIFT_RANGE = (-0.01, 10.0)
#: Trial redshifts of a spectrum without one, evenly spaced in ln(1 + z).
TRIAL_REDSHIFTS = np.expm1(np.linspace(0.0, np.log1p(0.3), 24))
NO_REDSHIFT_SOURCE = "none given, averaged over 0 to 0.3"
_MIN_POINTS = 2


@dataclass(frozen=True)
class SpectrumChoice:
    """Which spectrum each row sees.

    Attributes
    ----------
    position : ndarray of int64, shape (n_rows,)
        Row of the spectra table, -1 for none.
    host : ndarray of bool, shape (n_rows,)
        A spectrum older than t0 exists.
    flattened : ndarray of bool, shape (n_rows,)
        A spectrum was left out because its continuum was removed.
    undated : ndarray of bool, shape (n_rows,)
        The chosen one has no date.
    """

    position: np.ndarray
    host: np.ndarray
    flattened: np.ndarray
    undated: np.ndarray


def choose_spectra(
    spectra: pa.Table, objects: pa.Array, episodes: Episodes, rows: RowSet, wall_jd: np.ndarray
) -> SpectrumChoice:
    """The spectrum of each row (the rule stands at the top of this module).

    Parameters
    ----------
    spectra : pyarrow.Table
        Schema ``spectra``.
    objects : pyarrow.Array
        Sorted objectIds of the shard.
    episodes : Episodes
    rows : RowSet
    wall_jd : ndarray of float64, shape (n_rows,)

    Returns
    -------
    SpectrumChoice
    """
    n = len(rows)
    none = np.zeros(n, bool)
    choice = np.full(n, -1, np.int64)
    if not spectra.num_rows or not n:
        return SpectrumChoice(choice, none, none.copy(), none.copy())
    obj = index_of_objects(spectra, objects)
    jd = float_column(spectra, "jd")
    names = text_column(spectra, "spec_id")
    rank = np.empty(len(obj), np.int64)
    rank[pc.sort_indices(names).to_numpy()] = np.arange(len(obj))
    order = np.lexsort((rank, obj))
    first = np.searchsorted(obj[order], episodes.obj[rows.episode], "left")
    last = np.searchsorted(obj[order], episodes.obj[rows.episode], "right")
    row, where = expand_ranges(first, last)
    spectrum = order[where]

    t0 = episodes.t0[rows.episode][row]
    dated = np.isfinite(jd[spectrum])
    full = np.isnan(rows.horizon_days)[row]
    flattened = _flattened(spectra)[spectrum]
    seen = np.where(dated, jd[spectrum] <= wall_jd[row], full) & np.isfinite(t0)
    host = seen & dated & (jd[spectrum] < t0)
    usable = seen & ~host & ~flattened
    distance = np.where(dated, np.abs(jd[spectrum] - t0), np.inf)

    pick = np.flatnonzero(usable)
    pick = pick[np.lexsort((rank[spectrum[pick]], distance[pick], row[pick]))]
    best = pick[starts_of(row[pick])] if len(pick) else pick
    choice[row[best]] = spectrum[best]
    undated = none.copy()
    undated[row[best]] = ~dated[best]
    return SpectrumChoice(choice, _any(host, row, n), _any(seen & flattened, row, n), undated)


def _any(flags: np.ndarray, row: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(row[flags], minlength=n) > 0


def _flattened(spectra: pa.Table) -> np.ndarray:
    found = pc.match_substring(text_column(spectra, "flux_kind"), "flattened", ignore_case=True)
    return pc.fill_null(found, False).to_numpy(zero_copy_only=False)


def redshifts(spectra: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Usable redshift (0 where none is given) and whether one was given; float64 and bool, (n,)."""
    z = float_column(spectra, "redshift")
    given = (z > REDSHIFT_RANGE[0]) & (z < REDSHIFT_RANGE[1])
    return np.where(given, z, 0.0), given


def trial_redshifts(redshift: float, given: bool, profile: Profile) -> np.ndarray:
    """Redshifts at which a spectrum is prepared, float64 (k,): the one given, the trials, or 0 if unused."""
    if given or not profile.spectrum_rest_frame:
        return np.array([redshift])
    return TRIAL_REDSHIFTS


def preprocess_at(
    wavelength: np.ndarray, flux: np.ndarray, profile: Profile, trials: np.ndarray
) -> dict[float, np.ndarray]:
    """As :func:`preprocess_spectrum` at each redshift at which something can be made.

    Returns
    -------
    dict
        Redshift -> float32 (n_grid,), finite.
    """
    made = {z: preprocess_spectrum(wavelength, flux, profile, z) for z in trials.tolist()}
    return {z: values for z, values in made.items() if values is not None and np.isfinite(values).all()}


def preprocess_spectrum(
    wavelength: np.ndarray, flux: np.ndarray, profile: Profile, redshift: float = 0.0
) -> np.ndarray | None:
    """One spectrum on the profile's grid.

    Parameters
    ----------
    wavelength, flux : ndarray, shape (n,)
        Observed frame, Angstrom; any flux unit. Order is free; rows that are not finite are dropped.
    profile : Profile
    redshift : float

    Returns
    -------
    ndarray of float32, shape (n_grid,), or None
        None where nothing can be made of it: fewer than two points, no coverage, no spread, numbers that
        overflow.
    """
    wavelength, flux = np.asarray(wavelength, np.float64), np.asarray(flux, np.float64)
    known = ~(np.isnan(wavelength) | np.isnan(flux))
    if profile.spectrum_norm != "mad_unguarded":
        known &= np.isfinite(wavelength) & np.isfinite(flux)
    wavelength, flux = wavelength[known], flux[known]
    if profile.spectrum_rest_frame:
        wavelength = wavelength / (1.0 + redshift)
    if len(wavelength) < _MIN_POINTS:
        return None
    if (wavelength[1:] < wavelength[:-1]).any():
        order = np.argsort(wavelength, kind="stable")
        wavelength, flux = wavelength[order], flux[order]
    grid = _grid(*profile.spectrum_grid)
    if profile.spectrum_outside == "zero":
        return _zscore(wavelength, flux, grid)
    return _mad(_extrapolated(wavelength, flux, grid), guarded=profile.spectrum_norm == "mad")


@functools.cache
def _grid(low: float, high: float, n: int) -> np.ndarray:
    grid = np.linspace(low, high, n)
    grid.flags.writeable = False
    return grid


def _zscore(wavelength: np.ndarray, flux: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
    """0 outside the coverage, zero mean and unit spread over the covered, non-zero points."""
    peak = np.abs(flux).max()
    if not (np.isfinite(peak) and peak > 0):
        return None
    # In units of the largest value: fluxes of 1e-17 must not meet float32's limits.
    values = np.interp(grid, wavelength, flux / peak, left=0.0, right=0.0)
    valid = values != 0.0
    kept = values[valid]
    if len(kept) < _MIN_POINTS:
        return None
    kept -= kept.mean()
    spread = np.sqrt((kept * kept).mean())
    # Equal numbers have a spread of rounding errors only.
    if not spread > 1e-12:
        return None
    out = np.zeros(len(grid), np.float32)
    out[valid] = kept / spread
    return out


def _extrapolated(wavelength: np.ndarray, flux: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Linear interpolation, and linear extrapolation from the end pairs of points."""
    upper = np.clip(np.searchsorted(wavelength, grid), 1, len(wavelength) - 1)
    lower = upper - 1
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slope = (flux[upper] - flux[lower]) / (wavelength[upper] - wavelength[lower])
        return slope * (grid - wavelength[lower]) + flux[lower]


def _mad(values: np.ndarray, *, guarded: bool) -> np.ndarray:
    """(x - mean) / MAD about the median, not scaled.

    Guarded: NaN do not count, a MAD of 0 gives way to the standard deviation, that to 1.
    """
    used = values[~np.isnan(values)] if guarded else values
    if not len(used):
        return np.full(len(values), np.nan, np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = np.median(np.abs(used - np.median(used)))
        if guarded and scale == 0:
            scale = used.std()
            scale = scale if scale != 0 else 1.0
        return ((values - used.mean()) / scale).astype(np.float32)


def coverage(wavelength: np.ndarray, profile: Profile, redshift: float) -> float:
    """Fraction of the profile's grid that a spectrum covers, 0 to 1."""
    low, high, _ = profile.spectrum_grid
    scale = 1.0 + redshift if profile.spectrum_rest_frame else 1.0
    finite = wavelength[np.isfinite(wavelength)] / scale
    if not len(finite):
        return 0.0
    return float(max(min(finite.max(), high) - max(finite.min(), low), 0.0) / (high - low))
