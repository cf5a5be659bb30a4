"""Searches inside segments and the order of points, against NumPy's own words for one segment at a time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from applecider_batch.features.points import _in_order
from applecider_batch.features.segments import search_in_segments


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(20))
def test_a_search_in_a_segment_is_a_search_in_it_alone(seed: int, side: Literal["left", "right"]) -> None:
    rng = np.random.default_rng(seed)
    n, m = rng.integers(0, 60, 2)
    segment = np.sort(rng.integers(0, 8, n))
    value = rng.integers(0, 5, n) + rng.choice([0.0, 0.5, np.inf], n)
    value = value[np.lexsort((value, segment))]
    query_segment = rng.integers(-1, 9, m)
    query = rng.choice([-np.inf, 0.0, 0.5, 1.0, 3.0, 4.5, np.inf, np.nan], m)
    found = search_in_segments(segment, value, query_segment, query, side)
    for where, own, wanted in zip(found, query_segment, query, strict=True):
        start, stop = np.searchsorted(segment, own, "left"), np.searchsorted(segment, own, "right")
        assert where == start + np.searchsorted(value[start:stop], wanted, side)


@pytest.mark.parametrize("seed", range(20))
def test_points_are_sorted_by_all_keys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 200))
    keys = tuple(rng.integers(0, 4, n).astype(float) for _ in range(4))
    ties = tuple(rng.choice([0.0, 1.0, np.nan], n) for _ in range(3))
    rows = np.flatnonzero(rng.random(n) < 0.8)
    whole = np.lexsort((*ties[::-1], *keys[::-1]))
    np.testing.assert_array_equal(_in_order(rows, keys, ties), whole[np.isin(whole, rows)])
