"""Fitting boosted trees to summary numbers of light curves, and their tables for `models.boosted_trees`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TreeOptions:
    """How trees are grown; ``leaves`` and ``depth`` bound a tree's size."""

    rounds: int = 120
    leaves: int = 15
    depth: int = 7
    learning_rate: float = 0.1
    min_samples_leaf: int = 40
    l2: float = 1.0
    max_features: float = 0.3

    @property
    def nodes(self) -> int:
        """Places that a tree of so many leaves needs."""
        return 2 * self.leaves - 1


def fit_trees(
    x: np.ndarray, label: np.ndarray, weight: np.ndarray, n_classes: int, options: TreeOptions, seed: int
) -> dict[str, Tensor]:
    """Fit and give the state of a `models.boosted_trees.BoostedTrees`.

    Parameters
    ----------
    x : ndarray of float32, shape (n, F)
        NaN where a number is missing.
    label : ndarray of int64, shape (n,)
        A class without samples gets a score of -30.
    weight : ndarray of float64, shape (n,)
    n_classes : int
    options : TreeOptions
    seed : int

    Returns
    -------
    dict of str to Tensor
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    # scikit-learn refuses a column of a single value.
    used = np.flatnonzero(np.nanmax(x, 0, initial=-np.inf) > np.nanmin(x, 0, initial=np.inf))
    model: Any = HistGradientBoostingClassifier(
        learning_rate=options.learning_rate,
        max_iter=options.rounds,
        max_leaf_nodes=options.leaves,
        max_depth=options.depth,
        min_samples_leaf=options.min_samples_leaf,
        l2_regularization=options.l2,
        max_features=options.max_features,
        early_stopping=False,
        random_state=seed,
    ).fit(x[:, used], label, sample_weight=weight)
    shape = (options.rounds, n_classes, options.nodes)
    tables: dict[str, np.ndarray] = {n: np.zeros(shape, np.int32) for n in ("feature", "left", "right")}
    tables |= {"threshold": np.zeros(shape), "value": np.zeros(shape, np.float32)}
    tables |= {"missing_left": np.zeros(shape, bool)}
    baseline = np.full(n_classes, -30.0)
    raw = model._baseline_prediction.ravel()
    two = len(model.classes_) == 2  # one tree a round, for the second class against the first
    seen = model.classes_[1:] if two else model.classes_
    baseline[model.classes_] = 0.0
    baseline[seen] = raw
    for number, trees in enumerate(model._predictors):
        for target, tree in zip(seen, trees, strict=True):
            nodes = tree.nodes
            here, place = (number, target, slice(len(nodes))), np.arange(len(nodes))
            leaf = nodes["is_leaf"].astype(bool)
            tables["feature"][here] = np.where(leaf, 0, used[np.where(leaf, 0, nodes["feature_idx"])])
            tables["threshold"][here] = np.where(leaf, 0.0, nodes["num_threshold"])
            tables["missing_left"][here] = nodes["missing_go_to_left"].astype(bool)
            tables["left"][here] = np.where(leaf, place, nodes["left"])
            tables["right"][here] = np.where(leaf, place, nodes["right"])
            tables["value"][here] = np.where(leaf, nodes["value"], 0.0)
    state = {k: torch.from_numpy(v.reshape(-1, options.nodes)) for k, v in tables.items()}
    return state | {"baseline": torch.from_numpy(baseline.astype(np.float32))}
