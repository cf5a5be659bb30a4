"""Which HEALPix pixels are the partitions of a HATS catalogue, and which rows are in their margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

HISTOGRAM_ORDER = 10
#: A partition: HEALPix order and nested pixel number.
Pixel = tuple[int, int]


def partition_pixels(cells: Mapping[int, int], limit: int) -> list[Pixel]:
    """The largest pixels that hold at most ``limit`` rows each, in the order of the sky index.

    Parameters
    ----------
    cells : mapping
        Nested pixel of order 10 -> rows in it; a cell with more than ``limit`` rows stays whole.
    """
    numbers = np.array(sorted(cells), np.int64)
    counts = np.array([cells[int(number)] for number in numbers], np.int64)
    found: list[Pixel] = []
    for order in range(HISTOGRAM_ORDER + 1):
        pixels = numbers >> 2 * (HISTOGRAM_ORDER - order)
        distinct, inverse = np.unique(pixels, return_inverse=True)
        sums = np.bincount(inverse, weights=counts).astype(np.int64)
        fits = sums <= limit if order < HISTOGRAM_ORDER else np.ones(len(sums), bool)
        found += [(order, int(pixel)) for pixel in distinct[fits]]
        left = ~fits[inverse]
        numbers, counts = numbers[left], counts[left]
    return sorted(found, key=lambda pixel: pixel[1] << 2 * (29 - pixel[0]))


def margin_order(arcsec: float) -> int:
    """Largest order whose cells are everywhere wider than the margin."""
    from hats.pixel_math.healpix_shim import margin2order

    return int(margin2order(arcsec / 60.0))


def margin_cells(pixels: Sequence[Pixel], arcsec: float) -> tuple[list[Pixel], np.ndarray, np.ndarray]:
    """Cells of the margin order that border each partition, and each empty pixel beside them.

    Returns
    -------
    pixels : list of Pixel
        Partitions and empty pixels.
    cells, owner : ndarray of int64, shape (n,)
        Every bordering cell, ascending, and the number in ``pixels`` of the pixel that it borders.
    """
    from hats.pixel_math.pixel_margins import get_margin

    everything = [*pixels, *empty_pixels(pixels)]
    fine = margin_order(arcsec)
    borders = [np.array(get_margin(order, pixel, fine - order), np.int64) for order, pixel in everything]
    cells = np.concatenate(borders)
    owner = np.repeat(np.arange(len(everything)), [len(border) for border in borders])
    ascending = np.argsort(cells, kind="stable")
    return everything, cells[ascending], owner[ascending]


def empty_pixels(pixels: Sequence[Pixel]) -> list[Pixel]:
    """The largest pixels that hold no partition; with the partitions they cover the sky."""
    taken = set(pixels)
    above = {(k, pixel >> 2 * (order - k)) for order, pixel in pixels for k in range(order)}
    found: list[Pixel] = []
    waiting: list[Pixel] = [(0, pixel) for pixel in range(12)]
    while waiting:
        order, pixel = waiting.pop()
        if (order, pixel) in above:
            waiting.extend((order + 1, 4 * pixel + child) for child in range(4))
        elif (order, pixel) not in taken:
            found.append((order, pixel))
    return sorted(found)


def margin_rows(row_cells: np.ndarray, cells: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and, for each, a pixel in whose margin the row is; a row may be in several margins."""
    left, right = (np.searchsorted(cells, row_cells, side=side) for side in ("left", "right"))
    counts = right - left
    rows = np.repeat(np.arange(len(row_cells)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, owner[np.repeat(left, counts) + within]
