"""Training curves: truncated at random horizons, thinned, and moved within their errors.

Every curve, of whatever class and source, is truncated at a random horizon of its own, so that a network
learns to judge young events and cannot tell a class by how long its source followed it. All is done on days
and log fluxes; the seven features, the upper limits and the summary numbers follow from what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from applecider_batch.features.curve_summary import LIMIT_DAYS, curve_summary
from applecider_batch.features.prepared import CurveSummary
from applecider_batch.features.segments import counts_of, expand_ranges


@dataclass(frozen=True)
class Augmentation:
    """How training curves are varied.

    Attributes
    ----------
    horizons : tuple of float, (2,)
        Range of the random horizon, days, drawn evenly in its logarithm.
    full : float
        Share of curves that are not truncated.
    drop : float
        Share of events that are left out of an augmented curve.
    jitter : float
        Log fluxes move by this many of their own errors (normal).
    shift : float
        All log fluxes of a curve move by so much, dex (normal): another distance.
    stretch : float
        Time scale, ln (normal): another redshift.
    share : float
        Share of curves that are augmented; of those of rare classes (repeated in an epoch) all are.
    repeat : int
        A rare class is repeated at most so often in an epoch.
    """

    horizons: tuple[float, float] = (2.0, 150.0)
    full: float = 0.25
    drop: float = 0.1
    jitter: float = 0.5
    shift: float = 0.05
    stretch: float = 0.03
    share: float = 0.5
    repeat: int = 4

    def draw_horizons(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Random horizons in days, inf for a curve that stays whole; float64 (count,)."""
        low, high = np.log(self.horizons)
        horizon = np.exp(rng.uniform(low, high, count))
        horizon[rng.random(count) < self.full] = np.inf
        return horizon


@dataclass(frozen=True)
class RaggedCurves:
    """Events of many curves and, where there are any, their upper limits.

    Attributes
    ----------
    values, offsets
        As `features.prepared.PhotometryInputs`.
    summary : CurveSummary or None
    """

    values: np.ndarray
    offsets: np.ndarray
    summary: CurveSummary | None = None

    def lengths(self, items: np.ndarray) -> np.ndarray:
        """Number of events; int64 (n,)."""
        return self.offsets[items + 1] - self.offsets[items]


def augment(
    curves: RaggedCurves,
    items: np.ndarray,
    horizon_days: np.ndarray,
    chosen: np.ndarray,
    a: Augmentation,
    rng: np.random.Generator,
) -> RaggedCurves:
    """Curves with dt <= horizon; those chosen also thinned, stretched, shifted and moved within their errors.

    Parameters
    ----------
    curves : RaggedCurves
    items : ndarray of int64, shape (n,)
    horizon_days : ndarray of float64, shape (n,)
        inf: all.
    chosen : ndarray of bool, shape (n,)
    a : Augmentation
    rng : Generator

    Returns
    -------
    RaggedCurves
        n curves of at least one event (the first, if nothing else is left); times start at the first event
        that is kept. With a summary if the curves have one.
    """
    n = len(items)
    of, position = expand_ranges(curves.offsets[items], curves.offsets[items + 1])
    x = curves.values[position]
    stretch = np.where(chosen, np.exp(rng.normal(0, a.stretch, n)), 1.0)
    shift = np.where(chosen, rng.normal(0, a.shift, n), 0.0)
    noise = rng.normal(0, a.jitter, len(x)) * np.minimum(x[:, 3], 0.5)
    dt = np.expm1(x[:, 0].astype(np.float64)) * stretch[of]
    x[:, 2] += shift[of] + noise * chosen[of]
    thinned = chosen[of] & (rng.random(len(x)) < a.drop)
    keep = (dt <= horizon_days[of]) & ~thinned
    first = np.flatnonzero(np.diff(of, prepend=-1))
    keep[first[counts_of(of, n, keep) == 0]] = True
    of, x, dt = of[keep], x[keep], dt[keep]
    offsets = np.concatenate([[0], np.cumsum(counts_of(of, n))]).astype(np.int64)
    start = dt[offsets[:-1]]
    dt = dt - start[of]
    previous = np.diff(dt, prepend=0.0)
    previous[offsets[:-1]] = 0.0
    x[:, 0], x[:, 1] = np.log1p(dt), np.log1p(previous)
    if curves.summary is None:
        return RaggedCurves(x, offsets)
    given = curves.summary
    limit_of, position = expand_ranges(given.offsets[items], given.offsets[items + 1])
    limits = given.limits[position]
    when = limits[:, 0] * stretch[limit_of] - start[limit_of]
    inside = (when >= -LIMIT_DAYS) & (when < dt[offsets[1:] - 1][limit_of])
    limits[:, 0] = when
    limits, limit_of = limits[inside], limit_of[inside]
    limit_offsets = np.concatenate([[0], np.cumsum(counts_of(limit_of, n))]).astype(np.int64)
    numbers = curve_summary(x, offsets, limits, limit_offsets)
    return RaggedCurves(x, offsets, CurveSummary(limits, limit_offsets, numbers))
