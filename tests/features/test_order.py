"""The order inside segments against numpy.lexsort."""

from __future__ import annotations

import numpy as np
import pytest

from applecider_batch.features.order import order_within


@pytest.mark.parametrize("seed", range(40))
def test_the_order_is_that_of_lexsort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 300))
    segment = rng.integers(0, 6, n)
    if seed % 2:
        segment.sort()
    keys = [
        rng.choice([-1.5, 0.0, -0.0, 3.0, np.nan, -np.nan, np.inf, -np.inf], n),
        rng.choice([-3, 0, 2, np.iinfo(np.int64).max - 1, np.iinfo(np.int64).min], n),
        rng.normal(size=n).round(1),
        rng.random(n) < 0.5,
    ][: 1 + seed % 4]
    np.testing.assert_array_equal(order_within(segment, *keys), np.lexsort((*keys[::-1], segment)))


def test_items_in_falling_order_are_turned_round() -> None:
    np.testing.assert_array_equal(
        order_within(np.zeros(1000, np.int64), -np.arange(1000.0)), np.arange(1000)[::-1]
    )
