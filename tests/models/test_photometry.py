"""[CLS]-Transformer: golden vectors, torch's own encoder as oracle, padding and batches, caught mistakes."""

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
from applecider_batch.models import photometry
from applecider_batch.models.photometry import (
    EncoderLayer,
    PhotometryTransformer,
    SelfAttention,
    Time2Vec,
    build,
    build_pretraining,
)
from applecider_batch.training.losses import masked_event_loss
from tests.models.golden import (
    RTOL_F32,
    RTOL_F64,
    assert_f32,
    assert_f64,
    check_state,
    excess,
    load_spec,
    seed_weights,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cls(shared_golden: Path) -> dict[str, np.ndarray]:
    with np.load(shared_golden / "photo_cls.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def mpt(shared_golden: Path) -> dict[str, np.ndarray]:
    with np.load(shared_golden / "photo_mpt.npz") as data:
        return dict(data)


def inputs(data: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Events and our mask (True = real) from upstream's arrays (True = padding)."""
    return torch.from_numpy(data["x"]).to(dtype), torch.from_numpy(~data["pad_mask"])


def small(**cfg: Any) -> PhotometryTransformer:
    torch.manual_seed(0)
    return seed_weights(build(d_model=32, n_heads=4, n_layers=2, d_ff=64, **cfg))


@pytest.mark.parametrize(
    ("model", "classifier", "logits"),
    [("photo_cls", "fc+head", "logits"), ("photo_baselinecls", "head", "head_logits")],
)
def test_classifier_golden(
    shared_golden: Path, cls: dict[str, np.ndarray], model: str, classifier: str, logits: str
) -> None:
    network = build(classifier=classifier)
    check_state(network, load_spec(shared_golden, model))
    seed_weights(network)
    got, latent = network.forward_with_latent(*inputs(cls))
    assert_f32(got, cls[logits])
    assert_f32(latent, cls["cls_embedding"])
    if logits == "logits":
        assert_f32(got.softmax(-1), cls["probs"])
        empty = network.forward_with_latent(torch.zeros(1, 0, 7), torch.zeros(1, 0, dtype=torch.bool))
        assert_f32(empty[0], cls["empty_logits"])
        assert_f32(empty[1], cls["empty_cls_embedding"])
    got, latent = network.double().forward_with_latent(*inputs(cls, torch.float64))
    assert_f64(got, cls[f"{logits}_f64"])
    assert_f64(latent, cls["cls_embedding_f64"])


def test_own_form_equals_upstreams_fc(cls: dict[str, np.ndarray]) -> None:
    ours, upstream = seed_weights(build()), seed_weights(build(classifier="fc+head"))
    x, mask = inputs(cls)
    assert torch.equal(ours(x[:4], mask[:4]), upstream(x[:4], mask[:4]))
    assert sum(p.numel() for p in upstream.parameters()) == 796_042
    assert "head.weight" not in ours.state_dict()


def test_steps_golden(cls: dict[str, np.ndarray]) -> None:
    network = seed_weights(build())
    x, _ = inputs(cls)
    assert_f32(network.time2vec(x[:4, :8, 0]), cls["time2vec_4x8"])
    assert_f32(network.in_proj(x[:4, :8]), cls["in_proj_4x8"])
    length = int(cls["lengths"][9])
    outputs: list[Tensor] = []
    for layer in network.encoder.layers:
        layer.register_forward_hook(lambda _m, _i, out: outputs.append(out[0]))
    network(x[9:10, :length], torch.ones(1, length, dtype=torch.bool))
    assert_f32(torch.stack(outputs), cls["layer_outputs_seq9"])


def test_pretraining_heads_golden(shared_golden: Path, mpt: dict[str, np.ndarray]) -> None:
    network = build_pretraining()
    check_state(network, load_spec(shared_golden, "photo_mpt"))
    seed_weights(network)
    real = ~mpt["pad_mask"]
    for dtype, suffix, check in ((torch.float32, "", assert_f32), (torch.float64, "_f64", assert_f64)):
        network.to(dtype)
        x, mask = inputs(mpt, dtype)
        z = network.encode(x, mask)
        if dtype == torch.float64:
            assert_f64(z[:, 0], mpt["z_f64_row0"])
        else:
            assert_f32(z[:, 0], mpt["z"][:, 0])
            assert_f32(z[:, 1:][mask], mpt["z"][:, 1:][real])
        for got, name in zip(network(x, mask), ("flux_hat", "band_hat", "dt_hat"), strict=True):
            check(got[mask], mpt[name + suffix][real])


def test_pretraining_loss_parts_golden(mpt: dict[str, np.ndarray]) -> None:
    """With upstream's own targets (read after masking: 0) the parts are upstream's; the total is a sum."""
    network = seed_weights(build_pretraining())
    x = torch.from_numpy(mpt["loss_x"]).clone()
    hidden, mask = torch.from_numpy(mpt["loss_masked"]), torch.from_numpy(~mpt["loss_pad_mask"])
    x[..., 2:][hidden] = 0
    dt_next = x[..., 1].roll(-1, dims=1)
    dt_next[:, -1] = 0
    targets = (x[..., 2], torch.zeros(hidden.shape, dtype=torch.int64), dt_next)
    total, parts = masked_event_loss(network(x, mask), targets, hidden)
    for part, name in zip(parts, ("loss_flux", "loss_band", "loss_dt"), strict=True):
        assert_f32(part, mpt[name])
    assert total.item() == pytest.approx(5 * parts[0].item() + 3 * parts[1].item() + 5 * parts[2].item())


def test_encoder_equals_torchs() -> None:
    """Oracle without golden files: nn.TransformerEncoder with the same state dict, by its mask convention."""
    network = small().double()
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.4, batch_first=True)
    oracle = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    oracle.load_state_dict(network.encoder.state_dict(), strict=True)
    h = torch.randn(3, 9, 32, dtype=torch.float64)
    real = torch.arange(9) < torch.tensor([[9], [4], [1]])
    with torch.enable_grad():  # keeps torch off its fused path, which writes zeros at padding
        expected = oracle(h, src_key_padding_mask=~real)
    assert torch.allclose(network.encoder(h, real)[real], expected[real], rtol=1e-12, atol=1e-12)


def test_padding_batch_size_and_order_change_nothing(cls: dict[str, np.ndarray]) -> None:
    network = seed_weights(build())
    x, mask = inputs(cls)
    together = network(x, mask)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(network(x[order], mask[order]), together[order], rtol=0, atol=2e-5)
    for i in (0, 5, 9, 23):
        n = int(cls["lengths"][i])
        alone = network(x[i : i + 1, :n], mask[i : i + 1, :n])
        assert excess(alone, together[i : i + 1].numpy(), RTOL_F32) <= 1


@pytest.mark.parametrize("filler", [0.0, 1000.0, float("nan"), float("inf")])
def test_padding_is_never_read(filler: float) -> None:
    network = small()
    x = torch.randn(3, 6, 7)
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    filled = torch.where(mask[..., None], x, filler)
    assert torch.equal(network(x, mask), network(filled, mask))


def test_empty_sequence_is_the_cls_row_alone() -> None:
    network = small()
    nothing = network(torch.zeros(1, 0, 7), torch.zeros(1, 0, dtype=torch.bool))
    padded = network(torch.randn(2, 5, 7), torch.zeros(2, 5, dtype=torch.bool))
    assert torch.isfinite(nothing).all()
    assert torch.allclose(padded, nothing.expand(2, -1), atol=1e-6)


def test_training_mode_drops_and_eval_repeats() -> None:
    network = small()
    x, mask = torch.randn(2, 5, 7), torch.ones(2, 5, dtype=torch.bool)
    assert torch.equal(network(x, mask), network(x, mask))
    network.train()
    assert not torch.equal(network(x, mask), network(x, mask))


def test_gradients_reach_every_parameter_and_stay_finite() -> None:
    network = small().requires_grad_(True)
    mask = torch.arange(5) < torch.tensor([[5], [0]])
    network(torch.randn(2, 5, 7), mask).sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize(
    ("x", "mask"),
    [
        (torch.zeros(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)),
        (torch.zeros(2, 4, 7), torch.ones(2, 5, dtype=torch.bool)),
        (torch.zeros(2, 4, 7), torch.ones(2, 4)),
    ],
)
def test_wrong_shapes_are_refused(x: Tensor, mask: Tensor) -> None:
    with pytest.raises(ValueError, match="events must be"):
        small()(x, mask)


def test_contradictory_config_is_refused() -> None:
    with pytest.raises(UserError, match="not a multiple"):
        build(d_model=30, n_heads=8)
    with pytest.raises(UserError, match="'fc', 'head', 'fc\\+head'"):
        build(classifier="both")


# --- mistakes that the golden vectors must catch (README, section 2) ----------------------------------------

Mutation = Callable[[PhotometryTransformer, pytest.MonkeyPatch], None]


def _eps(value: float) -> Mutation:
    def mutate(network: PhotometryTransformer, _patch: pytest.MonkeyPatch) -> None:
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = value

    return mutate


def _ffn_gelu(_network: PhotometryTransformer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(photometry.F, "relu", F.gelu)


def _pre_norm(_network: PhotometryTransformer, patch: pytest.MonkeyPatch) -> None:
    def forward(self: EncoderLayer, h: Tensor, real: Tensor) -> Tensor:
        h = h + self.self_attn(self.norm1(h), real)
        return h + self.linear2(F.relu(self.linear1(self.norm2(h))))

    patch.setattr(EncoderLayer, "forward", forward)


def _head_for_fc(network: PhotometryTransformer, _patch: pytest.MonkeyPatch) -> None:
    network.fc = network.head


def _no_mask(_network: PhotometryTransformer, patch: pytest.MonkeyPatch) -> None:
    attend = SelfAttention.forward
    patch.setattr(SelfAttention, "forward", lambda self, h, real: attend(self, h, torch.ones_like(real)))


def _inverted_mask(_network: PhotometryTransformer, patch: pytest.MonkeyPatch) -> None:
    attend = SelfAttention.forward
    patch.setattr(
        SelfAttention,
        "forward",
        lambda self, h, real: attend(self, h, F.pad(~real[:, 1:], (1, 0), value=True)),
    )


def _no_final_norm(network: PhotometryTransformer, _patch: pytest.MonkeyPatch) -> None:
    network.norm = nn.Identity()


def _linear_last(_network: PhotometryTransformer, patch: pytest.MonkeyPatch) -> None:
    embed = Time2Vec.forward
    patch.setattr(Time2Vec, "forward", lambda self, t: embed(self, t).roll(-1, dims=-1))


def _cos(_network: PhotometryTransformer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(photometry.torch, "sin", torch.cos)


def _four_heads(network: PhotometryTransformer, _patch: pytest.MonkeyPatch) -> None:
    for layer in network.encoder.layers:
        layer.self_attn.n_heads = 4


def _cls_zero(network: PhotometryTransformer, _patch: pytest.MonkeyPatch) -> None:
    network.cls_tok.zero_()


def _swap_q_k(network: PhotometryTransformer, _patch: pytest.MonkeyPatch) -> None:
    for layer in network.encoder.layers:
        for p in (layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias):
            q, k, v = p.clone().chunk(3)
            p.copy_(torch.cat([k, q, v]))


MUTATIONS: dict[str, Mutation] = {
    "LayerNorm eps 1e-6": _eps(1e-6),
    "LayerNorm eps 1e-12": _eps(1e-12),
    "FFN GELU for ReLU": _ffn_gelu,
    "pre-norm": _pre_norm,
    "head for fc": _head_for_fc,
    "no padding mask": _no_mask,
    "mask inverted": _inverted_mask,
    "no final norm": _no_final_norm,
    "Time2Vec linear term last": _linear_last,
    "Time2Vec cos for sin": _cos,
    "4 heads for 8": _four_heads,
    "CLS zero": _cls_zero,
    "q and k swapped": _swap_q_k,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mistake_is_caught(cls: dict[str, np.ndarray], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    some = np.argsort(cls["lengths"])[2:8]
    width = int(cls["lengths"][some].max()) + 3
    x, mask = inputs(cls, torch.float64)
    x, mask, expected = x[some, :width], mask[some, :width], cls["logits_f64"][some]
    network = seed_weights(build(classifier="fc+head")).double()
    assert excess(network(x, mask), expected, RTOL_F64) <= 1
    MUTATIONS[name](network, monkeypatch)
    assert excess(network(x, mask), expected, RTOL_F64) > 100


def test_unnormalised_time_is_caught(cls: dict[str, np.ndarray]) -> None:
    x, mask = inputs(cls, torch.float64)
    mean, std = (torch.from_numpy(cls[k][:1]).double() for k in ("mean", "std"))
    network = seed_weights(build(classifier="fc+head")).double()
    raw_time = x[:4, :, :1] * (std + 1e-8) + mean
    got = network(torch.cat([raw_time, x[:4, :, 1:]], dim=-1), mask[:4])
    assert excess(got, cls["logits_f64"][:4], RTOL_F64) > 100


def test_golden_events_standardise_to_golden_input(cls: dict[str, np.ndarray]) -> None:
    """The recorded raw events, standardised as the README says, are the recorded input."""
    ends = np.cumsum(cls["lengths"])
    for i in (0, 9, 23):
        n = min(int(cls["lengths"][i]), 257)
        raw = cls["raw"][ends[i] - cls["lengths"][i] : ends[i]][:n]
        four = np.column_stack([np.log1p(raw[:, 0]), np.log1p(raw[:, 1]), raw[:, 3], raw[:, 4]])
        x = np.column_stack([(four - cls["mean"]) / (cls["std"] + 1e-8), np.eye(3)[raw[:, 2].astype(int)]])
        assert np.allclose(x, cls["x"][i, :n], atol=1e-5)
