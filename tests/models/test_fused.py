"""Fused ConvNeXt blocks against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from applecider_batch.models import build_network
from applecider_batch.models import fused as module
from applecider_batch.models.convnext import ConvNeXtBlock
from applecider_batch.models.fused import FusedBlock, fuse_blocks


@pytest.fixture
def network() -> nn.Module:
    """ConvNeXt-Tiny with weights of every kind that tell, layer scale and norms included."""
    made, generator = build_network("paper", "convnext").eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in made.modules():
            if isinstance(block, ConvNeXtBlock):
                for parameter in (p for p in block.parameters() if p.ndim == 1):
                    parameter.copy_(0.3 + 0.2 * torch.randn(parameter.shape, generator=generator))
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def images(count: int) -> torch.Tensor:
    drawn = torch.randn(count, 4, 63, 63, generator=torch.Generator().manual_seed(1))
    return drawn.contiguous(memory_format=torch.channels_last)


def features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network.embed(x)  # type: ignore[operator, no-any-return]


def test_is_the_same_function(network: nn.Module) -> None:
    """Also with two threads and for any number of images; a NaN stays in its own."""
    fused = fuse_blocks(copy.deepcopy(network))
    assert not any(isinstance(part, ConvNeXtBlock) for part in fused.modules())
    assert sum(isinstance(part, FusedBlock) for part in fused.modules()) == 18
    for count in (1, 3, 16):
        torch.testing.assert_close(
            features(fused, images(count)), features(network, images(count)), rtol=1e-4, atol=2e-5
        )
    broken = images(3)
    broken[1] = torch.nan
    found = features(fused, broken)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], features(network, images(3))[[0, 2]], rtol=1e-4, atol=2e-5)


def test_what_is_left_out_is_seen(network: nn.Module) -> None:
    """Without layer scale, the norm's affine part or a bias the answer is another one."""
    for part in ("gamma", "norm.weight", "norm.bias", "mlp.fc1.bias", "mlp.fc2.bias"):
        other = copy.deepcopy(network)
        for block in other.modules():
            if isinstance(block, ConvNeXtBlock):
                with torch.no_grad():
                    block.get_parameter(part).fill_(1.0 if "bias" not in part else 0.0)
        away = (features(fuse_blocks(other), images(2)) - features(network, images(2))).abs().max()
        assert away > 1e-3, part


def test_without_the_operators_nothing_changes(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(module, "FusedBlock", missing)
    module._available.cache_clear()
    try:
        same = fuse_blocks(network)
    finally:
        module._available.cache_clear()
    assert sum(isinstance(part, ConvNeXtBlock) for part in same.modules()) == 18


def test_random_numbers_are_not_moved() -> None:
    module._available.cache_clear()
    before = torch.random.get_rng_state()
    assert module._available()
    assert torch.equal(torch.random.get_rng_state(), before)
