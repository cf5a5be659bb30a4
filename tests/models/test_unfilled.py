from __future__ import annotations

import pytest
import torch

from applecider_batch.models import build_network, list_networks
from applecider_batch.models.unfilled import unfilled


@pytest.mark.parametrize(("profile", "name"), [(profile, name) for profile, name, _ in list_networks()])
def test_with_stored_weights_it_is_the_same_network(profile: str, name: str) -> None:
    drawn = build_network(profile, name)
    before = torch.get_rng_state()
    with unfilled():
        network = build_network(profile, name)
    assert torch.equal(torch.get_rng_state(), before)
    network.load_state_dict(drawn.state_dict(), strict=True, assign=True)
    for ours, theirs in zip(
        [*network.named_parameters(), *network.named_buffers()],
        [*drawn.named_parameters(), *drawn.named_buffers()],
        strict=True,
    ):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])


def test_no_weight_is_drawn() -> None:
    torch.manual_seed(0)
    with unfilled():
        state = torch.get_rng_state()
        torch.nn.init.normal_(torch.zeros(3))
        torch.nn.init.trunc_normal_(tensor=torch.zeros(3))
        torch.nn.Linear(4, 4)
        assert torch.equal(torch.get_rng_state(), state)
