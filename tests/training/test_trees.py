"""Boosted trees as tensors say what scikit-learn says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from applecider_batch.models.boosted_trees import BoostedTrees
from applecider_batch.training.trees import TreeOptions, fit_trees

OPTIONS = TreeOptions(rounds=8, leaves=7, depth=4, min_samples_leaf=10)


@pytest.mark.parametrize("classes", [[0, 1, 3], [1, 2]])
def test_the_tables_are_scikit_learns_trees(classes: list[int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 6)).astype(np.float32)
    x[:, 3] = 1.0  # says nothing
    label = np.array(classes)[
        np.argsort(x[:, : len(classes)] + rng.normal(0, 0.5, (800, len(classes))))[:, -1]
    ]
    x[rng.random(x.shape) < 0.1] = np.nan
    weight = rng.uniform(0.5, 2, 800)
    state = fit_trees(x, label, weight, 4, OPTIONS, seed=1)
    trees = BoostedTrees(OPTIONS.rounds, 4, OPTIONS.nodes, OPTIONS.depth)
    trees.load_state_dict(state)
    got = torch.softmax(trees(torch.from_numpy(x)), dim=1).numpy()
    used = [0, 1, 2, 4, 5]
    oracle = HistGradientBoostingClassifier(
        learning_rate=0.1, max_iter=8, max_leaf_nodes=7, max_depth=4, min_samples_leaf=10,
        l2_regularization=1.0, max_features=0.3, early_stopping=False, random_state=1,
    ).fit(x[:, used], label, sample_weight=weight)  # fmt: skip
    expected = oracle.predict_proba(x[:, used])
    np.testing.assert_allclose(got[:, classes], expected, atol=1e-6)
    assert np.ptp(expected[:, 0]) > 0.2  # it has learned something
    assert np.delete(got, classes, axis=1).max() < 1e-9
