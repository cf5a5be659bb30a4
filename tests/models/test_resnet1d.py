"""ResNet-1D: bins and continuum against plain loops, the mean of the members, one alone = in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from applecider_batch.errors import UserError
from applecider_batch.models.resnet1d import ContinuumRemoval, LogBins, ResNet1d, ResNet1dConfig, build

SMALL = {"members": 2, "widths": (8, 12), "n_bins": 128, "n_classes": 4}


def spectra(n: int = 5, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4096)).astype(np.float32)
    x[:, :300] = 0
    x[0, 3000:] = 0
    return torch.from_numpy(x[:, None])


def test_a_bin_is_the_mean_of_its_covered_points() -> None:
    grid, n_bins = (3850.0, 8500.0, 4096), 128
    x = spectra().squeeze(1)
    made = LogBins(grid, n_bins)(x).numpy()
    wavelength = np.linspace(*grid)
    edges = grid[0] * (grid[1] / grid[0]) ** (np.arange(n_bins + 1) / n_bins)
    for b in (0, 9, 10, 64, 127):
        # The last point is the last edge.
        inside = (wavelength >= edges[b]) & ((wavelength < edges[b + 1]) | (b == n_bins - 1))
        for row, values in zip(made, x.numpy()[:, inside], strict=True):
            seen = values[values != 0]
            expected = seen.mean() if len(seen) > inside.sum() / 2 else 0.0
            assert row[b] == pytest.approx(expected, abs=1e-6)


def test_the_continuum_is_taken_off_whatever_its_level_and_scale() -> None:
    cfg = ResNet1dConfig()
    grid = np.linspace(-1, 1, cfg.n_bins)
    lines = np.where(np.abs(grid - 0.2) < 0.02, -1.0, 0.0)
    flux = (lines + 0.7 * grid).astype(np.float32) + 5
    flux[:60] = 0
    out = ContinuumRemoval(cfg)(torch.from_numpy(np.stack([flux, np.where(flux != 0, 3 * flux - 40, 0)])))
    plain, other = out.numpy()
    np.testing.assert_allclose(plain[1], other[1], atol=2e-3)
    assert plain[1].argmin() == pytest.approx(int(np.abs(grid - 0.2).argmin()), abs=6)
    assert (plain[:, :60] == 0).all()
    assert (plain[2, 60:] == 1).all()


def test_probabilities_are_the_mean_of_the_members() -> None:
    network = build(**SMALL).eval()
    x = spectra()
    with torch.inference_mode():
        members = network.member_outputs(network.binned(x))[0]
        logits, latent = network.forward_with_latent(x)
    torch.testing.assert_close(logits.softmax(-1), members.softmax(-1).mean(0))
    torch.testing.assert_close(logits.logsumexp(-1), members.logsumexp(-1).mean(0))
    assert latent.shape == (5, 2 * 128)
    assert not torch.allclose(members[0], members[1])


def test_an_item_alone_gets_what_it_gets_in_a_batch() -> None:
    network: ResNet1d = build(**SMALL).eval()
    x = spectra()
    with torch.inference_mode():
        together = network(x)
        alone = torch.cat([network(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_weights_hold_nothing_that_is_not_learned() -> None:
    names = set(build(**SMALL).state_dict())
    assert not [name for name in names if name.startswith(("bins", "front"))]


@pytest.mark.parametrize(
    ("cfg", "match"),
    [({"kernel": 8}, "must be odd"), ({"members": 0}, "at least 1"), ({"n_bins": 100}, "cannot be halved")],
)
def test_shapes_that_cannot_be(cfg: dict[str, int], match: str) -> None:
    with pytest.raises(UserError, match=match):
        build(**cfg)
