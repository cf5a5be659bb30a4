"""ConvNeXt blocks for inference on a CPU: the MLP as two oneDNN products that do all around them, too.

An eager block goes through its largest map once more for each of bias, GELU, layer scale and residual sum.
oneDNN's product adds the bias and applies GELU (erf) or adds the residual while a tile is in the cache, with
weights packed beforehand; layer scale and the affine part of the layer norm go into the weights.
The function is the same one within rounding.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.models.convnext import ConvNeXtBlock
from applecider_batch.models.unfilled import unfilled


class FusedBlock(nn.Module):
    """What a ConvNeXtBlock computes, float32 on a CPU, without gradients."""

    def __init__(self, block: ConvNeXtBlock) -> None:
        super().__init__()
        norm, fc1, fc2, gamma = block.norm, block.mlp.fc1, block.mlp.fc2, block.gamma
        self.conv_dw = block.conv_dw
        self._shape, self._eps = norm.normalized_shape, norm.eps
        with torch.no_grad():
            self._bias1 = fc1.bias + fc1.weight @ norm.bias
            self._bias2 = gamma * fc2.bias
            pack = torch.ops.mkldnn._reorder_linear_weight
            self._weight1 = pack((fc1.weight * norm.weight).contiguous(), None)
            self._weight2 = pack((gamma[:, None] * fc2.weight).contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        rows = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        h = F.layer_norm(self.conv_dw(x).permute(0, 2, 3, 1), self._shape, eps=self._eps)
        h = product(h, self._weight1, self._bias1, "gelu", [], "none")
        return product.binary(h, rows, self._weight2, self._bias2, "add").permute(0, 3, 1, 2)


def fuse_blocks(module: nn.Module) -> nn.Module:
    """Put fused blocks in the place of all ConvNeXt blocks of a network, if this build of torch has them.

    Parameters
    ----------
    module : nn.Module
        On a CPU, float32, in ``eval``; changed in place. It cannot be trained or saved afterwards.

    Returns
    -------
    nn.Module
        The same one.
    """
    if _available():
        for parent in list(module.modules()):
            for name, child in parent.named_children():
                if isinstance(child, ConvNeXtBlock):
                    setattr(parent, name, FusedBlock(child))
    return module


@functools.cache
def _available() -> bool:
    """Whether torch's oneDNN operators are here and do what is expected of them (they are not public)."""
    with unfilled():
        block = ConvNeXtBlock(16).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        x = torch.randn(2, 16, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last)
        try:
            return torch.allclose(FusedBlock(block)(x), block(x), rtol=1e-3, atol=1e-3)
        except (AttributeError, NotImplementedError, RuntimeError):
            return False
