"""Line plots of spectra as pixels, without a plotting library (Appendix A of arXiv:2507.16088).

A spectrum becomes three 288 x 288 line plots: raw, LOESS 0.05, LOESS 0.1, each scaled from its own minimum
(bottom) to its own maximum (top), no axes, no margins. A picture is what matplotlib's Agg draws at 100 dpi
into a figure of 2.88 x 2.88 inches, with axes over all of it and a line of 1.0 pt = 1.389 px, as ink: 255
minus the grey level. How it is drawn stands in `features.raster_ink`.

On real spectra the mean difference from the picture of matplotlib's default settings is 0.06 to 0.15 % of the
pixels' range and the root mean square 0.6 to 1.0 %; matplotlib's own two settings (`path.simplify` on and
off) differ by as much. Where a line swings over the whole picture every few pixels it is about 6 %.
`docs/spectra_pictures.md` has the table and the command.
"""

from __future__ import annotations

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.loess import loess
from applecider_batch.features.raster_ink import SMOOTH_SAMPLES, Scratch, draw_noisy, draw_smooth

PICTURE_SIZE = 288
LINE_WIDTH_PT = 1.0
DPI = 100.0
LINE_WIDTH_PX = LINE_WIDTH_PT * DPI / 72
LOESS_SPANS = (0.05, 0.1)
CHANNELS = ("raw", *(f"loess_{span:g}" for span in LOESS_SPANS))

_DRAWN = 16  # curves at a time: the working set stays in the cache
_SMOOTHED = 64  # curves at a time: the smoother's matrices are larger than the cache


def _scale(curves: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves (m, n) as float32, from 0 at their minimum to ``size``; and which can be drawn (m,)."""
    low, high = curves.min(1, keepdims=True), curves.max(1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        span = high - low
        usable = np.isfinite(span)[:, 0]
        factor = size / span
        constant = usable & np.isinf(factor[:, 0])
        scaled = curves - low
        scaled *= factor
    scaled = scaled.astype(np.float32, copy=False)
    scaled[constant] = size / 2
    scaled[~usable] = 0
    return scaled, usable


def rasterise(
    curves: np.ndarray, *, size: int = PICTURE_SIZE, line_width_px: float = LINE_WIDTH_PX
) -> np.ndarray:
    """Line plots of curves on a uniform grid.

    Parameters
    ----------
    curves : ndarray, float, shape (n, N)
        One curve a row, N >= 2 samples from the left to the right edge; scaled from its minimum (bottom) to
        its maximum (top), a constant one lies in the middle. A curve with a NaN or an infinity gets no ink.
    size : int
        Pixels a side.
    line_width_px : float
        Width of the line in pixels (linewidth * dpi / 72).

    Returns
    -------
    ndarray, uint8, shape (n, size, size)
        Ink: 0 none, 255 full; row 0 is the top.

    Raises
    ------
    UserError
        If the shape is not (n, N >= 2) or the line has no width.
    """
    return _render(curves, (), size, line_width_px)[:, 0]


def render_spectra(
    flux: np.ndarray, *, size: int = PICTURE_SIZE, line_width_px: float = LINE_WIDTH_PX
) -> np.ndarray:
    """Pictures for the rendered-spectrum network: raw, LOESS 0.05, LOESS 0.1 as channels.

    Parameters
    ----------
    flux : ndarray, float, shape (n, N)
        Spectra on a uniform grid, N >= 80. One with a NaN or an infinity gives a blank picture.
    size, line_width_px
        As `rasterise`.

    Returns
    -------
    ndarray, uint8, shape (n, 3, size, size)
        Ink: 0 none, 255 full; the same for a spectrum whatever else is in the batch.

    Raises
    ------
    UserError
        If the shape is not (n, N), N is too small for LOESS 0.05 or the line has no width.
    """
    return _render(flux, LOESS_SPANS, size, line_width_px)


def _render(flux: np.ndarray, spans: tuple[float, ...], size: int, width: float) -> np.ndarray:
    """Pictures (n, 1 + spans, size, size) of curves and of their smooth forms."""
    flux = np.asarray(flux)
    if flux.ndim != 2 or flux.shape[1] < 2:
        raise UserError(f"Curves must have the shape (n, N) with N of at least 2; given {flux.shape}.")
    if not np.issubdtype(flux.dtype, np.floating):
        flux = flux.astype(np.float64)
    if not 0 < width < size:
        raise UserError(f"The line's width must be between 0 and {size} pixels; given {width}.")
    channels = 1 + len(spans)
    pictures = np.zeros((len(flux), channels, size, size), np.uint8)
    flat, area, width = pictures.reshape(-1), size * size, float(width)
    scratch = Scratch()
    for start in range(0, len(flux), _SMOOTHED):
        scaled, usable = _scale(flux[start : start + _SMOOTHED], size)
        origin = (start + np.flatnonzero(usable)) * channels * area
        n = len(origin)
        # Matrix products round by the number of rows, so it is always the same.
        block = scaled
        if n < _SMOOTHED:
            block = np.zeros((_SMOOTHED, scaled.shape[1]), np.float32)
            block[:n] = scaled[usable]
        smooth = [_scale(loess(block, span, points=size * SMOOTH_SAMPLES), size)[0] for span in spans]
        for some in (slice(i, min(i + _DRAWN, n)) for i in range(0, n, _DRAWN)):
            draw_noisy(flat, origin[some], block[some], size, width, scratch)
            for channel, curves in enumerate(smooth, start=1):
                draw_smooth(flat, origin[some] + channel * area, curves[some], size, width, scratch)
    return pictures
