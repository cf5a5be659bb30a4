"""Focal losses against the golden scalars and plain definitions; the pre-training loss is a sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from applecider_batch.errors import UserError
from applecider_batch.training.losses import (
    class_balanced_weights,
    expert_focal_loss,
    focal_loss,
    inverse_sqrt_weights,
    masked_event_loss,
)
from tests.models.golden import RTOL_F64, assert_f32, assert_f64, excess


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> dict[str, np.ndarray]:
    with np.load(shared_golden / "focal.npz") as data:
        return dict(data)


MAIN: dict[str, dict[str, Any]] = {
    "main_g2": {},
    "main_g0": {"gamma": 0.0},
    "main_g25": {"gamma": 2.5},
    "main_g2_alpha": {"alpha": True},
    "main_g2_sum": {"reduction": "sum"},
    "main_g2_eps01": {"label_smoothing": 0.1},
    "main_g2_alpha_eps01": {"alpha": True, "label_smoothing": 0.1},
}
ONLY_F32: dict[str, dict[str, Any]] = {
    "main_per_sample_g2": {"reduction": "none"},
    "main_per_sample_g2_alpha": {"alpha": True, "reduction": "none"},
    "archive_g2": {},
    "archive_g25_alpha": {"gamma": 2.5, "alpha": True},
    "archive_g2_alpha_none": {"alpha": True, "reduction": "none"},
    "archive_g2_alpha_onehot": {"alpha": True, "one_hot": True},
    "spectra_g2": {},
    "spectra_g2_alpha_none": {"alpha": True, "reduction": "none"},
    "astrominn_ce_onehot": {"gamma": 0.0, "one_hot": True},
}


def loss(golden: dict[str, np.ndarray], options: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    options = dict(options)
    logits, target = torch.from_numpy(golden["logits"]).to(dtype), torch.from_numpy(golden["target"])
    if options.pop("one_hot", False):
        target = F.one_hot(target, 5).to(dtype)
    if options.pop("alpha", False):
        options["alpha"] = torch.from_numpy(golden["alpha"]).to(dtype)
    return focal_loss(logits, target, **options)


@pytest.mark.parametrize("name", MAIN)
def test_main_golden(golden: dict[str, np.ndarray], name: str) -> None:
    assert_f32(loss(golden, MAIN[name], torch.float32), golden[name])
    assert_f64(loss(golden, MAIN[name], torch.float64), golden[f"{name}_f64"])


@pytest.mark.parametrize("name", ONLY_F32)
def test_other_forms_golden(golden: dict[str, np.ndarray], name: str) -> None:
    assert_f32(loss(golden, ONLY_F32[name], torch.float32), golden[name])


def test_expert_loss_golden(golden: dict[str, np.ndarray]) -> None:
    logits, target, alpha, experts = (
        torch.from_numpy(golden[k]) for k in ("logits", "target", "alpha", "expert_weights")
    )
    assert_f32(expert_focal_loss(logits, target, experts), golden["archive_expert_g2"])
    assert_f32(expert_focal_loss(logits, target, experts, alpha=alpha), golden["archive_expert_g2_alpha"])


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("main_g2", {"gamma": 2.5}),
        ("main_g2_alpha", {}),
        ("main_g2_eps01", {"label_smoothing": 0.08}),
        ("main_g2_sum", {}),
    ],
)
def test_mistake_is_caught(golden: dict[str, np.ndarray], name: str, mistake: dict[str, Any]) -> None:
    assert excess(loss(golden, mistake, torch.float64), golden[f"{name}_f64"], RTOL_F64) > 100


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_finite_at_certainty(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0]), gamma=gamma).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(UserError, match="'mean', 'sum', 'none'"):
        focal_loss(torch.zeros(1, 2), torch.tensor([0]), reduction="avg")


def test_pretraining_loss_is_the_weighted_sum_over_hidden_events() -> None:
    gen = torch.Generator().manual_seed(0)
    flux, band, dt = (torch.randn(2, 4, n, generator=gen) for n in (1, 3, 1))
    flux_true, dt_true = torch.randn(2, 4, generator=gen), torch.randn(2, 4, generator=gen)
    band_true = torch.randint(0, 3, (2, 4), generator=gen)
    hidden = torch.tensor([[True, False, True, False], [False, False, False, True]])
    total, parts = masked_event_loss((flux, band, dt), (flux_true, band_true, dt_true), hidden)
    where = [(0, 0), (0, 2), (1, 3)]
    expected = (
        sum(float(flux[i, j, 0] - flux_true[i, j]) ** 2 for i, j in where) / 3,
        sum(-float(band[i, j].log_softmax(0)[band_true[i, j]]) for i, j in where) / 3,
        sum(float(dt[i, j, 0] - dt_true[i, j]) ** 2 for i, j in where) / 3,
    )
    assert [p.item() for p in parts] == pytest.approx(expected, rel=1e-5)
    assert total.item() == pytest.approx(5 * expected[0] + 3 * expected[1] + 5 * expected[2], rel=1e-5)


def test_pretraining_loss_without_hidden_events_is_zero() -> None:
    flux = torch.randn(1, 2, 1, requires_grad=True)
    zeros = torch.zeros(1, 2)
    total, _ = masked_event_loss(
        (flux, torch.randn(1, 2, 3), torch.randn(1, 2, 1)),
        (zeros, zeros.long(), zeros),
        torch.zeros(1, 2, dtype=torch.bool),
    )
    total.backward()
    assert total.item() == 0


def test_class_weights() -> None:
    counts = torch.tensor([100, 25, 0, 4])
    w = inverse_sqrt_weights(counts)
    assert torch.allclose(w / w[0], torch.tensor([1.0, 2.0, 0.0, 5.0]))
    assert w.mean().item() == pytest.approx(1)
    b = class_balanced_weights(counts)
    effective = [(1 - 0.9999**n) / (1 - 0.9999) for n in (100, 25, 4)]
    assert (b[0] / b[3]).item() == pytest.approx(effective[2] / effective[0], rel=1e-5)
    assert b[2] == 0
