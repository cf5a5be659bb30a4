"""LOESS on a uniform grid: local linear regression with tricube weights (Cleveland 1979, JASA 74, 829).

On a uniform grid the smoother is the same linear map for every curve. Where a sample has neighbours on both
sides it is a convolution, done by Fourier transforms; towards the left end it is a matrix, and towards the
right end the same on the mirrored curve. Without Cleveland's robustness iterations: these depend on the data.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from applecider_batch.errors import UserError

_BLOCK = 20  # samples at a time: a product too small for BLAS to start threads
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
        transformed = np.fft.rfft(given).view(np.float64)
        for out, span in zip(smooth[:, rows], spans, strict=True):
            transform, end = _smoother(n, float(span))
            np.fft.irfft((transformed * transform).view(np.complex128), n, norm="forward", out=out)
            near, mirrored = len(end), out[:, ::-1]
            both = np.concatenate([given[:, :near], given[:, ::-1][:, :near]])
            for first in range(0, near // 2, _BLOCK):
                samples = slice(first, min(first + _BLOCK, near // 2))
                made = both @ end[:, samples]
                out[:, samples], mirrored[:, samples] = made[: len(out)], made[len(out) :]
    return smooth


def _neighbours(n: int, span: float) -> int:
    return int(span * n + 1e-10)


@functools.lru_cache(maxsize=16)
def _smoother(n: int, span: float) -> tuple[np.ndarray, np.ndarray]:
    """Factors of a transform's numbers (n // 2 * 2 + 2,) and the left end's map (k, k // 2)."""
    k = _neighbours(n, span)
    middle = k // 2  # the first sample whose k nearest lie on both sides
    kernel = np.zeros(n)
    kernel[(middle - np.arange(k)) % n] = _weights(middle, k)
    end = np.stack([_weights(sample, k) for sample in range(middle)], axis=1)
    # The kernel is symmetric (of an even k the farthest weighs nothing), so that its transform is real.
    return np.repeat(np.fft.rfft(kernel).real / n, 2), end


def _weights(sample: int, k: int) -> np.ndarray:
    """What the first k samples give to a smoothed one, (k,)."""
    d = np.arange(k) - sample
    w = (1 - (np.abs(d) / np.abs(d).max()) ** 3) ** 3
    s0, s1, s2 = w.sum(), (w * d).sum(), (w * d * d).sum()
    return w * (s2 - s1 * d) / (s0 * s2 - s1 * s1)
