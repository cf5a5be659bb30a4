"""Networks of a few numbers; apart from the other fakes, so that shard workers need no torch."""

from __future__ import annotations

import torch
from torch import nn

from tests.engine.fakes import NAN_MARK, SIZE


class TinyPhotometry(nn.Module):
    """Mean over real events, one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(7, 8), nn.Linear(8, 5)

    def forward_with_latent(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = mask[..., None].float()
        latent = torch.tanh(self.hidden((x * weight).sum(1) / weight.sum(1)))  # (B, 8)
        return self.head(latent), latent


class TinyImage(nn.Module):
    """One hidden layer; answers NaN where the second metadata feature is the mark."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3 * SIZE * SIZE, 4), nn.Linear(4, 5)

    def forward_with_latent(
        self, images: torch.Tensor, metadata: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        latent = torch.tanh(self.hidden(images.flatten(1)))  # (B, 4)
        bad = (metadata[:, 1] == NAN_MARK)[:, None]
        return torch.where(bad, torch.full((1, 5), torch.nan), self.head(latent)), latent


def build(modality: str) -> nn.Module:
    """The network of a modality, always with the same weights; several threads build at the same time."""
    made = TinyPhotometry() if modality == "photometry" else TinyImage()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weights in made.parameters():
            weights.uniform_(-0.4, 0.4, generator=generator)
    return made.eval()
