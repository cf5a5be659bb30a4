"""Pictures of spectra: the rasteriser against matplotlib, in time and in pixels (one thread, one process).

    python -m benchmarks.spectra_raster [spectra.parquet]

Without a file the spectra are made up. Two references per spectrum, each with its three pictures of the
same curves: ``draw`` is the least that matplotlib can do (a figure, one line, canvas.draw, its buffer),
``savefig`` what a script does (subplots, plot, savefig as PNG, read back). Pixels are compared twice: with
matplotlib's default settings, under which it leaves out points of the path that it holds for unimportant
(`path.simplify`), and with that switched off. The first against the second is shown as well.
"""

from __future__ import annotations

import io
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from applecider_batch.features.loess import loess
from applecider_batch.features.spectra_raster import (
    CHANNELS,
    DPI,
    LOESS_SPANS,
    PICTURE_SIZE,
    render_spectra,
)

GRID = np.linspace(3850.0, 8500.0, 4096)
N_SPECTRA = 256
N_TIMED = 64  # as many as are drawn together
N_REFERENCE = 12
ROUNDS = 5


def spectra(path: str | None) -> np.ndarray:
    """(n, 4096) spectra on the paper's grid, z-scored where covered and 0 elsewhere."""
    rng = np.random.default_rng(0)
    rows = []
    if path is None:
        for _ in range(N_SPECTRA):
            wave = np.sort(rng.uniform(3500, 9000, int(rng.integers(500, 3000))))
            flux = np.convolve(rng.normal(size=len(wave)), np.hanning(81), "same") + rng.normal(
                size=len(wave)
            )
            rows.append((wave, flux))
    else:
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=["wavelength", "flux", "redshift"])
        for i in rng.permutation(table.num_rows)[:N_SPECTRA].tolist():
            wave, flux, z = (table[name][i].as_py() for name in table.column_names)
            rows.append((np.array(wave) / (1 + (z if z is not None and z < 20 else 0)), np.array(flux)))
    out = np.zeros((len(rows), len(GRID)), np.float32)
    for y, (wave, flux) in zip(out, rows, strict=True):
        inside = (wave[0] <= GRID) & (wave[-1] >= GRID)
        values = np.interp(GRID[inside], wave, flux)
        if len(values) and np.std(values) > 0:
            y[inside] = (values - values.mean()) / values.std()
    return out[np.ptp(out, axis=1) > 0]


def draw(y: np.ndarray) -> np.ndarray:
    """Matplotlib's grey picture (288, 288) of a curve, by the shortest way."""
    import matplotlib.pyplot as plt

    inches = PICTURE_SIZE / DPI
    figure = plt.figure(figsize=(inches, inches), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.plot(y, "k", linewidth=1.0)
    axes.set_xlim(0, len(y) - 1)
    axes.set_ylim(y.min(), y.max())
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., 0].copy()
    plt.close(figure)
    return picture


def savefig(y: np.ndarray) -> np.ndarray:
    """The same as a script would: subplots, savefig, read the PNG."""
    import matplotlib.pyplot as plt

    inches = PICTURE_SIZE / DPI
    figure, axes = plt.subplots(figsize=(inches, inches), dpi=DPI)
    figure.subplots_adjust(0, 0, 1, 1)
    axes.axis("off")
    axes.plot(y, "k", linewidth=1.0)
    axes.set_xlim(0, len(y) - 1)
    axes.set_ylim(y.min(), y.max())
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
    file.seek(0)
    return plt.imread(file)[..., 0]


def seconds(work: object, n: int) -> float:
    """CPU seconds per spectrum."""
    start = time.process_time()
    work()  # type: ignore[operator]
    return (time.process_time() - start) / n


def main() -> None:
    """Print times, ratios and differences."""
    import matplotlib

    matplotlib.use("Agg")
    flux = spectra(sys.argv[1] if len(sys.argv) > 1 else None)
    curves = list(zip(flux, *loess(flux, LOESS_SPANS), strict=True))
    some = curves[:N_REFERENCE]
    mine, least, script = [], [], []
    pictures = render_spectra(flux)
    timed = flux[:N_TIMED]
    for _ in range(ROUNDS):  # in turns, because the machine's speed changes with what its neighbours do
        mine.append(seconds(lambda: render_spectra(timed), len(timed)))
        least.append(seconds(lambda: [draw(y) for three in some for y in three], len(some)))
        script.append(seconds(lambda: [savefig(y) for three in some for y in three], len(some)))
    ms = [float(np.median(times)) * 1e3 for times in (mine, least, script)]
    print(f"per spectrum (three pictures), median of {ROUNDS} rounds over {len(timed)} spectra:")
    print(f"  render_spectra, LOESS included  {ms[0]:8.3f} ms")
    print(f"  matplotlib draw                 {ms[1]:8.3f} ms   {ms[1] / ms[0]:6.1f} x")
    print(f"  matplotlib savefig              {ms[2]:8.3f} ms   {ms[2] / ms[0]:6.1f} x")
    print(f"pixels of {len(flux)} spectra:")
    for channel, name in enumerate(CHANNELS):
        drawn = {}
        for simplify in (True, False):
            with matplotlib.rc_context({"path.simplify": simplify}):
                drawn[simplify] = np.array([255.0 - draw(three[channel]) for three in curves])
        ours = pictures[:, channel]
        print(f"{name}, difference in % of the pixels' range:")
        print("  ours and matplotlib's, default settings  ", said(ours, drawn[True]))
        print("  ours and matplotlib's, simplification off", said(ours, drawn[False]))
        print("  matplotlib's two                         ", said(drawn[True], drawn[False]))


def said(one: np.ndarray, other: np.ndarray) -> str:
    """Differences of pictures (n, size, size), in words."""
    error = np.abs(one.astype(float) - other) / 255
    rms = np.sqrt((error**2).mean((1, 2)))
    within = 100 * float((error <= 0.02).mean())
    return (
        f"mean {100 * error.mean():.2f}, RMS {100 * rms.mean():.2f} (worst picture {100 * rms.max():.2f}),"
        f" pixels within 2 %: {within:.2f} %"
    )


if __name__ == "__main__":
    main()
