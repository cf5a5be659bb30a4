"""Decision trees as plain arrays: fitted by scikit-learn, stored and evaluated without it, never pickled.

All nodes of all trees lie one after the other.  A leaf is its own child, so that walking every tree for as
many steps as the deepest one has ends at the leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from applecider_batch.compiled import compiled


def leaf_nodes(
    x: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    root: np.ndarray,
    depth: int,
) -> np.ndarray:
    """Leaf that each sample reaches in each tree.

    Parameters
    ----------
    x : ndarray, float32, shape (n, D)
        Finite.
    feature, threshold, left, right : ndarray, shape (N,)
        A sample goes left where its feature is at most the threshold; positions of the children.
    root : ndarray, int32, shape (n_trees,)
    depth : int
        Of the deepest leaf.

    Returns
    -------
    ndarray, int32, shape (n, n_trees)
    """
    out = np.empty((len(x), len(root)), np.int32)
    _walk(np.ascontiguousarray(x), feature, threshold, left, right, root, depth, out)
    return out


@compiled
def _walk(
    x: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    root: np.ndarray,
    depth: int,
    out: np.ndarray,
) -> None:
    for tree in range(len(root)):  # a tree's nodes stay in the processor's caches
        for sample in range(len(x)):
            node = root[tree]
            for _ in range(depth):
                before = node
                node = left[node] if x[sample, feature[node]] <= threshold[node] else right[node]
                if node == before:
                    break
            out[sample, tree] = node


def join_trees(
    trees: Iterable[Any], value: Callable[[Any, np.ndarray], np.ndarray]
) -> tuple[dict[str, np.ndarray], int]:
    """Trees of scikit-learn (``estimator.tree_``) as the arrays of :func:`leaf_nodes`, and their depth.

    Parameters
    ----------
    trees : iterable of sklearn.tree._tree.Tree
    value : callable, (tree, depth of each node) -> (N,)
        What a leaf says; of inner nodes it is not used.

    Returns
    -------
    arrays : dict
        ``feature`` int16, ``threshold`` float32, ``left``, ``right`` int32, ``value`` float64, ``root``
        int32.
    depth : int
    """
    parts: list[dict[str, np.ndarray]] = []
    roots, offset, deepest = [], 0, 0
    for tree in trees:
        own = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        depth = _depths(tree.children_left, tree.children_right)
        parts.append(
            {
                "feature": np.where(leaf, 0, tree.feature).astype(np.int16),
                "threshold": np.where(leaf, np.inf, _floor32(tree.threshold)).astype(np.float32),
                "left": (np.where(leaf, own, tree.children_left) + offset).astype(np.int32),
                "right": (np.where(leaf, own, tree.children_right) + offset).astype(np.int32),
                "value": np.where(leaf, value(tree, depth), 0.0),
            }
        )
        roots.append(offset)
        offset += tree.node_count
        deepest = max(deepest, int(depth.max()))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**joined, "root": np.array(roots, np.int32)}, deepest


def _depths(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Edges from the root to each node; a child's number is always above its parent's."""
    depth = np.zeros(len(left))
    for node in np.flatnonzero(left >= 0):
        depth[[left[node], right[node]]] = depth[node] + 1
    return depth


def _floor32(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 not above: for a float32 sample the comparison has the same answer."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)
