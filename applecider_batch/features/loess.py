"""LOESS on a uniform grid: local linear regression with tricube weights (Cleveland 1979, JASA 74, 829).

On a uniform grid the smoother is the same linear map for every curve, so it is made once, as a band of
blocks, and applied to many curves as matrix products. Without Cleveland's robustness iterations: these
depend on the data.
"""

from __future__ import annotations

import functools

import numpy as np

from applecider_batch.errors import UserError

_BLOCK = (
    24  # points that share one dense matrix; so few that a product is too small for BLAS to start threads
)
_FEWEST = 4  # neighbours; the farthest weighs nothing, and a line needs two


def loess(curves: np.ndarray, span: float, *, points: int | None = None) -> np.ndarray:
    """Smooth curves by local linear regression.

    Parameters
    ----------
    curves : ndarray, float, shape (n, N)
        One curve a row on a uniform grid.
    span : float
        Fraction of the N samples that are neighbours, in (0, 1]: the k = int(span N) nearest, weighted by
        (1 - (d / h)^3)^3 with h the distance of the farthest of them.
    points : int, optional
        Instead of the smoothed samples: the first, the middles of so many equal parts of the range, and the
        last, on straight lines between smoothed samples, as a line plot has them.

    Returns
    -------
    ndarray, shape (n, N) or (n, points + 2)
        float32 for float32 curves, else float64.

    Raises
    ------
    UserError
        If fewer than four samples are neighbours, or the span is not in (0, 1].
    """
    n = curves.shape[1]
    if not 0 < span <= 1:
        raise UserError(f"The span of LOESS must be in (0, 1]; given {span}.")
    if _neighbours(n, span) < _FEWEST:
        raise UserError(
            f"LOESS with a span of {span} needs at least {int(np.ceil(_FEWEST / span))} samples; given {n}."
        )
    dtype = np.float32 if curves.dtype == np.float32 else np.float64
    blocks = _blocks(n, float(span), points, np.dtype(dtype).name)
    return np.concatenate(
        [curves[:, first : first + len(matrix)] @ matrix for first, matrix in blocks], axis=1
    )


def _neighbours(n: int, span: float) -> int:
    return int(span * n + 1e-10)


@functools.lru_cache(maxsize=16)
def _blocks(n: int, span: float, points: int | None, dtype: str) -> tuple[tuple[int, np.ndarray], ...]:
    """Per block of points: first sample, and the map (samples, points of the block)."""
    k = _neighbours(n, span)
    at = np.arange(n)
    first = np.clip(np.ceil(at - k / 2).astype(np.int64), 0, n - k)  # of the k nearest samples
    d = first[:, None] + np.arange(k) - at[:, None]
    h = np.abs(d).max(1, keepdims=True)
    w = (1 - (np.abs(d) / h) ** 3) ** 3
    s0, s1, s2 = w.sum(1), (w * d).sum(1), (w * d * d).sum(1)
    weight = w * (s2[:, None] - s1[:, None] * d) / (s0 * s2 - s1 * s1)[:, None]  # (n, k)
    where = np.arange(n, dtype=float)
    if points is not None:
        where = np.concatenate([[0.0], (np.arange(points) + 0.5) / points, [1.0]]) * (n - 1)
    left = np.minimum(where.astype(np.int64), n - 2)  # a point lies between this smoothed sample and the next
    part = where - left
    blocks = []
    for start in range(0, len(where), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(where)))
        begin, end = int(first[left[rows][0]]), int(first[left[rows][-1] + 1]) + k
        matrix = np.zeros((end - begin, rows.stop - start))
        for sample, share in ((left[rows], 1 - part[rows]), (left[rows] + 1, part[rows])):
            used = first[sample][:, None] + np.arange(k) - begin
            matrix[used, np.arange(len(sample))[:, None]] += share[:, None] * weight[sample]
        blocks.append((begin, matrix.astype(dtype)))
    return tuple(blocks)
