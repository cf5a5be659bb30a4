"""SpectraNet: golden vectors of every upstream form, the paper's shapes, caught mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.errors import UserError
from applecider_batch.models import spectranet
from applecider_batch.models.spectranet import build, build_archive, build_paper, build_tripool
from tests.models.golden import RTOL_F64, assert_f32, assert_f64, check_state, excess, load_spec, seed_weights

FORMS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "spectranet": (build, {}, "logits"),
    "spectranet_redshift": (build, {"redshift": True}, "redshift"),
    "spectranet_archive": (build_archive, {}, "archive_logits"),
    "spectranet_archive_redshift": (build_archive, {"redshift": True}, "archive_redshift_softplus"),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> dict[str, np.ndarray]:
    with np.load(shared_golden / "spectranet.npz") as data:
        return dict(data)


def small_paper(**cfg: Any) -> nn.Module:
    """The paper's form, narrow: 256 points, 16 positions in the end as with three stages of 4096."""
    cfg = {"widths": (4, 6, 8), "kernels": ((3, 11, 31), (3, 7, 13), (3, 5, 7)), "n_points": 256} | cfg
    return build_paper(hidden=(24, 12), n_classes=5, **cfg)


@pytest.mark.parametrize("model", FORMS)
def test_golden(shared_golden: Path, golden: dict[str, np.ndarray], model: str) -> None:
    builder, cfg, output = FORMS[model]
    network = builder(**cfg)
    check_state(network, load_spec(shared_golden, model))
    seed_weights(network)
    for points in ("L4096", "L3481"):
        assert_f32(network(torch.from_numpy(golden[f"{points}_x"])), golden[f"{points}_{output}"])
    network.double()
    for points in ("L4096", "L3481"):
        x = torch.from_numpy(golden[f"{points}_x"][:3]).double()
        assert_f64(network(x), golden[f"{points}_{output}_f64"][:3])


@pytest.mark.parametrize("points", ["L4096", "L3481"])
def test_stages_golden(golden: dict[str, np.ndarray], points: str) -> None:
    network = seed_weights(build())
    x = torch.from_numpy(golden[f"{points}_x"])
    lengths = []
    for i, stage in enumerate(network.stages()):
        x = stage(x)
        lengths.append(x.shape[-1])
        assert_f32(x.mean(-1), golden[f"{points}_stage{i}_mean"])
        assert_f32(x.amax(-1), golden[f"{points}_stage{i}_max"])
    assert lengths == golden[f"{points}_stage_lengths"].tolist()


def test_tripool_golden(shared_golden: Path, golden: dict[str, np.ndarray]) -> None:
    network = build_tripool(n_classes=5)
    check_state(network, load_spec(shared_golden, "spectranet_tripool"))
    seed_weights(network)
    x = torch.from_numpy(golden["L4096_x"])
    logits, latent = network.forward_with_latent(x)
    assert_f32(logits, golden["tripool_logits"])
    assert_f32(latent, golden["tripool_embedding256"])
    shapes = []
    for i, stage in enumerate(network.stages(), start=1):
        x = stage(x)
        shapes.append(list(x.shape[1:]))
        assert_f32(x.mean(-1), golden[f"tripool_stage{i}_mean"])
    assert shapes == golden["tripool_stage_shapes"].tolist()
    x64 = torch.from_numpy(golden["L4096_x"][:3]).double()
    assert_f64(network.double()(x64), golden["tripool_logits_f64"][:3])
    with pytest.raises(ValueError, match=r"N 4096..4351; got \(6, 1, 3481\)"):
        network(torch.from_numpy(golden["L3481_x"]))


def test_batch_size_and_order_change_nothing(golden: dict[str, np.ndarray]) -> None:
    network = seed_weights(build())
    x = torch.from_numpy(golden["L4096_x"])
    together = network(x)
    assert excess(network(x.flip(0)), together.flip(0).numpy(), 2e-5) <= 1
    assert excess(network(x[2:3]), together[2:3].numpy(), 2e-5) <= 1


# --- the paper's form ---------------------------------------------------------------------------------------


def test_paper_shapes() -> None:
    """(1, 4096), (32, 1024), (64, 256), (128, 64), (256, 16), (1536, 16), 2048, 256, classes."""
    network = build_paper(n_classes=9).eval().requires_grad_(False)
    h = torch.randn(1, 1, 4096)
    shapes = []
    for block in network.stages():
        h = block(h)
        shapes.append(tuple(h.shape[1:]))
    assert shapes == [(32, 1024), (64, 256), (128, 64), (256, 16), (1536, 16)]
    logits, latent = network.forward_with_latent(torch.randn(2, 1, 4096))
    assert logits.shape == (2, 9)
    assert latent.shape == (2, 256)
    linear = [m for m in network.head if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(24576, 2048), (2048, 256)]
    assert [type(m) for m in network.head[1:4]] == [nn.LayerNorm, nn.BatchNorm1d, nn.GELU]


