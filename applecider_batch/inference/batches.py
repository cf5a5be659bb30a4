"""Cut a shard's items into batches: by length bucket, in row order, never across shards.

The cut depends on the items and the plan alone, so a shard's batches are the same on every executor and
with any number of workers.  Light curves are padded to their bucket's length, not to the longest of the
batch.

Batches are dictionaries of arrays as they travel to a predictor:

- photometry: ``x`` float32 (b, L, 7) raw, 0 where padded; ``mask`` bool (b, L), True = real event; where the
  network reads them ``summary`` float32 (b, F), NaN where a number is not defined
- image: ``image`` float32 or float16 (b, C, S, S); ``metadata`` float32 (b, F)
- spectra: ``x`` float32 or float16 (b, 1, N), or pictures of them, uint8 (b, 3, S, S)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from applecider_batch.features.spectra_raster import render_spectra

Batch = dict[str, np.ndarray]

LENGTH_BUCKETS: tuple[int, ...] = (8, 16, 32, 64, 128, 257)

WHOLE = 32
"""A batch is filled up to a multiple of so many items: numbers of two AVX-512 registers."""

_WIRE: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    # NumPy has no bfloat16; half precision carries stamps and spectra (both normalised) at the same cost.
    "bfloat16": np.dtype(np.float16),
}


def wire_dtype(dtype: str) -> np.dtype:
    """The dtype in which stamps and spectra travel for a plan's dtype, the same on both executors."""
    return _WIRE[dtype]


def whole_rows(count: int) -> np.ndarray:
    """Rows of a batch, the last one repeated up to a multiple of 32.

    Libraries of linear algebra take other kernels, which add in another order, for a handful of rows than for
    many, and torch computes functions such as the sigmoid of what is left over behind the last 32 numbers of
    a tensor (16 with AVX2) by another formula than of those before.  With these rows the bits of an answer do
    not depend on how many items came with it (seen on CPUs for every network; a row's place in its batch does
    not matter either), and so not on the shards.

    Parameters
    ----------
    count : int
        Items, at least 1.

    Returns
    -------
    ndarray, int64, shape (m,)
        0 … count-1, count-1, ….
    """
    return np.minimum(np.arange(-(-count // WHOLE) * WHOLE), count - 1)


def cut(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Item numbers 0 … count-1 in consecutive batches.

    Yields
    ------
    ndarray, int64, shape (b,), b <= batch_size
    """
    for start in range(0, count, batch_size):
        yield np.arange(start, min(start + batch_size, count))


def cut_by_length(
    lengths: np.ndarray, batch_size: int, buckets: Sequence[int] = LENGTH_BUCKETS
) -> Iterator[tuple[int, np.ndarray]]:
    """Item numbers in batches of one length bucket, shortest bucket first, row order inside a bucket.

    Parameters
    ----------
    lengths : ndarray, int, shape (n,)
        Number of events of each item; items of length 0 are left out (nothing to infer from).
    batch_size : int
    buckets : sequence of int, ascending
        The last one must hold the longest item.

    Yields
    ------
    (int, ndarray int64 shape (b,))
        Padded length and item numbers.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and lengths.max() > buckets[-1]:
        raise ValueError(
            f"A sequence of {lengths.max()} events is longer than the last bucket, {buckets[-1]}."
        )
    bucket_of = np.searchsorted(np.asarray(buckets), lengths)
    for number, length in enumerate(buckets):
        items = np.flatnonzero((bucket_of == number) & (lengths > 0))
        for start in range(0, len(items), batch_size):
            yield int(length), items[start : start + batch_size]


def pad_sequences(values: np.ndarray, offsets: np.ndarray, items: np.ndarray, length: int) -> Batch:
    """One padded photometry batch from ragged sequences.

    Parameters
    ----------
    values : ndarray, float32, shape (N, 7)
    offsets : ndarray, int64, shape (n + 1,)
    items : ndarray, int64, shape (b,)
    length : int
        Padded length L, at least the longest item's.

    Returns
    -------
    dict
        ``x`` float32 (b, L, 7) and ``mask`` bool (b, L), True = real event.
    """
    counts = offsets[items + 1] - offsets[items]
    mask = np.arange(length) < counts[:, None]
    source = offsets[items][:, None] + np.arange(length)
    x = np.zeros((len(items), length, values.shape[1]), np.float32)
    x[mask] = values[source[mask]]
    return {"x": x, "mask": mask}


def spectra_input(flux: np.ndarray, picture_size: int | None) -> np.ndarray:
    """What a network of spectra reads: the flux (b, 1, N), or pictures of it, uint8 (b, 3, S, S).

    Parameters
    ----------
    flux : ndarray, float32, shape (b, N)
        On the profile's grid, as `features.spectra.preprocess_spectrum` makes it.
    picture_size : int or None
        Side S of the pictures that the network reads; None: it reads the flux.
    """
    return flux[:, None] if picture_size is None else render_spectra(flux, size=picture_size)
