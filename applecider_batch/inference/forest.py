"""Isolation forests as plain arrays (Liu, Ting & Zhou 2008, doi:10.1109/ICDM.2008.17).

Fitted by scikit-learn, stored and evaluated without it: a forest in a file is a handful of arrays, not a
pickle. The scores are those of ``IsolationForest.score_samples`` with the sign turned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from applecider_batch.features.trees import join_trees, leaf_nodes

N_TREES = 100
MAX_SAMPLES = 256
_CHUNK = 1024


@dataclass(frozen=True)
class Forest:
    """All nodes of all trees, one after the other.

    Attributes
    ----------
    feature : ndarray, int16, shape (N,)
        Feature that a node asks for.
    threshold : ndarray, float32, shape (N,)
        A sample goes left where its feature is at most this.
    left, right : ndarray, int32, shape (N,)
        Positions of the children; a leaf is its own child.
    path : ndarray, float32, shape (N,)
        Of a leaf: its depth, and the mean path that the training samples in it would have gone on.
    root : ndarray, int32, shape (n_trees,)
    depth : int
        Of the deepest leaf.
    normal : float
        Mean path length c(max_samples) of an unsuccessful search, by which paths are divided.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    path: np.ndarray
    root: np.ndarray
    depth: int
    normal: float

    def score(self, x: np.ndarray) -> np.ndarray:
        """Anomaly score 2^(-mean path / c), near 1 for outliers and below 0.5 for the crowd.

        Parameters
        ----------
        x : ndarray, float, shape (n, D)

        Returns
        -------
        ndarray, float64, shape (n,)
            NaN where a sample is not all finite.
        """
        wide = np.asarray(x, np.float32)
        finite = np.isfinite(wide).all(axis=1)
        out = np.full(len(wide), np.nan)
        rows = np.flatnonzero(finite)
        for start in range(0, len(rows), _CHUNK):
            here = rows[start : start + _CHUNK]
            out[here] = np.exp2(-self._paths(wide[here]).mean(axis=1) / self.normal)
        return out

    def _paths(self, x: np.ndarray) -> np.ndarray:
        """Path length of each sample in each tree, float64 (n, n_trees)."""
        node = leaf_nodes(x, self.feature, self.threshold, self.left, self.right, self.root, self.depth)
        return self.path[node].astype(np.float64)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, for a file."""
        return {
            "feature": self.feature,
            "threshold": self.threshold,
            "left": self.left,
            "right": self.right,
            "path": self.path,
            "root": self.root,
            "shape": np.array([self.depth, self.normal]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Forest:
        """The inverse of :meth:`arrays`."""
        depth, normal = arrays["shape"]
        plain = {name: arrays[name] for name in ("feature", "threshold", "left", "right", "path", "root")}
        return cls(**plain, depth=int(depth), normal=float(normal))


def fit_forest(x: np.ndarray, seed: int, *, n_trees: int = N_TREES, max_samples: int = MAX_SAMPLES) -> Forest:
    """Fit a forest; every tree sees ``max_samples`` samples, or all where there are fewer.

    Parameters
    ----------
    x : ndarray, float, shape (n, D)
        Finite, at least two rows.
    seed : int
    n_trees, max_samples : int
    """
    from sklearn.ensemble import IsolationForest

    samples = min(max_samples, len(x))
    fitted = IsolationForest(n_estimators=n_trees, max_samples=samples, random_state=seed)
    fitted.fit(np.asarray(x, np.float32))
    joined, depth = join_trees(
        (estimator.tree_ for estimator in fitted.estimators_),
        lambda tree, depths: depths + _mean_path(tree.n_node_samples),
    )
    path = joined.pop("value").astype(np.float32)
    normal = float(_mean_path(np.array([samples]))[0])
    return Forest(**joined, path=path, depth=depth, normal=normal)


def _mean_path(n: np.ndarray) -> np.ndarray:
    """Mean path length c(n) of an unsuccessful search in a binary tree of n samples (equation 1)."""
    n = np.asarray(n, np.float64)
    many = np.maximum(n, 3.0)
    long = 2.0 * (np.log(many - 1.0) + np.euler_gamma) - 2.0 * (many - 1.0) / many
    return np.where(n <= 1, 0.0, np.where(n <= 2, 1.0, long))
