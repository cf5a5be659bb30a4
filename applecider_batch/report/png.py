"""Stamps as small PNG images, without an imaging library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

#: Softening of the asinh stretch: smaller shows fainter structure.
SOFTENING = 0.1
#: Grey levels of a thumbnail: the noise of more would cost half as much again, and nobody sees them.
LEVELS = 64


def stretch(image: np.ndarray) -> np.ndarray:
    """Asinh stretch between robust limits (Lupton et al. 1999, doi:10.1086/301004).

    Parameters
    ----------
    image : ndarray, float, shape (H, W)
        NaN where there is no pixel.

    Returns
    -------
    ndarray, float64, shape (H, W)
        0 (sky minus two robust sigma) to 1 (99.7th percentile); NaN stays NaN.
    """
    finite = image[np.isfinite(image)]
    if not finite.size:
        return np.full(image.shape, np.nan)
    sky = float(np.median(finite))
    sigma = 1.4826 * float(np.median(np.abs(finite - sky)))
    low, high = sky - 2.0 * sigma, max(float(np.percentile(finite, 99.7)), sky + 5.0 * sigma)
    if not high > low:
        return np.where(np.isfinite(image), 0.5, np.nan)
    scaled = np.clip((image.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    return np.arcsinh(scaled / SOFTENING) / np.arcsinh(1.0 / SOFTENING)


def png(image: np.ndarray) -> bytes:
    """A grey PNG of values from 0 to 1, with an alpha channel where there is NaN: it is transparent.

    Parameters
    ----------
    image : ndarray, float, shape (H, W)
        The first row is drawn at the bottom, as FITS counts them.
    """
    known = np.isfinite(image)
    grey = np.where(known, np.nan_to_num(image) * 255.0 + 0.5, 0.0).astype(np.uint8)
    channels = [grey] if known.all() else [grey, np.where(known, 255, 0).astype(np.uint8)]
    pixels = np.stack(channels, axis=-1)[::-1]
    height, width = image.shape
    lines = np.zeros((height, 1 + len(channels) * width), np.uint8)  # a filter byte 0 before each line
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 4 * (len(channels) - 1), 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def data_url(image: np.ndarray) -> str:
    """A stretched stamp in :data:`LEVELS` greys as a ``data:`` URL."""
    greys = np.round(stretch(image) * (LEVELS - 1)) / (LEVELS - 1)
    return "data:image/png;base64," + base64.b64encode(png(greys)).decode()
