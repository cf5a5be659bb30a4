"""Order inside segments: a sort by several keys where a shard consists of many short runs of items.

``numpy.lexsort`` sorts all items of a shard once for every key. Here each segment is sorted by itself, by all
keys at once, in the processor's caches.
"""

from __future__ import annotations

import numpy as np

from applecider_batch.compiled import compiled

_SHORT = 8  # items that are sorted by insertion before they are merged
_LARGEST = np.iinfo(np.int64).max
_INFINITE = int(np.array(np.inf).view(np.int64))


def order_within(segment: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """The same as ``numpy.lexsort((*reversed(keys), segment))``: items by segment, then by the keys, stable.

    Parameters
    ----------
    segment : ndarray of int64, shape (n,)
        Quickest where it is ascending.
    keys : ndarray of int or float, shape (n,)
        Most important first; NaN stand last.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    if (segment[1:] < segment[:-1]).any():
        first = np.argsort(segment, kind="stable")
        return first[order_within(segment[first], *(key[first] for key in keys))]
    numbers = np.empty((len(segment), len(keys)), np.int64)
    for place, key in enumerate(keys):
        if key.dtype.kind == "f":
            # + 0.0: a negative zero is no smaller than the other one.
            _comparable((key + 0.0).view(np.int64), place, numbers)
        else:
            numbers[:, place] = key
    order = np.arange(len(segment))
    _sort(segment, numbers, order, np.empty_like(order))
    return order


@compiled
def _comparable(bits: np.ndarray, place: int, out: np.ndarray) -> None:
    """Integers in the order of the float64 that have these bits; all NaN are the largest."""
    for i in range(len(bits)):
        magnitude = bits[i] & _LARGEST
        if magnitude > _INFINITE:
            out[i, place] = _LARGEST
        else:
            out[i, place] = bits[i] if bits[i] >= 0 else -magnitude


@compiled
def _sort(segment: np.ndarray, keys: np.ndarray, order: np.ndarray, spare: np.ndarray) -> None:
    """Sort ``order`` (0 … n-1) inside runs of equal segments: short stretches by insertion, then merged."""

    def before(one: int, other: int) -> bool:
        for place in range(keys.shape[1]):
            if keys[one, place] != keys[other, place]:
                return keys[one, place] < keys[other, place]
        return False

    n, start = len(segment), 0
    while start < n:
        stop = start + 1
        while stop < n and segment[stop] == segment[start]:
            stop += 1
        for low in range(start, stop, _SHORT):
            for item in range(low + 1, min(low + _SHORT, stop)):
                at = item
                while at > low and before(item, order[at - 1]):
                    order[at] = order[at - 1]
                    at -= 1
                order[at] = item
        width = _SHORT
        while width < stop - start:
            for low in range(start, stop - width, 2 * width):
                middle, high = low + width, min(low + 2 * width, stop)
                if not before(order[middle], order[middle - 1]):
                    continue
                spare[low:middle] = order[low:middle]
                left, right, at = low, middle, low
                while left < middle and right < high:
                    if before(order[right], spare[left]):
                        order[at] = order[right]
                        right += 1
                    else:
                        order[at] = spare[left]
                        left += 1
                    at += 1
                order[at : at + middle - left] = spare[left:middle]
            width *= 2
        start = stop
