"""The ensemble over summary numbers: its answer is the mean of its members', by five classes and within."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import CURVE_SUMMARY, DIRECT_NAMES, SUMMARY_NAMES
from applecider_batch.models.card import Statistics
from applecider_batch.models.card_completion import complete_card
from applecider_batch.models.model_set import ModelSet, init_model_set
from applecider_batch.models.tabular_ensemble import TabularEnsemble, build
from applecider_batch.models.use import use_network
from applecider_batch.taxonomy import CLASSES

TO_FIVE = (0, 0, 1, 2, 3, 4, 1)
SMALL = {"members": 3, "hidden": 12, "d_latent": 8, "rounds": 4, "leaves": 2, "depth": 1,
         "n_classes": 7, "to_five": TO_FIVE}  # fmt: skip


def inputs(b: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    summary = torch.randn(b, len(SUMMARY_NAMES), generator=g)
    summary[1, : len(DIRECT_NAMES)] = torch.nan
    return torch.zeros(b, 1, 7), torch.ones(b, 1, dtype=torch.bool), summary


@pytest.fixture
def network() -> TabularEnsemble:
    torch.manual_seed(0)
    network = build(**SMALL).eval()
    trees = network.trees  # stumps on the first number
    trees.left[:, 0], trees.right[:, 0], trees.left[:, 1], trees.right[:, 1] = 1, 2, 1, 1
    trees.left[:, 2], trees.right[:, 2] = 2, 2
    trees.value[:, 1:] = torch.randn(trees.value.shape[0], 2)
    return network


@torch.inference_mode()
def test_the_answer_is_the_mean_of_perceptrons_and_trees(network: TabularEnsemble) -> None:
    x, mask, summary = inputs()
    members = torch.softmax(network.member_logits(x, mask, summary), dim=-1)
    assert (members[:, 0] - members[:, 1]).abs().max() > 1e-3  # they differ
    own = members.mean(1)
    index = torch.tensor(TO_FIVE)
    five = torch.stack([own[:, index == c].sum(1) for c in range(5)], dim=1)
    trees = torch.softmax(network.trees(summary), dim=1)
    assert (trees[0] - trees[3]).abs().max() > 1e-3
    both = (five * trees).sqrt()
    both = both / both.sum(1, keepdim=True)
    out, latent = network.forward_with_latent(x, mask, summary)
    torch.testing.assert_close(torch.softmax(out, dim=1), own * (both / five)[:, index])
    assert latent.shape == (5, 3 * 8)


@torch.inference_mode()
def test_the_energy_is_the_mean_of_the_perceptrons(network: TabularEnsemble) -> None:
    energy = -torch.logsumexp(network(*inputs()), dim=1)
    members = -torch.logsumexp(network.member_logits(*inputs()), dim=2)
    torch.testing.assert_close(energy, members.mean(1))
    assert energy.std() > 1e-2  # log probabilities alone would have the energy 0, and its rounding


@torch.inference_mode()
def test_neighbours_change_nothing(network: TabularEnsemble) -> None:
    whole = network(*inputs())
    for item in range(5):
        torch.testing.assert_close(network(*(v[[item]] for v in inputs()))[0], whole[item])


@torch.inference_mode()
def test_a_missing_number_is_not_the_mean(network: TabularEnsemble) -> None:
    x, mask, summary = inputs()
    known = torch.nan_to_num(summary)
    assert (network(x, mask, summary)[1] - network(x, mask, known)[1]).abs().max() > 1e-4
    torch.testing.assert_close(network(x, mask, summary)[0], network(x, mask, known)[0])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"members": 0}, "members and rounds must be at least 1"),
        ({"n_classes": 6}, "to_five names 7 classes"),
    ],
)
def test_what_is_refused(config: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(**SMALL | config)
    x, mask, summary = inputs()
    with pytest.raises(ValueError, match="summary numbers must be"):
        build(**SMALL)(x, mask, summary[:, 1:])


def test_a_card_says_the_statistics_of_the_summary_numbers(tmp_path: Path) -> None:
    init_model_set(tmp_path / "set", networks=("tabular_ensemble",))
    assert use_network(tmp_path / "set", "tabular_ensemble")["changed"]
    model_set = ModelSet.load(tmp_path / "set")
    assert CURVE_SUMMARY in model_set.inputs
    card = model_set.defaults["photometry"].card
    given = {"class_order": list(CLASSES), "normalisation": {"photometry": {"mean": [0] * 4, "std": [1] * 4}}}
    with pytest.raises(UserError, match=r"normalisation\.summary"):
        complete_card(given, "paper", "tabular_ensemble", name="a")
    n = len(SUMMARY_NAMES)
    summary = {"mean": [0.0] * n, "std": [1.0] * n}
    given["normalisation"]["summary"] = summary  # type: ignore[index]
    made, _ = complete_card(given, "paper", "tabular_ensemble", name="a")
    assert made.reads_summary
    assert made.feature_names == card.feature_names
    fewer = {"mean": [0.0] * (n - 1), "std": [1.0] * (n - 1)}
    with pytest.raises(UserError, match="other summary numbers"):
        replace(made, normalisation=made.normalisation | {"summary": Statistics(**fewer)})