def test_paper_block_is_the_plain_computation() -> None:
    """One block against loops over kernels and positions, from its parameters alone."""
    torch.manual_seed(5)
    block = seed_weights(small_paper()).double().blocks[1]
    x = torch.randn(2, 4, 64, dtype=torch.float64)
    y = torch.cat([F.conv1d(x, c.weight, c.bias, padding=c.kernel_size[0] // 2) for c in block.convs], dim=1)
    ln, bn = block.layer_norm, block.batch_norm
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    y = y * ln.weight[:, None] + ln.bias[:, None]
    y = (y - bn.running_mean[:, None]) / (bn.running_var[:, None] + 1e-5).sqrt() * bn.weight[:, None]
    y = F.gelu(y + bn.bias[:, None])
    quads = y.reshape(2, 18, 16, 4)
    pooled = torch.cat([quads.amax(-1), quads.mean(-1), quads.amin(-1)], dim=1)
    squeezed = F.gelu(pooled.mean(-1) @ block.gate.squeeze.weight.T + block.gate.squeeze.bias)
    gate = torch.sigmoid(squeezed @ block.gate.excite.weight.T + block.gate.excite.bias)
    gated = pooled * gate[..., None]
    expected = torch.einsum("oc,bcl->bol", block.proj.weight[..., 0], gated) + block.proj.bias[:, None]
    mean4 = x.reshape(2, 4, 16, 4).mean(-1)
    expected += torch.einsum("oc,bcl->bol", block.skip.weight[..., 0], mean4) + block.skip.bias[:, None]
    assert torch.allclose(block(x), expected, rtol=1e-10, atol=1e-10)


def test_paper_form_is_batch_independent_and_trains() -> None:
    network = seed_weights(small_paper()).double()
    x = torch.randn(5, 1, 256, dtype=torch.float64)
    together = network(x)
    assert torch.allclose(network(x[3:4]), together[3:4], atol=1e-12)
    network.train().requires_grad_(True)
    network(x).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_bad_configs_and_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="no redshift regressor"):
        build_paper(redshift=True)
    with pytest.raises(UserError, match="odd"):
        build(kernels=((2, 3, 5),) * 5)
    with pytest.raises(UserError, match="2 widths do not fit 5"):
        build(widths=(4, 8))
    with pytest.raises(UserError, match="too few"):
        build_paper(n_points=100)
    with pytest.raises(ValueError, match="at least 256"):
        build(widths=(8, 8, 8, 8, 8))(torch.zeros(1, 1, 255))
    with pytest.raises(ValueError, match=r"N 256\.\.256"):
        small_paper()(torch.zeros(1, 1, 300))


def test_lists_of_a_card_are_taken() -> None:
    network = build(widths=[8, 8, 8, 8, 8], kernels=[[3, 5, 7]] * 5)
    assert network.config.widths == (8, 8, 8, 8, 8)
    assert hash(network.config)


# --- mistakes that the golden vectors must catch (README, section 2) ----------------------------------------


def _eps(network: nn.Module, _patch: pytest.MonkeyPatch) -> None:
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def _gelu_tanh(_network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    gelu = F.gelu
    patch.setattr(spectranet.F, "gelu", lambda x, approximate="none": gelu(x, approximate="tanh"))


def _ceil_mode(_network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    pool = F.max_pool1d
    patch.setattr(spectranet.F, "max_pool1d", lambda x, k: pool(x, k, ceil_mode=True))


def _average_pool(_network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(spectranet.F, "max_pool1d", F.avg_pool1d)


def _average_global(_network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tensor, "amax", lambda self, dim: self.mean(dim))


@pytest.mark.parametrize(
    ("points", "mutate"),
    [
        ("L4096", _eps),
        ("L4096", _gelu_tanh),
        ("L3481", _ceil_mode),
        ("L4096", _average_pool),
        ("L4096", _average_global),
    ],
)
def test_mistake_is_caught(
    golden: dict[str, np.ndarray], points: str, mutate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = seed_weights(build()).double()
    x = torch.from_numpy(golden[f"{points}_x"][:2]).double()
    mutate(network, monkeypatch)
    assert excess(network(x), golden[f"{points}_logits_f64"][:2], RTOL_F64) > 100


def test_missing_softplus_is_caught(golden: dict[str, np.ndarray]) -> None:
    got = golden["L4096_archive_redshift_softplus_f64"]
    assert excess(np.log(np.expm1(got)), got, RTOL_F64) > 100


@pytest.mark.parametrize("mistake", ["minimum left out", "pooled order", "no projection", "batch norm eps"])
def test_tripool_mistake_is_caught(
    golden: dict[str, np.ndarray], mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = seed_weights(build_tripool(n_classes=5)).double()
    x = torch.from_numpy(golden["L4096_x"][:1]).double()
    if mistake == "minimum left out":
        monkeypatch.setattr(
            spectranet,
            "tri_pool",
            lambda y: torch.cat([F.max_pool1d(y, 4), F.avg_pool1d(y, 4), y[..., ::4]], 1),
        )
    if mistake == "pooled order":
        pool = spectranet.tri_pool
        monkeypatch.setattr(spectranet, "tri_pool", lambda y: pool(y).roll(y.shape[1], dims=1))
    for module in network.modules():
        if mistake == "no projection" and isinstance(module, spectranet.TriPoolBlock):
            module.proj.weight.zero_()
        if mistake == "batch norm eps" and isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-3
    assert excess(network(x), golden["tripool_logits_f64"][:1], RTOL_F64) > 100
