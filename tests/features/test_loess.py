"""LOESS against a plain loop of weighted fits."""

from __future__ import annotations

import numpy as np
import pytest

from applecider_batch.errors import UserError
from applecider_batch.features.loess import loess


def plain_loess(y: np.ndarray, span: float) -> np.ndarray:
    """Cleveland's definition, point by point, with numpy's least squares."""
    x, k = np.arange(len(y), dtype=float), int(span * len(y) + 1e-10)
    out = []
    for t in x:
        distance = np.abs(x - t)
        nearest = np.argsort(distance, kind="stable")[:k]
        h = distance[nearest].max()
        w = np.clip(1 - (distance / h) ** 3, 0, None) ** 3
        root = np.sqrt(w)
        design = np.stack([np.ones_like(x), x - t], axis=1)
        out.append(np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0][0])
    return np.array(out)


@pytest.mark.parametrize(("n", "span"), [(60, 0.1), (61, 0.3), (200, 0.05), (40, 1.0), (150, 0.5)])
def test_is_the_plain_loop(n: int, span: float) -> None:
    y = np.random.default_rng(n).normal(size=(3, n)).cumsum(axis=1)
    for row, smooth in zip(y, loess(y, [span])[0], strict=True):
        assert smooth == pytest.approx(plain_loess(row, span), rel=1e-9, abs=1e-9)


def test_a_line_stays_a_line_and_noise_gets_smaller() -> None:
    line = np.linspace(-3.0, 8.0, 500)[None]
    assert loess(line, [0.1])[0] == pytest.approx(line, abs=1e-10)
    noise = np.random.default_rng(2).normal(size=(1, 4096))
    less, more = loess(noise, [0.05, 0.1])
    assert more.std() < less.std() < 0.2


def test_curves_of_any_number_and_precision() -> None:
    y = np.random.default_rng(3).normal(size=(37, 300)).astype(np.float32)
    together = loess(y, [0.05, 0.1])
    assert together.dtype == np.float64
    assert together.shape == (2, 37, 300)
    for i in (0, 15, 16, 36):
        assert loess(y[i : i + 1].astype(float), [0.1])[0, 0] == pytest.approx(together[1, i], abs=1e-12)
    assert loess(y[:0], [0.1]).shape == (1, 0, 300)


def test_bad_spans_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(0, 1\]; given 1.5"):
        loess(np.zeros((1, 10)), [1.5])
    with pytest.raises(UserError, match="at least 80 samples; given 79"):
        loess(np.zeros((1, 79)), [0.05])
