"""Joint network of upstream's archived notebook: three encoders, L2-normalised embeddings, one classifier.

Upstream: ``_archive/notebooks/brew_cider.py`` (skyportal/applecider, commit ec1f931). Kept to import its
checkpoints; the paper fuses by the mean of the probabilities, which is not a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.models.astrominn import AstroMiNN, upstream_config
from applecider_batch.models.photometry import PhotometryConfig, PhotometryTransformer
from applecider_batch.models.spectranet import SpectraNetConfig, TriPoolSpectraNet


@dataclass(frozen=True)
class FusionBrewConfig:
    """Sizes of the joint network.

    Attributes
    ----------
    fusion : {"avg", "concat"}
        Mean of the three embeddings, or all of them side by side.
    hidden_dim, n_classes : int
        Width of an embedding; logits.
    photometry, image : mapping
        Fields of `PhotometryConfig` and `AstroMiNNConfig` over upstream's.
    spectra : mapping
        Fields of `SpectraNetConfig`.
    """

    fusion: str = "avg"
    hidden_dim: int = 64
    n_classes: int = 5
    photometry: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, Any] = field(default_factory=dict)
    spectra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fusion not in ("avg", "concat"):
            raise UserError(f"Unknown fusion '{self.fusion}'; allowed: avg, concat.")


class FusionBrew(nn.Module):
    """Light curve, image with metadata, and spectrum to class logits; all three must be there."""

    def __init__(self, config: FusionBrewConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FusionBrewConfig()
        photometry = PhotometryConfig(**{"classifier": "head", "dropout": 0.3, **config.photometry})
        spectra = SpectraNetConfig(**{"form": "tripool", "n_classes": 5, **config.spectra})
        image = upstream_config(**{"in_chans": 4, **config.image})
        self.photometry_encoder = PhotometryTransformer(photometry)  # with upstream's unused head, without fc
        self.spectra_encoder = TriPoolSpectraNet(spectra)
        del self.spectra_encoder.fc  # upstream's encoder ends with its 256 numbers
        self.img_metadata_encoder = AstroMiNN(image)
        width = config.hidden_dim
        self.photometry_proj = nn.Linear(photometry.d_model, width)
        self.spectra_proj = nn.Linear(spectra.hidden[1], width)
        self.img_metadata_proj = nn.Linear(image.n_classes, width)
        self.fc = nn.Linear(width if config.fusion == "avg" else 3 * width, config.n_classes)

    def embeddings(
        self, events: Tensor, mask: Tensor, images: Tensor, metadata: Tensor, spectra: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (B, hidden_dim) of photometry, image with metadata, and spectrum.

        Parameters
        ----------
        events : Tensor, (B, L, 7)
        mask : Tensor, (B, L) bool, True = real event
        images : Tensor, (B, 4, S, S)
        metadata : Tensor, (B, 24)
        spectra : Tensor, (B, 1, 4096)
        """
        photometry = self.photometry_proj(self.photometry_encoder.embed(events, mask))
        image = self.img_metadata_proj(self.img_metadata_encoder(images, metadata))
        spectrum = self.spectra_proj(self.spectra_encoder.embed(spectra))
        return _unit(photometry), _unit(image), _unit(spectrum)

    def forward_with_latent(
        self, events: Tensor, mask: Tensor, images: Tensor, metadata: Tensor, spectra: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the fused embedding (B, hidden_dim), or (B, 3 hidden_dim) for ``concat``."""
        parts = self.embeddings(events, mask, images, metadata, spectra)
        latent = torch.stack(parts).mean(0) if self.config.fusion == "avg" else torch.cat(parts, dim=-1)
        return self.fc(latent), latent

    def embed(
        self, events: Tensor, mask: Tensor, images: Tensor, metadata: Tensor, spectra: Tensor
    ) -> Tensor:
        """The fused embedding; arguments as :meth:`embeddings`."""
        return self.forward_with_latent(events, mask, images, metadata, spectra)[1]

    def forward(
        self, events: Tensor, mask: Tensor, images: Tensor, metadata: Tensor, spectra: Tensor
    ) -> Tensor:
        """Logits (B, C); arguments as :meth:`embeddings`."""
        return self.forward_with_latent(events, mask, images, metadata, spectra)[0]


def _unit(x: Tensor) -> Tensor:
    """Divide by the L2 norm; without an epsilon, as upstream does."""
    return x / x.norm(dim=-1, keepdim=True)


def build(**cfg: object) -> FusionBrew:
    """Build the network; keywords are the fields of `FusionBrewConfig`."""
    return FusionBrew(FusionBrewConfig(**cfg))  # type: ignore[arg-type]
