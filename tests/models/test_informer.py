"""Informer: golden vectors, a plain loop for ProbSparse attention, repeatable results, padding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.inference.predictor import Predictor
from applecider_batch.inference.shard import LocalPort, infer
from applecider_batch.models import build_network
from applecider_batch.models.importing import import_checkpoint
from applecider_batch.models.informer import InformerAttention, build, prob_sparse
from applecider_batch.models.model_set import ModelSet
from applecider_batch.taxonomy import CLASSES
from tests.models.golden import (
    RTOL_F64,
    assert_f32,
    assert_f64,
    check_state,
    excess,
    golden_state,
    load_spec,
    seed_weights,
)


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


@pytest.mark.parametrize("profile", ["paper", "upstream-archive"])
def test_in_a_run_neither_padding_nor_neighbours_change_an_answer(tmp_path: Path, profile: str) -> None:
    """Batches are cut by length and padded to it; upstream's form reads the padding of its 96 positions."""
    small = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 32}
    mean, std = [2.0, 1.0, 2.5, 0.1], [1.0, 0.5, 0.5, 0.2]
    card = {
        "class_order": list(CLASSES),
        "config": small,
        "normalisation": {"photometry": {"mean": mean, "std": std}},
    }
    torch.save(golden_state(build_network(profile, "informer", **small)), tmp_path / "informer.pt")
    import_checkpoint(tmp_path / "informer.pt", profile, tmp_path / "set", network="informer", card=card)
    predictor = Predictor(ModelSet.load(tmp_path / "set").defaults["photometry"])
    lengths = np.array([257, 1, 96, 8, 97, 9, 64, 3, 65, 200, 2, 16])
    values = np.random.default_rng(3).normal(size=(lengths.sum(), 7)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    def run(order: list[int], size: int) -> np.ndarray:
        parts = [values[offsets[i] : offsets[i + 1]] for i in order]
        ends = np.concatenate([[0], np.cumsum(lengths[order])])
        prepared = SimpleNamespace(photometry=SimpleNamespace(values=np.concatenate(parts), offsets=ends))
        ports = {"photometry": LocalPort(predictor)}
        outputs = infer(prepared, lambda _: None, ports, batch_size={"photometry": size})
        back = np.empty((len(order), 5), np.float32)
        back[order] = outputs.logits["photometry"]
        return back

    network = seed_weights(build_network(profile, "informer", **small))
    positions = network.config.seq_len
    by_hand = []
    for begin, end in pairwise(offsets.tolist()):
        x, mask = torch.zeros(1, positions, 7), torch.zeros(1, positions, dtype=torch.bool)
        for at, event in enumerate(values[begin:end][:positions]):
            x[0, at] = torch.from_numpy(event)
            x[0, at, :4] = (x[0, at, :4] - torch.tensor(mean)) / torch.tensor(std)
            mask[0, at] = True
        by_hand.append(network(x, mask)[0].numpy())
    everything = list(range(len(lengths)))
    for order, size in ((everything, 64), (everything, 1), (everything[::-1], 3), (everything[::-1], 64)):
        np.testing.assert_allclose(run(order, size), by_hand, rtol=5e-5, atol=5e-5)


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
