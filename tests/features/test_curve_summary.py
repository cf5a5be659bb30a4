"""Summary numbers against a plain loop and scikit-learn's process, and what they do not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import (
    CURVE_SUMMARY,
    FIRST_PHASES,
    PEAK_PHASES,
    SUMMARY_NAMES,
    curve_summary,
)
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.prepared import CurveSummary
from applecider_batch.features.profiles import get_profile
from tests.features.tables import JD0, alert, forced, limit, point, shard

NO_LIMITS = np.empty((0, 3), np.float32)


def curve(rng: np.random.Generator, n: int, bands: int = 3) -> np.ndarray:
    days = np.sort(np.append(0.0, rng.uniform(0, 80, n - 1)))
    x = np.zeros((n, 7), np.float32)
    x[:, 0], x[:, 2], x[:, 3] = np.log1p(days), rng.normal(2, 0.3, n), rng.uniform(0.01, 0.1, n)
    x[np.arange(n), 4 + rng.integers(bands, size=n)] = 1
    return x


def named(row: np.ndarray) -> dict[str, float]:
    return dict(zip(SUMMARY_NAMES, row.tolist(), strict=True))


def together(
    curves: list[np.ndarray], limits: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    ends = [np.concatenate([[0], np.cumsum([len(c) for c in cs])]) for cs in (curves, limits)]
    return np.concatenate(curves), ends[0], np.concatenate(limits), ends[1]


def some_limits(rng: np.random.Generator, n: int) -> np.ndarray:
    days = np.sort(rng.uniform(-30, 20, n))
    return np.stack([days, rng.normal(0.5, 0.2, n), rng.integers(1, 4, n)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def sample() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(3)
    sizes = [1, 2, 3, 5, 9, 14, 30, 80, 257]
    return [curve(rng, n) for n in sizes], [some_limits(rng, 3 * k % 64) for k in range(len(sizes))]


def test_a_curve_does_not_depend_on_its_neighbours(sample: tuple[list, list]) -> None:
    whole = curve_summary(*together(*sample))
    for number, (own, limits) in enumerate(zip(*sample, strict=True)):
        np.testing.assert_array_equal(curve_summary(*together([own], [limits]))[0], whole[number])


def test_the_plain_loop_finds_the_same_numbers(sample: tuple[list, list]) -> None:
    for x, limits, row in zip(*sample, curve_summary(*together(*sample)), strict=True):
        got, t, mag = named(row), np.expm1(x[:, 0].astype(float)), -2.5 * x[:, 2].astype(float)
        peak = t[mag.argmin()]
        assert got["n"] == len(x)
        assert got["peak_dt"] == pytest.approx(peak, rel=1e-6)
        assert got["n_limits_before"] == (limits[:, 0] < 0).sum()
        for number, band in enumerate("gri"):
            own = x[:, 4 + number] > 0
            assert got[f"{band}_n"] == own.sum()
            if not own.any():
                assert np.isnan(got[f"{band}_peak_mag"])
                continue
            assert got[f"{band}_peak_mag"] == pytest.approx(mag[own].min() - mag.min(), abs=1e-5)
            assert got[f"{band}_std"] == pytest.approx(mag[own].std(), abs=1e-5)
            late = own & (t - peak > 12) & (t - peak <= 40)
            slope = got[f"{band}_slope_peak_12_40"]
            if late.sum() < 2 or np.ptp(t[late]) < 0.5:
                assert np.isnan(slope)
            else:
                weight = 1 / np.hypot(2.5 * x[late, 3], 0.05)
                assert slope == pytest.approx(np.polyfit(t[late], mag[late], 1, w=weight)[0], rel=1e-4)
        g, r = (np.flatnonzero(x[:, 4 + b] > 0) for b in (0, 1))
        pairs = [(k, r[np.abs(t[r] - t[k]).argmin()]) for k in g if len(r)]
        colours = [mag[a] - mag[b] for a, b in pairs if abs(t[a] - t[b]) <= 1.5]
        assert got["gr_n"] == len(colours)
        assert got["gr_mean"] == pytest.approx(np.mean(colours) if colours else np.nan, abs=1e-5, nan_ok=True)


def test_the_process_is_that_of_scikit_learn() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    rng = np.random.default_rng(0)
    x, limits = curve(rng, 12, bands=1), some_limits(rng, 4)
    limits[:, 2] = 1
    got = named(curve_summary(*together([x], [limits]))[0])
    t, flux = np.expm1(x[:, 0].astype(float)), 10 ** x[:, 2].astype(float)
    error = flux * x[:, 3] * np.log(10)
    when = np.concatenate([t, limits[:, 0]])
    y = np.concatenate([flux / flux.max(), np.zeros(4)])
    noise = np.hypot(np.concatenate([error, 10 ** limits[:, 1].astype(float)]) / flux.max(), 0.03)
    kernel = ConstantKernel(0.7**2, "fixed") * Matern(20.0, "fixed", nu=1.5)
    process = GaussianProcessRegressor(kernel, alpha=noise**2, optimizer=None).fit(when[:, None], y)
    asked = np.concatenate([t[flux.argmax()] + np.array(PEAK_PHASES), FIRST_PHASES])
    mean, std = process.predict(asked[:, None], return_std=True)
    names = [*(f"peak{p:+d}" for p in PEAK_PHASES), *(f"first{p:+d}" for p in FIRST_PHASES)]
    np.testing.assert_allclose([got[f"g_{n}"] for n in names], mean, atol=1e-5)
    np.testing.assert_allclose([got[f"g_error_{n}"] for n in names], std, atol=1e-4)


def summary_of(points: list[dict], horizons: list[float | None]) -> CurveSummary:
    made = prepare_shard(
        shard([alert("ZTFa", JD0, 1)], points),
        horizons,
        get_profile("paper"),
        snapshot_jd_max=JD0 + 100,
        modalities=("photometry", CURVE_SUMMARY),
    )
    assert made.photometry.curve_summary is not None
    return made.photometry.curve_summary


def test_limits_are_those_before_the_last_event() -> None:
    points = [
        limit("ZTFa", JD0 - 40, known_jd=JD0),  # too early
        limit("ZTFa", JD0 - 3, known_jd=JD0, diffmaglim=20.0),
        forced("ZTFa", JD0 - 2, 3.0, 2.0, known_jd=JD0),
        point("ZTFa", JD0, candid=1),
        limit("ZTFa", JD0 + 2, fid=1, known_jd=JD0 + 5),
        point("ZTFa", JD0 + 5, candid=2),
        limit("ZTFa", JD0 + 6),  # known by itself in a table; from a later packet in a survey
    ]
    limits = summary_of(points, [None]).limits
    assert limits[:, 0] == pytest.approx([-3, -2, 2])
    assert limits[:, 2].tolist() == [2, 2, 1]
    assert 10 ** limits[:2, 1] == pytest.approx([10 ** (-0.4 * (20.0 - 23.9)) / 5, 2.0], rel=1e-5)


def test_equal_events_with_other_limits_are_two_inputs() -> None:
    late = limit("ZTFa", JD0 - 2, known_jd=JD0 + 20)  # delivered after the wall of the first row
    points = [point("ZTFa", JD0, candid=1), late]
    assert [len(summary_of(points, h).limits) for h in ([3.0], [None], [3.0, None])] == [0, 1, 1]


def test_only_the_papers_events_have_summaries() -> None:
    with pytest.raises(UserError, match="'upstream-main' has no summary numbers"):
        prepare_shard(
            shard([alert("ZTFa", JD0, 1)]),
            [3.0],
            get_profile("upstream-main"),
            snapshot_jd_max=JD0,
            modalities=("photometry", CURVE_SUMMARY),
        )
