"""ConvNeXt on the rendered spectrum of Appendix A (arXiv:2507.16088).

Three 288 x 288 line plots (raw spectrum, LOESS 0.05, LOESS 0.1) are the channels of a picture, which
`applecider_batch.features.spectra_raster` draws, and an ImageNet ConvNeXt-Tiny classifies it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.features.spectra_raster import PICTURE_SIZE
from applecider_batch.models.convnext import ConvNeXt, ConvNeXtConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SpectraImageConfig:
    """Shape of the rendered-spectrum network (ConvNeXt-Tiny by default)."""

    image_size: int = PICTURE_SIZE
    n_classes: int = 9
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        # Cards are read from TOML, which knows lists only.
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "dims", tuple(self.dims))
        smallest = 4 * 2 ** (len(self.dims) - 1)
        if self.image_size < smallest:
            raise UserError(
                f"the picture must have at least {smallest} pixels a side; given {self.image_size}."
            )


class SpectraImageNet(nn.Module):
    """ConvNeXt backbone with timm's names under ``backbone.``, and a linear classifier ``fc``."""

    mean: Tensor
    std: Tensor

    def __init__(self, cfg: SpectraImageConfig) -> None:
        super().__init__()
        self.config = cfg
        self.backbone = ConvNeXt(ConvNeXtConfig(in_chans=3, depths=cfg.depths, dims=cfg.dims))
        self.dropout = nn.Dropout(cfg.dropout)
        self.fc = nn.Linear(cfg.dims[-1], cfg.n_classes)
        # ImageNet weights expect ImageNet's colour statistics; not saved, because they never change.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def embed(self, pictures: Tensor) -> Tensor:
        """Latent (B, 768) of ``pictures`` (B, 3, 288, 288), uint8 0..255 or float 0..1."""
        size = self.config.image_size
        if pictures.shape[1:] != (3, size, size):
            raise ValueError(f"pictures must be (B, 3, {size}, {size}); got {tuple(pictures.shape)}")
        if pictures.dtype == torch.uint8:
            pictures = pictures.to(self.fc.weight.dtype) / 255
        latent: Tensor = self.backbone((pictures - self.mean) / self.std)
        return latent

    def forward_with_latent(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and latent (B, 768) of ``pictures`` (B, 3, 288, 288)."""
        latent = self.embed(pictures)
        return self.fc(self.dropout(latent)), latent

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (B, C) of ``pictures`` (B, 3, 288, 288), uint8 0..255 or float 0..1, white line on black."""
        return self.forward_with_latent(pictures)[0]


def build(**cfg: object) -> SpectraImageNet:
    """Build the network; keywords are the fields of `SpectraImageConfig`."""
    return SpectraImageNet(SpectraImageConfig(**cfg))  # type: ignore[arg-type]
