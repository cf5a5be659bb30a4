"""LOESS on a uniform grid: local linear regression with tricube weights (Cleveland 1979, JASA 74, 829).

On a uniform grid the smoother is the same linear map for every curve. Where a sample has neighbours on both
sides it is a convolution, done by Fourier transforms; towards the ends it is a matrix. Without Cleveland's
robustness iterations: these depend on the data.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from applecider_batch.errors import UserError

_BLOCK = 24  # samples at a time: a product too small for BLAS to start threads
_ROWS = 16  # curves at a time, so that what is made on the way stays in the cache
_FEWEST = 4  # neighbours; the farthest weighs nothing, and a line needs two


def loess(curves: np.ndarray, spans: Sequence[float]) -> np.ndarray:
    """Smooth curves by local linear regression.

    Parameters
    ----------
    curves : ndarray, float, shape (n, N)
        One curve a row, N equally spaced samples.
    spans : sequence of float, length s
        Fractions of the N samples that are neighbours, in (0, 1]: the k = int(span N) nearest, weighted by
        (1 - (d / h)^3)^3 with h the distance of the farthest of them.

    Returns
    -------
    ndarray, float64, shape (s, n, N)

    Raises
    ------
    UserError
        If fewer than four samples are neighbours, or a span is not in (0, 1].
    """
    n = curves.shape[1]
    for span in spans:
        if not 0 < span <= 1:
            raise UserError(f"The span of LOESS must be in (0, 1]; given {span}.")
        if _neighbours(n, span) < _FEWEST:
            fewest = int(np.ceil(_FEWEST / span))
            raise UserError(f"LOESS with a span of {span} needs at least {fewest} samples; given {n}.")
    curves = curves.astype(np.float64, copy=False)
    smooth = np.empty((len(spans), *curves.shape))
    for start in range(0, len(curves), _ROWS):
        rows = slice(start, start + _ROWS)
        given = curves[rows]
        transformed = np.fft.rfft(given)
        for out, span in zip(smooth[:, rows], spans, strict=True):
            transform, ends = _smoother(n, float(span))
            np.fft.irfft(transformed * transform, n, out=out)
            for first, samples, matrix in ends:
                out[:, samples] = given[:, first : first + len(matrix)] @ matrix
    return smooth


def _neighbours(n: int, span: float) -> int:
    return int(span * n + 1e-10)


@functools.lru_cache(maxsize=16)
def _smoother(n: int, span: float) -> tuple[np.ndarray, tuple[tuple[int, np.ndarray, np.ndarray], ...]]:
    """The convolution's transform (N // 2 + 1,), and towards the ends: first neighbour, samples, map."""
    k = _neighbours(n, span)
    at = np.arange(n)
    first = np.clip(np.ceil(at - k / 2).astype(np.int64), 0, n - k)  # of the k nearest samples
    cut = np.ceil(at - k / 2) != first
    inside = np.flatnonzero(~cut)
    kernel = np.zeros(n)
    if len(inside):
        middle = inside[0]
        kernel[(middle - first[middle] - np.arange(k)) % n] = _weights(middle, first[middle], k)
    ends = []
    for start in range(0, n, _BLOCK):
        samples = at[start : start + _BLOCK][cut[start : start + _BLOCK]]
        for one in np.unique(first[samples]).tolist():
            same = samples[first[samples] == one]
            matrix = np.stack([_weights(sample, one, k) for sample in same.tolist()], axis=1)
            ends.append((one, same, matrix))
    return np.fft.rfft(kernel), tuple(ends)


def _weights(sample: int, first: int, k: int) -> np.ndarray:
    """What the k neighbours from ``first`` on give to a smoothed sample, (k,)."""
    d = first + np.arange(k) - sample
    w = (1 - (np.abs(d) / np.abs(d).max()) ** 3) ** 3
    s0, s1, s2 = w.sum(), (w * d).sum(), (w * d * d).sum()
    return w * (s2 - s1 * d) / (s0 * s2 - s1 * s1)
