"""The network of events and summary numbers: its answer is its members' mean, whatever the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import DIRECT_NAMES, SUMMARY_NAMES
from applecider_batch.models.tabular_transformer import TabularTransformer, build

SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16, "members": 3, "hidden": 12, "d_latent": 8}


def inputs(b: int = 5, length: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(b, length, 7, generator=g)
    mask = torch.arange(length) < torch.tensor([[length], [1], [3], [2], [length]])[:b]
    summary = torch.randn(b, len(SUMMARY_NAMES), generator=g)
    summary[1, : len(DIRECT_NAMES)] = torch.nan
    return x, mask, summary


@pytest.fixture
def network() -> TabularTransformer:
    torch.manual_seed(0)
    return build(**SMALL).eval()


@torch.inference_mode()
def test_the_answer_is_the_members_mean_probability(network: TabularTransformer) -> None:
    members = torch.softmax(network.member_logits(*inputs()), dim=-1)
    assert (members[:, 0] - members[:, 1]).abs().max() > 1e-3  # they differ
    out, latent = network.forward_with_latent(*inputs())
    torch.testing.assert_close(out.exp(), members.mean(1))
    assert latent.shape == (5, 3 * 8)


@torch.inference_mode()
def test_padding_and_neighbours_change_nothing(network: TabularTransformer) -> None:
    x, mask, summary = inputs()
    whole = network(x, mask, summary)
    for item in range(len(x)):
        n = int(mask[item].sum())
        alone = network(x[[item], :n], mask[[item], :n], summary[[item]])
        torch.testing.assert_close(alone[0], whole[item], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_missing_number_is_not_the_mean(network: TabularTransformer) -> None:
    x, mask, summary = inputs()
    known = torch.nan_to_num(summary)
    assert (network(x, mask, summary)[1] - network(x, mask, known)[1]).abs().max() > 1e-4
    torch.testing.assert_close(network(x, mask, summary)[0], network(x, mask, known)[0])


@torch.inference_mode()
def test_without_layers_the_events_are_not_read() -> None:
    network = build(**SMALL | {"n_layers": 0}).eval()
    x, mask, summary = inputs()
    torch.testing.assert_close(network(x, mask, summary), network(x + 1, mask, summary))


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="members must be at least 1"):
        build(members=0)
    x, mask, summary = inputs()
    with pytest.raises(ValueError, match="summary numbers must be"):
        build(**SMALL)(x, mask, summary[:, 1:])
    assert np.isfinite(build(**SMALL)(x, mask, summary).detach().numpy()).all()
