"""Rasterised line plots against matplotlib's own pictures, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest

from applecider_batch.errors import UserError
from applecider_batch.features.loess import loess
from applecider_batch.features.spectra_raster import LOESS_SPANS, rasterise, render_spectra

matplotlib.use("Agg")

RANGE = 0.02  # of the pixels' range


def matplotlib_ink(y: np.ndarray, dpi: float = 100.0) -> np.ndarray:
    """255 minus the grey level that matplotlib draws, (288, 288)."""
    import matplotlib.pyplot as plt

    inches = 288 / dpi
    figure, axes = plt.subplots(figsize=(inches, inches), dpi=dpi)
    figure.subplots_adjust(0, 0, 1, 1)
    axes.axis("off")
    axes.plot(y, "k", linewidth=1.0)
    axes.set_xlim(0, len(y) - 1)
    if np.ptp(y):
        axes.set_ylim(y.min(), y.max())
    figure.canvas.draw()
    grey = np.asarray(figure.canvas.buffer_rgba())[..., 0].copy()
    plt.close(figure)
    return 255 - grey


def differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Mean and root mean square difference, share of pixels beyond 2 %, of the range."""
    error = np.abs(ours.astype(float) - theirs) / 255
    return float(error.mean()), float(np.sqrt((error**2).mean())), float((error > RANGE).mean())


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Mean within 0.1 %, RMS within 0.7 %, 99.4 % of all pixels each within 2 % of the range."""
    mean, rms, beyond = differences(ours, theirs)
    return mean <= 0.001 and rms <= 0.007 and beyond <= 0.006


def curve(name: str, n: int = 4096) -> np.ndarray:
    rng, t = np.random.default_rng(7), np.linspace(0, 1, n)
    made: dict[str, Callable[[], np.ndarray]] = {
        "white noise": lambda: rng.normal(size=n),
        "random walk": lambda: rng.normal(size=n).cumsum(),
        "wave": lambda: np.sin(30 * t),
        "noisy wave": lambda: np.sin(20 * t) + 0.05 * rng.normal(size=n),
        "step": lambda: (t > 0.5).astype(float),
        "one spike": lambda: (np.arange(n) == n // 2).astype(float),
        "falling line": lambda: -t,
        "gaps": lambda: np.where((t > 0.2) & (t < 0.7), np.sin(40 * t) + 0.2 * rng.normal(size=n), 0.0),
    }
    return made[name]()


NAMES = ("white noise", "random walk", "wave", "noisy wave", "step", "one spike", "falling line", "gaps")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dpi", [100.0, 72.0])
def test_is_matplotlibs_picture(name: str, dpi: float) -> None:
    y = curve(name)
    picture = rasterise(y[None], line_width_px=dpi / 72)[0]
    theirs = matplotlib_ink(y, dpi)
    assert close(picture, theirs), differences(picture, theirs)


@pytest.mark.parametrize(
    ("name", "n"), [("wave", 103), ("random walk", 300), ("wave", 3481), ("white noise", 9000)]
)
def test_any_number_of_samples(name: str, n: int) -> None:
    y = curve(name, n)
    assert close(rasterise(y[None])[0], matplotlib_ink(y))


def test_two_samples_are_a_diagonal() -> None:
    y = np.array([0.0, 1.0])
    assert close(rasterise(y[None])[0], matplotlib_ink(y))


def test_other_pictures_would_not_pass() -> None:
    """The measure tells a picture from one moved by a pixel, mirrored, thicker, or blank."""
    y = curve("noisy wave")
    theirs = matplotlib_ink(y)
    picture = rasterise(y[None])[0]
    wrong = (
        np.roll(picture, 1, axis=0),
        np.roll(picture, 1, axis=1),
        picture[::-1],
        picture[:, ::-1],
        picture.T,
        255 - picture,
        np.zeros_like(picture),
        rasterise(y[None], line_width_px=2.0)[0],
        rasterise(y[None], line_width_px=1.0)[0],
    )
    assert close(picture, theirs)
    assert not any(close(other, theirs) for other in wrong)


def real_spectra(shared_data: Path, n: int) -> np.ndarray:
    """(n, 4096) float32 spectra on the paper's grid, 0 where not covered."""
    table = pq.read_table(
        shared_data / "spectra" / "spectra.parquet", columns=["wavelength", "flux", "redshift", "n_points"]
    )
    grid = np.linspace(3850.0, 8500.0, 4096)
    rows: list[np.ndarray] = []
    for i in np.random.default_rng(11).permutation(table.num_rows).tolist():
        wave, flux = (np.array(table[name][i].as_py(), float) for name in ("wavelength", "flux"))
        z = table["redshift"][i].as_py() or 0.0
        y = np.interp(grid, wave / (1 + z), flux, left=0.0, right=0.0)
        if np.ptp(y) > 0:
            rows.append(y / np.abs(y).max())
        if len(rows) == n:
            break
    return np.array(rows, np.float32)


