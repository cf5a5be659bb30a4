"""Gradient-boosted trees as tensors, so that they run where networks run and need no pickle.

Fitted by scikit-learn's histogram gradient boosting (`training.trees`); here they are only asked. A sample
walks all trees at once, one level a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BoostedTrees(nn.Module):
    """Trees of equal size, class after class in every round; leaves lead to themselves.

    Parameters
    ----------
    rounds, n_classes, n_nodes, depth : int
        ``rounds * n_classes`` trees of ``n_nodes`` places and at most ``depth`` levels.
    """

    feature: Tensor
    threshold: Tensor
    missing_left: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    baseline: Tensor

    def __init__(self, rounds: int, n_classes: int, n_nodes: int, depth: int) -> None:
        super().__init__()
        self.depth, self.n_classes = depth, n_classes
        shape = (rounds * n_classes, n_nodes)
        self.register_buffer("feature", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("missing_left", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("left", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("right", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("baseline", torch.zeros(n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Raw scores (B, n_classes) of features ``x`` (B, F), NaN where one is missing."""
        trees, nodes = self.value.shape
        start = torch.arange(trees, device=x.device) * nodes  # where each tree begins in the flat tables
        at = start.expand(len(x), trees)  # (B, T)
        feature, threshold, missing_left, left, right = (
            t.flatten() for t in (self.feature, self.threshold, self.missing_left, self.left, self.right)
        )
        for _ in range(self.depth):
            here = x.gather(1, feature[at].long())
            # Thresholds lie between two float32 numbers: compared in float64 as they were fitted.
            go_left = torch.where(torch.isnan(here), missing_left[at], here.double() <= threshold[at])
            at = start + torch.where(go_left, left[at], right[at]).long()
        score = self.value.flatten()[at].view(len(x), -1, self.n_classes).sum(1)
        return score + self.baseline
