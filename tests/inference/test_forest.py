"""Forests as arrays against scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from applecider_batch.inference.forest import Forest, fit_forest


@pytest.mark.parametrize(
    ("n", "width", "max_samples"), [(900, 7, 256), (40, 3, 256), (300, 1, 16), (2, 2, 256)]
)
def test_scores_are_those_of_scikit_learn(n: int, width: int, max_samples: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, width)).astype(np.float32)
    x[: n // 4] = np.round(x[: n // 4], 1)  # equal values: leaves with several samples
    oracle = IsolationForest(n_estimators=50, max_samples=min(max_samples, n), random_state=3).fit(x)
    asked = np.concatenate([x, 3 * rng.normal(size=(1500, width)).astype(np.float32)])
    ours = fit_forest(x, 3, n_trees=50, max_samples=max_samples)
    np.testing.assert_allclose(ours.score(asked), -oracle.score_samples(asked), rtol=1e-6)


def test_a_sample_on_a_threshold_goes_left_as_in_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 2)).astype(np.float32)
    oracle = IsolationForest(n_estimators=20, max_samples=64, random_state=0).fit(x)
    ours = fit_forest(x, 0, n_trees=20)
    thresholds = np.concatenate([e.tree_.threshold[e.tree_.feature >= 0] for e in oracle.estimators_])
    edge = np.repeat(thresholds.astype(np.float32)[:, None], 2, axis=1)
    np.testing.assert_allclose(ours.score(edge), -oracle.score_samples(edge), rtol=1e-6)


def test_arrays_give_the_forest_back_and_nan_stays_nan() -> None:
    x = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    forest = fit_forest(x, 1, n_trees=5)
    again = Forest.from_arrays(forest.arrays())
    broken = x.copy()
    broken[3, 2] = np.nan
    np.testing.assert_array_equal(again.score(broken)[:3], forest.score(x)[:3])
    assert np.flatnonzero(np.isnan(again.score(broken))).tolist() == [3]
