from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from applecider_batch.inference.batches import (
    LENGTH_BUCKETS,
    WHOLE,
    cut,
    cut_by_length,
    pad_sequences,
    wire_dtype,
)


@given(st.lists(st.integers(0, 257), max_size=60), st.integers(1, 9))
def test_every_item_with_events_is_in_exactly_one_batch_of_its_bucket(lengths: list[int], size: int) -> None:
    seen: list[int] = []
    for padded, items in cut_by_length(np.array(lengths, np.int64), size):
        assert 0 < len(items) <= size
        assert (np.diff(items) > 0).all(), "row order inside a batch"
        for item in items:
            shorter = [b for b in LENGTH_BUCKETS if b < padded]
            assert max(shorter, default=0) < lengths[item] <= padded
        seen.extend(items.tolist())
    assert sorted(seen) == [i for i, n in enumerate(lengths) if n > 0]


def test_a_sequence_longer_than_the_last_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="258 events is longer"):
        list(cut_by_length(np.array([3, 258]), 4))


def test_cut_covers_all_items_in_order() -> None:
    batches = list(cut(7, 3))
    assert [len(b) for b in batches] == [3, 3, 1]
    assert np.concatenate(batches).tolist() == list(range(7))


def test_padding_holds_each_sequence_and_zeros() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 7)).astype(np.float32) for n in (3, 1, 4)]
    offsets = np.array([0, 3, 4, 8])
    batch = pad_sequences(np.concatenate(parts), offsets, np.array([2, 0]), 5)
    assert batch["x"].shape == (2, 5, 7)
    for row, part in zip(range(2), (parts[2], parts[0]), strict=True):
        assert batch["mask"][row].tolist() == [i < len(part) for i in range(5)]
        np.testing.assert_array_equal(batch["x"][row, : len(part)], part)
        assert not batch["x"][row, len(part) :].any()


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("float16", 16), ("bfloat16", 16)])
def test_half_precision_halves_what_travels(dtype: str, bits: int) -> None:
    assert wire_dtype(dtype).itemsize * 8 == bits


@pytest.mark.parametrize("width", [1, 5, 8])
def test_functions_of_a_whole_batch_have_bits_that_no_neighbour_changes(width: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(3 * WHOLE, width)
    alone = torch.sigmoid(values[:WHOLE])
    assert torch.equal(torch.sigmoid(values)[:WHOLE], alone)
