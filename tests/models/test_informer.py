"""Informer: golden vectors, a plain loop for ProbSparse attention, repeatable results, padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.models.informer import InformerAttention, build, prob_sparse
from tests.models.golden import RTOL_F64, assert_f32, assert_f64, check_state, excess, load_spec, seed_weights


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> dict[str, np.ndarray]:
    with np.load(shared_golden / "informer.npz") as data:
        return dict(data)


def inputs(golden: dict[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.from_numpy(golden["prob_index_sample"].astype(np.int64))
    return torch.from_numpy(golden["x"]), torch.from_numpy(golden["mask"]) > 0.5, draw


def test_golden(shared_golden: Path, golden: dict[str, np.ndarray]) -> None:
    network = build(seq_len=96, upstream_form=True)
    check_state(network, load_spec(shared_golden, "informer"))
    seed_weights(network)
    x, mask, draw = inputs(golden)
    assert_f32(network(x, mask), golden["full_logits"])
    assert_f32(network(x, mask, draw), golden["prob_logits"])
    network.double()
    assert_f64(network(x.double(), mask), golden["full_logits_f64"])
    assert_f64(network(x.double(), mask, draw), golden["prob_logits_f64"])


@pytest.mark.parametrize("mistake", ["heads moved back", "padding masked", "eps", "another draw"])
def test_mistake_is_caught(golden: dict[str, np.ndarray], mistake: str) -> None:
    network = seed_weights(build(seq_len=96, upstream_form=True)).double()
    x, mask, draw = inputs(golden)
    x = x.double()
    expected = golden["prob_logits_f64"]
    assert excess(network(x, mask, draw), expected, RTOL_F64) <= 1
    for module in network.modules():
        if mistake == "heads moved back" and isinstance(module, InformerAttention):
            module.upstream_form = False
        if mistake == "eps" and isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    if mistake == "padding masked":
        network, expected, draw = seed_weights(build(seq_len=96)).double(), golden["full_logits_f64"], None
    if mistake == "another draw":
        draw = draw.roll(1, dims=1)
    assert excess(network(x, mask, draw), expected, RTOL_F64) > 100


def test_prob_sparse_is_the_plain_loop() -> None:
    gen = torch.Generator().manual_seed(1)
    length, u, d = 11, 4, 6
    q, k, v = (torch.randn(2, 3, length, d, generator=gen, dtype=torch.float64) for _ in range(3))
    draw = torch.randint(0, length, (length, u), generator=gen)
    got = prob_sparse(q, k, v, draw)
    for b in range(2):
        for h in range(3):
            scores = [[float(q[b, h, i] @ k[b, h, j]) for j in draw[i]] for i in range(length)]
            measure = [max(s) - sum(s) / length for s in scores]
            chosen = sorted(range(length), key=lambda i: -measure[i])[:u]
            for i in range(length):
                weights = torch.softmax(k[b, h] @ q[b, h, i] / d**0.5, dim=0)
                expected = weights @ v[b, h] if i in chosen else v[b, h].mean(0)
                assert torch.allclose(got[b, h, i], expected, atol=1e-12)


def test_own_form_does_not_depend_on_padding_or_batch() -> None:
    network = seed_weights(build(seq_len=20, d_model=16, n_heads=2, n_layers=2, d_ff=32)).double()
    x = torch.randn(4, 12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(12) < torch.tensor([[12], [5], [1], [0]])
    logits, latent = network.forward_with_latent(x, mask)
    assert torch.isfinite(logits).all()
    assert torch.equal(latent[3], torch.zeros(16, dtype=torch.float64))
    noisy = torch.where(mask[..., None], x, float("nan"))
    assert torch.allclose(network(noisy, mask), logits, atol=1e-12)
    for i, n in enumerate((12, 5, 1, 0)):
        alone = network(x[i : i + 1, :n], mask[i : i + 1, :n])
        assert torch.allclose(alone, logits[i : i + 1], atol=1e-12)


def test_longer_sequences_lose_their_end() -> None:
    network = seed_weights(build(seq_len=6, d_model=16, n_heads=2, n_layers=1, d_ff=32))
    x, mask = torch.randn(2, 9, 7), torch.ones(2, 9, dtype=torch.bool)
    logits, latent = network.forward_with_latent(x, mask)
    cut, cut_latent = network.forward_with_latent(x[:, :6], mask[:, :6])
    assert torch.allclose(logits, cut)
    assert torch.allclose(latent, cut_latent)


def test_default_lengths() -> None:
    assert build().config.seq_len == 257
    assert build(upstream_form=True).config.seq_len == 96


def test_inference_repeats() -> None:
    network = seed_weights(build(seq_len=8, d_model=16, n_heads=2, n_layers=1, d_ff=32))
    x, mask = torch.randn(2, 8, 7), torch.ones(2, 8, dtype=torch.bool)
    torch.manual_seed(0)
    first = network(x, mask)
    torch.manual_seed(1)
    assert torch.equal(first, network(x, mask))


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="seq_len -1"):
        build(seq_len=-1)
    with pytest.raises(UserError, match="multiple of n_heads"):
        build(d_model=10, n_heads=4)
    network = build(seq_len=8, d_model=16, n_heads=2, n_layers=1, d_ff=32)
    with pytest.raises(ValueError, match="events must be"):
        network(torch.zeros(1, 8, 7), torch.ones(1, 8))
