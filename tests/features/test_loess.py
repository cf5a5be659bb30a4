"""LOESS against a plain loop of weighted fits."""

from __future__ import annotations

import numpy as np
import pytest

from applecider_batch.errors import UserError
from applecider_batch.features.loess import loess


def plain_loess(y: np.ndarray, span: float, at: np.ndarray) -> np.ndarray:
    """Cleveland's definition, point by point, with numpy's least squares."""
    x, k = np.arange(len(y), dtype=float), int(span * len(y) + 1e-10)
    out = []
    for t in at:
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
    got = loess(y, span)
    for row, smooth in zip(y, got, strict=True):
        assert smooth == pytest.approx(plain_loess(row, span, np.arange(n)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("points", [301, 77, 119])
def test_points_between_samples_lie_on_the_plot_of_the_smoothed_samples(points: int) -> None:
    y = np.random.default_rng(1).normal(size=(1, 120))
    at = [0.0, *((i + 0.5) * 119 / points for i in range(points)), 119.0]
    plotted = np.interp(at, np.arange(120), plain_loess(y[0], 0.1, np.arange(120)))
    assert loess(y, 0.1, points=points)[0] == pytest.approx(plotted, rel=1e-9, abs=1e-9)


def test_a_line_stays_a_line_and_noise_gets_smaller() -> None:
    line = np.linspace(-3.0, 8.0, 500)[None]
    assert loess(line, 0.1) == pytest.approx(line, abs=1e-10)
    noise = np.random.default_rng(2).normal(size=(1, 4096))
    assert loess(noise, 0.1).std() < loess(noise, 0.05).std() < 0.2


def test_float32_stays_float32() -> None:
    y = np.random.default_rng(3).normal(size=(2, 300))
    single = loess(y.astype(np.float32), 0.1)
    assert single.dtype == np.float32
    assert single == pytest.approx(loess(y, 0.1), abs=1e-5)


def test_bad_spans_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(0, 1\]; given 1.5"):
        loess(np.zeros((1, 10)), 1.5)
    with pytest.raises(UserError, match="at least 80 samples; given 79"):
        loess(np.zeros((1, 79)), 0.05)
