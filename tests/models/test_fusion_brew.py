"""The archived notebook's joint network: golden vectors, batches, caught mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from applecider_batch.errors import UserError
from applecider_batch.models import fusion_brew
from applecider_batch.models.fusion_brew import FusionBrew, build
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


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> dict[str, np.ndarray]:
    with np.load(shared_golden / "fusion_brew.npz") as data:
        return dict(data)


def inputs(golden: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Events, mask (True = real), images, metadata, spectra."""
    images = np.random.default_rng(SEED + 72).standard_normal((4, 4, 49, 49)).astype(np.float32)
    return (
        torch.from_numpy(golden["photometry"]).to(dtype),
        torch.from_numpy(~golden["pad_mask"]),
        torch.from_numpy(images).to(dtype),
        torch.from_numpy(golden["metadata"]).to(dtype),
        torch.from_numpy(golden["spectra"]).to(dtype),
    )


@pytest.fixture(scope="module", params=["avg", "concat"])
def network(request: pytest.FixtureRequest) -> FusionBrew:
    return seed_weights(build(fusion=request.param))


def test_golden(shared_golden: Path, golden: dict[str, np.ndarray], network: FusionBrew) -> None:
    form = network.config.fusion
    check_state(network, load_spec(shared_golden, f"fusion_brew_{form}"))
    for dtype, suffix, check in ((torch.float32, "", assert_f32), (torch.float64, "_f64", assert_f64)):
        network.to(dtype)
        parts = inputs(golden, dtype)
        check(network(*parts), golden[f"{form}_logits{suffix}"])
        names = ("emb_photometry", "emb_image_metadata", "emb_spectra")
        for name, vector in zip(names, network.embeddings(*parts), strict=True):
            check(vector, golden[name + suffix])
    network.float()


def test_batch_of_one_is_batch_of_four(golden: dict[str, np.ndarray], network: FusionBrew) -> None:
    parts = inputs(golden)
    together = network(*parts)
    for i in (0, 3):
        alone = network(*(p[i : i + 1] for p in parts))
        assert excess(alone, together[i : i + 1].numpy(), 2e-5) <= 1


Mistake = Callable[[FusionBrew, pytest.MonkeyPatch], None]


def _not_normalised(_network: FusionBrew, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fusion_brew, "_unit", lambda x: x)


def _epsilon(_network: FusionBrew, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fusion_brew, "_unit", lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-6))


def _other_order(network: FusionBrew, patch: pytest.MonkeyPatch) -> None:
    plain = network.embeddings
    patch.setattr(network, "embeddings", lambda *parts: (plain(*parts)[0], *plain(*parts)[:0:-1]))


def _no_mask(network: FusionBrew, patch: pytest.MonkeyPatch) -> None:
    plain = network.photometry_encoder.embed
    patch.setattr(network.photometry_encoder, "embed", lambda x, mask: plain(x, torch.ones_like(mask)))


MISTAKES: dict[str, Mistake] = {
    "embeddings not normalised": _not_normalised,
    "an epsilon in the norm": _epsilon,
    "no padding mask": _no_mask,
    "image and spectra exchanged": _other_order,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_caught(
    golden: dict[str, np.ndarray], network: FusionBrew, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = network.config.fusion
    network.double()
    parts = tuple(p[:1] for p in inputs(golden, torch.float64))
    MISTAKES[name](network, monkeypatch)
    caught = excess(network(*parts), golden[f"{form}_logits_f64"][:1], RTOL_F64) > 1
    network.float()
    # The mean of three does not know their order; only `concat` can see that mistake.
    assert caught == (form == "concat" or name != "image and spectra exchanged")


def test_unknown_fusion_is_refused() -> None:
    with pytest.raises(UserError, match="allowed: avg, concat"):
        build(fusion="max")
