"""Cutouts: stored stamps to the images that a profile's network reads."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from applecider_batch.compiled import compiled
from applecider_batch.features.profiles import Profile
from applecider_batch.features.segments import int_column
from applecider_batch.schema import one_array

STAMPS: tuple[str, ...] = ("Science", "Template", "Difference")
_MAD_TO_SIGMA = 1.4826
_ROWS_AT_ONCE = 32  # half a megabyte of pixels: the steps between stay in the processor's caches
_FLOAT32_MAX = np.finfo(np.float32).max

_compiled = functools.partial(compiled, error_model="numpy")  # divides as NumPy does


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
            # Memory for all of them: fresh pages would cost more than the sums done in them.
            made = np.full((_ROWS_AT_ONCE, size, size), profile.stamp_pad, np.float32)
            spare = np.empty((_ROWS_AT_ONCE, h * w), np.float32)
            for start in range(0, len(of_shape), _ROWS_AT_ONCE):
                rows = of_shape[start : start + _ROWS_AT_ONCE]
                pixels = _rows_of(values, offsets[rows], h * w)
                _prepare(pixels, (h, w), profile, made[: len(rows)], spare[: len(rows)])
                out[rows, channel] = made[: len(rows)]
    out[bad] = np.nan
    return out


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All values of a list column, the start of each row, and its length (0 for null)."""
    array = one_array(column)
    counts = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    # flatten() leaves out what nulls may hide, so offsets are made from the lengths.
    pixels = array.flatten()
    if pixels.null_count:
        pixels = pixels.fill_null(float("nan"))
    return pixels.to_numpy(zero_copy_only=False), np.cumsum(counts) - counts, counts


