"""Line plots of spectra as pixels, without a plotting library (Appendix A of arXiv:2507.16088).

A spectrum becomes three 288 x 288 line plots: raw, LOESS 0.05, LOESS 0.1, each scaled from its own minimum
(bottom) to its own maximum (top), no axes, no margins. A picture is what matplotlib's Agg draws at 100 dpi
into a figure of 2.88 x 2.88 inches, with axes over all of it and a line of 1.0 pt = 1.389 px, as ink: 255
minus the grey level. How it is drawn stands in `features.raster_ink`.

On real spectra more than 99.99 % of all pixels are within 2 % of the range of those of matplotlib's default
settings. `docs/spectra_pictures.md` has the table and the command.
"""

from __future__ import annotations

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.loess import loess

PICTURE_SIZE = 288
LINE_WIDTH_PT = 1.0
DPI = 100.0
LINE_WIDTH_PX = LINE_WIDTH_PT * DPI / 72
LOESS_SPANS = (0.05, 0.1)
CHANNELS = ("raw", *(f"loess_{span:g}" for span in LOESS_SPANS))

_TOGETHER = 64  # curves at a time


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
    from applecider_batch.features.raster_ink import draw, scale  # a compiler: only where it is used

    width = float(width)
    pictures = np.empty((len(flux), 1 + len(spans), size, size), np.uint8)
    # Matrix products round by the number of rows, so it is always the same.
    block = np.zeros((_TOGETHER, flux.shape[1]))
    for start in range(0, len(flux), _TOGETHER):
        out = pictures[start : start + _TOGETHER]
        curves = block[: len(out)]
        curves[:] = flux[start : start + _TOGETHER]
        scale(curves)
        draw(curves, width, out, 0)
        for channel, smooth in enumerate(loess(block, spans), start=1):
            draw(smooth[: len(out)], width, out, channel)
    return pictures