def test_real_spectra_within_two_percent(shared_data: Path) -> None:
    """Of every channel 99.9 % of all pixels are within 2 % of the range; each picture is close."""
    flux = real_spectra(shared_data, 12)
    pictures = render_spectra(flux)
    for channel, curves in enumerate((flux, *loess(flux, LOESS_SPANS))):
        pairs = list(zip(pictures[:, channel], map(matplotlib_ink, curves), strict=True))
        mean, rms, beyond = np.mean([differences(*pair) for pair in pairs], axis=0)
        assert mean <= 0.0003
        assert rms <= 0.003
        assert beyond <= 0.001
        assert all(close(*pair) for pair in pairs)


def test_channels_are_raw_and_smoothed() -> None:
    flux = np.stack([curve("noisy wave"), curve("gaps"), curve("falling line"), curve("random walk")])
    pictures = render_spectra(flux)
    assert pictures.shape == (4, 3, 288, 288)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures[:, 0], rasterise(flux))
    for channel, curves in enumerate(loess(flux, LOESS_SPANS), start=1):
        for picture, smooth in zip(pictures[:, channel], curves, strict=True):
            assert close(picture, matplotlib_ink(smooth))


@pytest.mark.parametrize(("size", "width"), [(288, 1.0), (288, 2.5), (64, 1.389), (100, 7.0)])
def test_smooth_channels_of_other_sizes_and_widths(size: int, width: float) -> None:
    """A line of any width, whose ends are cut by the picture's edge, and whose ink is its length by width."""
    flux = np.linspace(0.0, 1.0, 500)[None]
    picture = render_spectra(flux, size=size, line_width_px=width)
    assert picture.shape == (1, 3, size, size)
    for channel in picture[0, 1:]:
        expected = width * size * np.sqrt(2)
        assert channel.sum() / 255 == pytest.approx(expected, rel=0.03)
        assert np.abs(channel.astype(int) - channel.T[::-1, ::-1]).max() <= 25  # the diagonal's mirror image


def test_any_size_width_and_number_of_samples() -> None:
    rng = np.random.default_rng(12)
    for size, width, n in [(8, 0.2, 80), (61, 7.0, 333), (150, 3.7, 4096), (288, 0.3, 700), (33, 2.0, 5999)]:
        curves = rng.normal(size=(3, n)) * 10.0 ** rng.uniform(-5, 5, size=(3, 1))
        curves[1, : n // 3] = 0
        pictures = render_spectra(curves, size=size, line_width_px=width)
        assert pictures.shape == (3, 3, size, size)
        assert pictures.any(axis=(2, 3)).all()


def test_batch_and_order_change_nothing() -> None:
    rng = np.random.default_rng(5)
    curves = rng.normal(size=(70, 500)).cumsum(axis=1)
    together = rasterise(curves)
    order = rng.permutation(70)
    assert np.array_equal(rasterise(curves[order]), together[order])
    for i in (0, 31, 32, 69):
        assert np.array_equal(rasterise(curves[i : i + 1])[0], together[i])
    smooth = render_spectra(curves.astype(np.float32))
    for some in (order, [7], [69], range(5, 22)):
        assert np.array_equal(render_spectra(curves[list(some)].astype(np.float32)), smooth[list(some)])


def test_scale_and_unit_of_the_flux_do_not_matter() -> None:
    y = curve("noisy wave")[None]
    assert np.abs(rasterise(y * 1e-17 + 3e-16).astype(int) - rasterise(y)).max() <= 1


def test_curves_that_cannot_be_drawn_leave_the_others_alone() -> None:
    good = curve("wave", 400)
    curves = np.stack(
        [good, np.full(400, np.nan), np.where(np.arange(400) == 7, np.inf, good), good, np.full(400, 5.0)]
    )
    pictures = render_spectra(curves)
    assert not pictures[1:3].any()
    assert np.array_equal(pictures[3], pictures[0])
    # A constant lies in the middle: 1.389 px of ink around the line between rows 143 and 144.
    column = pictures[4, 0, :, 100].astype(int)
    assert np.flatnonzero(column).tolist() == [143, 144]
    assert column.sum() == pytest.approx(255 * 1.389, rel=0.01)
    assert not render_spectra(curves[1:2]).any()
    # Too small a range to be told from none.
    assert np.array_equal(render_spectra(good[None] * 1e-320)[0], pictures[4])
    assert render_spectra(curves[:0]).shape == (0, 3, 288, 288)


def test_bad_shapes_and_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(n, N\)"):
        rasterise(np.zeros(10))
    with pytest.raises(UserError, match=r"N of at least 2; given \(3, 1\)"):
        rasterise(np.zeros((3, 1)))
    with pytest.raises(UserError, match="width must be between 0 and 288 pixels; given 0"):
        rasterise(np.zeros((1, 5)), line_width_px=0)
    with pytest.raises(UserError, match="at least 80 samples"):
        render_spectra(np.zeros((1, 50)))
