"""ConvNeXt and its split head: golden vectors, a plain reference, batches, caught mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.models import convnext
from applecider_batch.models.convnext import (
    ConvNeXtBlock,
    LayerNorm2d,
    PooledNorm,
    SplitHeadConvNeXt,
    build,
    position_embedding,
)
from tests.models.golden import (
    RTOL_F64,
    SEED,
    assert_f32,
    assert_f64,
    check_state,
    excess,
    load_spec,
    seed_weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


SMALL = {"depths": (1, 1), "dims": (8, 16), "outdims": 4}


def golden_images(channels: int, px: int) -> Tensor:
    """The seeded input of ``convnext_c<channels>.npz``, (8, C, px, px) float32."""
    rng = np.random.default_rng(SEED + 30 + 100 * channels + px)
    x = rng.standard_normal((8, channels, px, px)).astype(np.float32)
    x[4:] *= np.float32(0.0157)
    return torch.from_numpy(x)


@pytest.fixture(scope="module", params=[3, 4])
def seeded(request: pytest.FixtureRequest) -> SplitHeadConvNeXt:
    return seed_weights(build(in_chans=request.param))


def test_state_dict_is_upstreams(shared_golden: Path, seeded: SplitHeadConvNeXt) -> None:
    check_state(seeded, load_spec(shared_golden, f"convnext_c{seeded.config.in_chans}"))


@pytest.mark.parametrize("px", [63, 49])
def test_golden(shared_golden: Path, seeded: SplitHeadConvNeXt, px: int) -> None:
    channels = seeded.config.in_chans
    with np.load(shared_golden / f"convnext_c{channels}.npz") as data:
        golden = {k.removeprefix(f"px{px}_"): data[k] for k in data if k.startswith(f"px{px}_")}
    x = golden_images(channels, px)
    maps: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: maps.append(out))
        for module in (seeded.backbone.stem, *seeded.backbone.stages)
    ]
    out, features = seeded.float().forward_with_latent(x)
    for hook in hooks:
        hook.remove()
    assert_f32(out, golden["out"])
    assert_f32(features, golden["features"])
    assert_f32(seeded.head_main(features), golden["head_main"])
    assert_f32(seeded.head_aux(features), golden["head_aux"])
    assert [m.shape[-1] for m in maps] == ([15, 15, 7, 3, 1] if px == 63 else [12, 12, 6, 3, 1])
    if channels == 3:  # recorded for debugging, for this one only
        assert [m.shape[-1] for m in maps] == golden["map_sizes"].tolist()
        for name, m in zip(("stem", "stage0", "stage1", "stage2", "stage3"), maps, strict=True):
            assert_f32(m.mean((2, 3)), golden[f"{name}_chanmean"])
    out, features = seeded.double().forward_with_latent(x.double())
    assert_f64(out, golden["out_f64"])
    assert_f64(features, golden["features_f64"])
    seeded.float()


def test_batch_size_order_and_memory_format_change_nothing() -> None:
    network = seed_weights(build(in_chans=4, **SMALL))
    x = golden_images(4, 49)
    together = network(x)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert excess(network(x[order]), together[order].numpy(), 2e-5) <= 1
    alone = torch.cat([network(x[i : i + 1]) for i in range(8)])
    assert excess(alone, together.numpy(), 2e-5) <= 1
    assert excess(network(x.contiguous(memory_format=torch.channels_last)), together.numpy(), 2e-5) <= 1


def test_left_over_rows_and_columns_are_not_seen() -> None:
    network = seed_weights(build(in_chans=3, **SMALL))
    x = golden_images(3, 63)[:2]
    changed = x.clone()
    changed[..., 60:, :] = 99.0
    changed[..., 60:] = 99.0
    assert torch.equal(network(x), network(changed))
    changed[..., 55, 55] = 99.0
    assert not torch.equal(network(x), network(changed))


def test_block_is_the_plain_formula() -> None:
    """Oracle: the depthwise sum written out, layer norm and GELU from their definitions."""
    block = seed_weights(ConvNeXtBlock(3)).double()
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got = block(x)
    padded = torch.zeros(1, 3, 15, 15, dtype=torch.float64)
    padded[..., 3:12, 3:12] = x
    i, j = 4, 6
    h = (padded[0, :, i : i + 7, j : j + 7] * block.conv_dw.weight[:, 0]).sum((1, 2)) + block.conv_dw.bias
    h = (h - h.mean()) / (h.var(unbiased=False) + 1e-6).sqrt() * block.norm.weight + block.norm.bias
    h = block.mlp.fc1.weight @ h + block.mlp.fc1.bias
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    h = block.gamma * (block.mlp.fc2.weight @ h + block.mlp.fc2.bias)
    assert torch.allclose(got[0, :, i, j], x[0, :, i, j] + h, rtol=1e-12, atol=1e-12)


def test_sky_position_modulates_and_is_continuous_across_zero() -> None:
    network = seed_weights(build(in_chans=3, position_frequencies=4, **SMALL)).double()
    x = golden_images(3, 49)[:3].double()
    sky = torch.tensor([[0.0, 10.0], [360.0, 10.0], [120.0, 10.0]], dtype=torch.float64)
    same = x[:1].expand(3, -1, -1, -1)
    out = network(same, sky)
    assert torch.allclose(out[0], out[1], atol=1e-12)
    assert not torch.allclose(out[0], out[2], atol=1e-3)
    embedding = position_embedding(sky[:, 0], sky[:, 1], 4)
    assert embedding.shape == (3, 16)
    assert embedding[2, 1] == pytest.approx(np.sin(np.deg2rad(240.0)))
    assert embedding[2, 4 + 2] == pytest.approx(np.cos(np.deg2rad(480.0)))
    with pytest.raises(ValueError, match="give ra and dec"):
        network(x)


def test_contradictory_config_is_refused() -> None:
    with pytest.raises(UserError, match="one depth per width"):
        build(depths=(1, 2, 3), dims=(8, 16))


# --- mistakes that the golden vectors must catch (README, section 2) ----------------------------------------

Mistake = Callable[[SplitHeadConvNeXt, pytest.MonkeyPatch], None]


def _eps_of(kinds: str, value: float) -> Mistake:
    def mutate(network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
        for name, module in network.named_modules():
            if isinstance(module, nn.LayerNorm) and name.startswith(kinds):
                patch.setattr(module, "eps", value)

    return mutate


def _tanh_gelu(kinds: str) -> Mistake:
    def mutate(network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
        for name, module in network.named_modules():
            if isinstance(module, nn.GELU) and name.startswith(kinds):
                patch.setattr(module, "approximate", "tanh")

    return mutate


def _no_first_gelu(network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network.head_main[0], "forward", lambda x: x)


def _relu_between(network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
    last = network.head_main[6].forward
    patch.setattr(network.head_main[6], "forward", lambda x: last(x.relu()))


def _tiny_layer_scale(_network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
    def forward(self: ConvNeXtBlock, x: Tensor) -> Tensor:
        h = self.conv_dw(x).permute(0, 2, 3, 1)
        return x + (1e-6 * self.mlp(self.norm(h))).permute(0, 3, 1, 2)

    patch.setattr(ConvNeXtBlock, "forward", forward)


def _no_head_norm(_network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PooledNorm, "forward", lambda self, x: x.mean(dim=(2, 3)))


def _no_tanh(network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network.head_aux[2], "forward", lambda x: x)


def _gelu_in_head(network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network.head_main[3], "forward", nn.functional.gelu)


def _unbiased_variance(_network: SplitHeadConvNeXt, patch: pytest.MonkeyPatch) -> None:
    def forward(self: LayerNorm2d, x: Tensor) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)  # unbiased, without eps
        return x * self.weight[:, None, None] + self.bias[:, None, None]

    patch.setattr(convnext.LayerNorm2d, "forward", forward)


MISTAKES: dict[str, Mistake] = {
    "backbone LayerNorm eps 1e-5 for 1e-6": _eps_of("backbone", 1e-5),
    "head LayerNorm eps 1e-6 for 1e-5": _eps_of("head", 1e-6),
    "backbone GELU tanh for erf": _tanh_gelu("backbone"),
    "head GELU tanh for erf": _tanh_gelu("head"),
    "head_main first GELU left out": _no_first_gelu,
    "a ReLU between the last two Linears": _relu_between,
    "layer scale left at 1e-6": _tiny_layer_scale,
    "no head.norm after pooling": _no_head_norm,
    "no tanh on the auxiliary head": _no_tanh,
    "GELU for ReLU in head_main": _gelu_in_head,
    "unbiased variance in the channel norm": _unbiased_variance,
}


@pytest.fixture(scope="module")
def double3() -> SplitHeadConvNeXt:
    return seed_weights(build(in_chans=3)).double()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_caught(
    shared_golden: Path, double3: SplitHeadConvNeXt, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(shared_golden / "convnext_c3.npz") as data:
        expected = data["px63_out_f64"][[0, 5]]
    x = golden_images(3, 63)[[0, 5]].double()
    assert excess(double3(x), expected, RTOL_F64) <= 1
    MISTAKES[name](double3, monkeypatch)
    assert excess(double3(x), expected, RTOL_F64) > 100
