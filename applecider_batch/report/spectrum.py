"""A spectrum as inline SVG."""

from __future__ import annotations

import numpy as np

from applecider_batch.report.light_curve import ticks

WIDTH, HEIGHT, BOTTOM = 620, 150, 30
#: Points drawn; more are averaged.
MAX_POINTS = 600


def spectrum_svg(wavelength: np.ndarray, flux: np.ndarray, title: str) -> str:
    """Inline SVG of a spectrum, flux between its 0.5th and 99.5th percentile.

    Parameters
    ----------
    wavelength : ndarray, float, shape (n,)
        Angstrom.
    flux : ndarray, float, shape (n,)
        Any unit.
    """
    good = np.isfinite(wavelength) & np.isfinite(flux)
    wavelength, flux = _average(wavelength[good], flux[good])
    if len(flux) < 2 or wavelength[-1] <= wavelength[0]:
        return ""
    low, high = np.percentile(flux, [0.5, 99.5])
    scale = (high - low) or 1.0
    x = 6 + (wavelength - wavelength[0]) / (wavelength[-1] - wavelength[0]) * (WIDTH - 12)
    y = 6 + (1.0 - np.clip((flux - low) / scale, 0.0, 1.0)) * (HEIGHT - BOTTOM - 12)
    line = "".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(zip(x, y, strict=True)))
    marks = []
    for tick in ticks(float(wavelength[0]), float(wavelength[-1]), 7):
        at = 6 + (tick - wavelength[0]) / (wavelength[-1] - wavelength[0]) * (WIDTH - 12)
        marks.append(f'<path class="tick" d="M{at:.1f} {HEIGHT - BOTTOM}v4"/>')
        marks.append(f'<text class="tx" x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}">{tick:g}</text>')
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return (
        f'<svg class="lc" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<rect class="frame" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - BOTTOM - 1}"/>'
        f'{"".join(marks)}<text class="tx" x="{WIDTH / 2}" y="{HEIGHT - 2}">observed wavelength (Å)</text>'
        f'<path class="spectrum" d="{line}"/></svg>'
    )


def _average(wavelength: np.ndarray, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    factor = -(-len(flux) // MAX_POINTS)
    whole = len(flux) // max(factor, 1) * factor
    if factor <= 1:
        return wavelength, flux
    return wavelength[:whole].reshape(-1, factor).mean(axis=1), flux[:whole].reshape(-1, factor).mean(axis=1)
