"""Cutouts: stored stamps to the images that a profile's network reads."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from applecider_batch.features.profiles import Profile
from applecider_batch.features.segments import int_column

STAMPS: tuple[str, ...] = ("Science", "Template", "Difference")
_MAD_TO_SIGMA = 1.4826
_ROWS_AT_ONCE = 256  # bounds the memory of the float64 steps


def make_cutouts(stamps: pa.Table, profile: Profile) -> np.ndarray:
    """Images of all rows of a stamps table.

    Parameters
    ----------
    stamps : pyarrow.Table
        Schema ``stamps``, n rows.
    profile : Profile
        Gives size S, channels C, fill, normalisation, padding.

    Returns
    -------
    ndarray, float32, shape (n, C, S, S)
        Science, template, difference and, where the profile has it, the radial distance from the centre.
        Everything is finite, except with ``stamp_fill = "keep"``. A row whose stamps are missing or do not
        fill their own shape is NaN as a whole, so that it cannot pass for an image: the caller takes such
        rows for absent.
    """
    n, size = stamps.num_rows, profile.image_size
    out = np.empty((n, profile.image_channels, size, size), np.float32)
    if profile.radial_channel:
        out[:, len(STAMPS)] = radial_distance(size)
    bad = np.zeros(n, bool)
    for channel, name in enumerate(STAMPS):
        height, width = int_column(stamps, f"height{name}", 0), int_column(stamps, f"width{name}", 0)
        values, offsets, counts = _flat(stamps.column(f"cutout{name}"))
        whole = (height > 0) & (width > 0) & (counts == height * width)
        bad |= ~whole
        # Rows of one shape are one array: nearly always a single pass over all of them.
        for h, w in sorted(set(zip(height[whole].tolist(), width[whole].tolist(), strict=True))):
            of_shape = np.flatnonzero(whole & (height == h) & (width == w))
            for start in range(0, len(of_shape), _ROWS_AT_ONCE):
                rows = of_shape[start : start + _ROWS_AT_ONCE]
                pixels = values[offsets[rows][:, None] + np.arange(h * w)].reshape(len(rows), h, w)
                out[rows, channel] = prepare_stamps(pixels, profile)
    out[bad] = np.nan
    return out


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All values of a list column, the start of each row, and its length (0 for null)."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    counts = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    # flatten() leaves out what nulls may hide, so offsets are made from the lengths.
    values = array.flatten().fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return values, np.cumsum(counts) - counts, counts


def prepare_stamps(pixels: np.ndarray, profile: Profile) -> np.ndarray:
    """Fill, normalise, cut and pad stamps of one shape.

    Parameters
    ----------
    pixels : ndarray, float32, shape (n, h, w)
        As stored; may hold NaN and infinities.
    profile : Profile

    Returns
    -------
    ndarray, float32, shape (n, S, S)
    """
    flat = pixels.reshape(len(pixels), -1)
    return _place(_normalise(_fill(flat, profile), profile).reshape(pixels.shape), profile)


def _fill(flat: np.ndarray, profile: Profile) -> np.ndarray:
    if profile.stamp_fill == "keep":
        return flat
    if profile.stamp_fill == "zero":
        return np.nan_to_num(flat, nan=0.0)  # infinities become the largest float32, as upstream does
    finite = np.isfinite(flat)
    median = _row_median(np.where(finite, flat, np.nan))
    return np.where(finite, flat, median[:, None])


def _row_median(flat: np.ndarray) -> np.ndarray:
    """Median of the numbers of each row, 0 where there is none."""
    count = np.isfinite(flat).sum(axis=1)
    ordered = np.sort(flat, axis=1)  # NaN last
    rows = np.arange(len(flat))
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, flat.shape[1] - 1)
    median = 0.5 * (ordered[rows, low].astype(np.float64) + ordered[rows, high].astype(np.float64))
    return np.where(count > 0, median, 0.0).astype(np.float32)


def _normalise(flat: np.ndarray, profile: Profile) -> np.ndarray:
    if profile.stamp_norm == "none":
        return flat
    if profile.stamp_norm == "l2":
        # Squares in float32 (as upstream: they overflow for the largest float), their sum in float64.
        with np.errstate(over="ignore"):
            norm = np.sqrt((flat * flat).sum(axis=1, dtype=np.float64)).astype(np.float32)
        return flat / np.where(norm == 0, np.float32(1), norm)[:, None]
    median = _row_median(flat)[:, None]
    with np.errstate(over="ignore"):
        deviation = flat.astype(np.float64) - median
    spread = _MAD_TO_SIGMA * _row_median(np.abs(deviation).astype(np.float32)).astype(np.float64)[:, None]
    return np.arcsinh(deviation / np.where(spread > 0, spread, 1.0)).astype(np.float32)


def _place(stamps: np.ndarray, profile: Profile) -> np.ndarray:
    """Cut or pad to S x S: around the centre, or from the first pixel."""
    size = profile.image_size
    out = np.full((len(stamps), size, size), profile.stamp_pad, np.float32)
    source, target = [], []
    for length in stamps.shape[1:]:
        shift = (length - size) // 2 if profile.stamp_align == "centre" else 0
        source.append(slice(max(shift, 0), min(shift + size, length)))
        target.append(slice(max(-shift, 0), min(length - shift, size)))
    out[:, target[0], target[1]] = stamps[:, source[0], source[1]]
    return out


def radial_distance(size: int) -> np.ndarray:
    """Distance of each pixel from the centre, 0 at the centre and 1 in the corners, float32 (size, size)."""
    axis = np.arange(size, dtype=np.float64) - (size - 1) / 2
    distance = np.hypot(axis[:, None], axis[None, :])
    return (distance / distance.max()).astype(np.float32)