def _rows_of(values: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Stretches of equal length, (n, length): a view of those that lie one after the other, else a copy."""
    first, n = int(starts[0]), len(starts)
    if (starts == first + length * np.arange(n)).all():
        return values[first : first + n * length].reshape(n, length)
    return values[starts[:, None] + np.arange(length)]


def _prepare(
    pixels: np.ndarray, shape: tuple[int, int], profile: Profile, out: np.ndarray, spare: np.ndarray
) -> None:
    """Fill, normalise and cut stamps of one shape.

    Parameters
    ----------
    pixels : ndarray, float32, shape (n, h * w)
        As stored; may hold NaN and infinities.
    shape : (int, int)
        h and w.
    profile : Profile
    out : ndarray, float32, shape (n, S, S)
        Filled but for what lies outside of the stamps.
    spare : ndarray, float32, shape (n, h * w)
        Written over.
    """
    flat = np.ascontiguousarray(pixels, np.float32)
    source, target = _placement(shape, profile)
    image = out[:, target[0], target[1]]
    finite = _copy_finite(flat, spare)
    if finite and profile.stamp_norm == "asinh_mad":
        median = _median(spare)
        finite = _distances(flat, median, spare)
        spread = _spread(_median(spare) if finite else _row_median(spare))
        _scale(flat.reshape(-1, *shape), source[0].start, source[1].start, median, spread, image)
        np.arcsinh(image, out=image)
        return
    if not finite:
        flat = _fill(flat, profile)
    kept = flat.reshape(-1, *shape)[:, source[0], source[1]]
    # Numbers about a stamp come from all of it, the rest of the work is done on what is kept.
    image[:] = _normalise(kept, flat, profile)


def _fill(flat: np.ndarray, profile: Profile) -> np.ndarray:
    if profile.stamp_fill == "keep":
        return flat
    if profile.stamp_fill == "zero":
        return np.nan_to_num(flat, nan=0.0)  # infinities become the largest float32, as upstream does
    return np.where(np.isfinite(flat), flat, _row_median(flat)[:, None])


def _row_median(flat: np.ndarray) -> np.ndarray:
    """Median of the finite numbers of each row, 0 where there is none; float32 (n,)."""
    finite = np.isfinite(flat)
    if finite.all():
        return _median(flat.copy())
    count = finite.sum(axis=1)
    out = np.zeros(len(flat), np.float32)
    for k in np.unique(count[count > 0]).tolist():
        rows = np.flatnonzero(count == k)
        out[rows] = _median(flat[rows][finite[rows]].reshape(len(rows), k))
    return out


def _median(values: np.ndarray) -> np.ndarray:
    """Median of each row of finite numbers, which are brought into another order; float32 (n,)."""
    low, high = (values.shape[1] - 1) // 2, values.shape[1] // 2
    values.partition(sorted({low, high}), axis=1)
    middle = values[:, [low, high]].astype(np.float64)
    return (0.5 * (middle[:, 0] + middle[:, 1])).astype(np.float32)


def _normalise(kept: np.ndarray, flat: np.ndarray, profile: Profile) -> np.ndarray:
    """Normalise the pixels that are kept, (n, h', w'), with numbers from all pixels, (n, h * w)."""
    if profile.stamp_norm == "none":
        return kept
    if profile.stamp_norm == "l2":
        # Squares in float32 (as upstream: they overflow for the largest float), their sum in float64.
        with np.errstate(over="ignore"):
            norm = np.sqrt((flat * flat).sum(axis=1, dtype=np.float64)).astype(np.float32)
        return kept / np.where(norm == 0, np.float32(1), norm)[:, None, None]
    median = _row_median(flat)
    with np.errstate(over="ignore"):
        distance = flat - median[:, None]
        np.abs(distance, out=distance)
        spread = _spread(_row_median(distance))
        scaled = kept - median[:, None, None]
        scaled /= spread[:, None, None]
    np.clip(scaled, -_FLOAT32_MAX, _FLOAT32_MAX, out=scaled)
    return np.arcsinh(scaled, out=scaled)


def _spread(deviation: np.ndarray) -> np.ndarray:
    """Standard deviation from the median absolute one, 1 where that is 0; float32 (n,)."""
    spread = _MAD_TO_SIGMA * deviation.astype(np.float64)
    with np.errstate(over="ignore"):
        return np.where(spread > 0, spread, 1.0).astype(np.float32)


@_compiled
def _copy_finite(values: np.ndarray, out: np.ndarray) -> bool:
    """Copy rows; whether all numbers are finite."""
    n, width = values.shape
    for i in range(n):
        finite = 0
        for j in range(width):
            out[i, j] = values[i, j]
            finite += np.abs(values[i, j]) <= _FLOAT32_MAX
        if finite < width:
            return False
    return True


@_compiled
def _distances(values: np.ndarray, middle: np.ndarray, out: np.ndarray) -> bool:
    """Distances of each row's numbers from its middle; whether all of them are finite."""
    finite = 0
    for i in range(len(values)):
        for j in range(values.shape[1]):
            distance = np.abs(values[i, j] - middle[i])
            out[i, j] = distance
            finite += distance <= _FLOAT32_MAX
    return finite == values.size


@_compiled
def _scale(
    stamps: np.ndarray, top: int, left: int, middle: np.ndarray, spread: np.ndarray, out: np.ndarray
) -> None:
    """(stamp - middle) / spread of the pixels from (top, left) on, within the range of float32."""
    n, height, width = out.shape
    for i in range(n):
        for row in range(height):
            for column in range(width):
                scaled = (stamps[i, top + row, left + column] - middle[i]) / spread[i]
                out[i, row, column] = min(max(scaled, -_FLOAT32_MAX), _FLOAT32_MAX)


def _placement(shape: tuple[int, ...], profile: Profile) -> tuple[list[slice], list[slice]]:
    """Where the kept pixels lie in the stamp and in the image: around the centre, or from the first pixel."""
    size = profile.image_size
    source, target = [], []
    for length in shape:
        shift = (length - size) // 2 if profile.stamp_align == "centre" else 0
        source.append(slice(max(shift, 0), min(shift + size, length)))
        target.append(slice(max(-shift, 0), min(length - shift, size)))
    return source, target


def radial_distance(size: int) -> np.ndarray:
    """Distance of each pixel from the centre, 0 at the centre and 1 in the corners, float32 (size, size)."""
    axis = np.arange(size, dtype=np.float64) - (size - 1) / 2
    distance = np.hypot(axis[:, None], axis[None, :])
    return (distance / distance.max()).astype(np.float32)
