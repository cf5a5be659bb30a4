from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax as scipy_log_softmax

from applecider_batch.inference.fusion import fuse, log_softmax, mask_and_count

LOGITS = hnp.arrays(np.float32, (6, 3, 5), elements=st.floats(-80, 80, width=32))
AVAILABLE = hnp.arrays(bool, (6, 3))


@given(LOGITS, AVAILABLE)
def test_fusion_is_the_plain_mean_of_the_probabilities_that_are_there(
    logits: np.ndarray, available: np.ndarray
) -> None:
    log_probs = log_softmax(logits)
    fused = fuse(log_probs, available)
    for row in range(6):
        members = [np.exp(log_probs[row, m]) for m in range(3) if available[row, m]]
        if members:
            np.testing.assert_allclose(np.exp(fused[row]), np.mean(members, axis=0), rtol=1e-12, atol=1e-300)
        else:
            assert np.isnan(fused[row]).all()


@given(LOGITS)
def test_log_softmax_is_scipys(logits: np.ndarray) -> None:
    np.testing.assert_allclose(
        log_softmax(logits), scipy_log_softmax(logits.astype(float), axis=-1), atol=1e-12
    )


def test_an_absent_modality_changes_nothing_whatever_it_holds() -> None:
    log_probs = log_softmax(np.random.default_rng(0).normal(size=(4, 3, 5)))
    available = np.array([[True, False, True]] * 4)
    spoiled = log_probs.copy()
    spoiled[:, 1] = np.nan
    np.testing.assert_array_equal(fuse(log_probs, available), fuse(spoiled, available))


def test_a_row_that_is_not_finite_is_nan_and_leaves_the_others_alone() -> None:
    logits = np.zeros((3, 5))
    logits[1, 2] = np.inf
    out = log_softmax(logits)
    assert np.isnan(out[1]).all()
    np.testing.assert_allclose(out[[0, 2]], -np.log(5))


def test_mask_and_count() -> None:
    mask, count = mask_and_count(np.array([[True, False, True], [False, False, False], [True, True, True]]))
    assert mask.tolist() == [5, 0, 7]
    assert count.tolist() == [2, 0, 3]
