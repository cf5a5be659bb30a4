"""ConvNeXt with timm's parameter names, and the split head that AppleCiDEr puts on it.

ConvNeXt: Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545. The split head (a main head whose
output is multiplied by the tanh of an auxiliary head) is that of AstroMiNN: arXiv:2507.16088, section 4.2.

Our own file: timm needs torchvision, which has no CPU build. The sizes default to ConvNeXt-Tiny.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.errors import UserError

BACKBONE_EPS = 1e-6  # timm's ConvNeXt; the heads keep torch's 1e-5


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Sizes of a split-head ConvNeXt.

    Attributes
    ----------
    in_chans : int
        Channels of the image: 3 for science, template, difference; 4 with the radial distance.
    outdims : int
        Numbers that come out.
    depths, dims : tuple of int
        Blocks and channels of each stage (Tiny: 3, 3, 9, 3 and 96, 192, 384, 768).
    position_frequencies : int
        0: the auxiliary head sees the image features only (upstream). k > 0: also the sine embedding of
        ra and dec with k octaves, see :func:`position_embedding` (the paper).
    dropout : float
        In the main head, training only.
    """

    in_chans: int = 3
    outdims: int = 32
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    position_frequencies: int = 0
    dropout: float = 0.4

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.dims) or not self.depths:
            raise UserError(
                f"ConvNeXt needs one depth per width; given depths {self.depths} and dims {self.dims}."
            )


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """C -> 4C, GELU (erf), 4C -> C on the last axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, layer norm, MLP, layer scale, plus the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=BACKBONE_EPS)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_dw(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        h = self.gamma * self.mlp(self.norm(h))
        return x + h.permute(0, 3, 1, 2)


class ConvNeXtStage(nn.Module):
    """Halving of the map (not in the first stage) and the blocks."""

    def __init__(self, dim_in: int, dim: int, depth: int, *, halve: bool) -> None:
        super().__init__()
        # 2 x 2 with stride 2 and no padding: an odd last row or column is dropped, as timm does.
        self.downsample = (
            nn.Sequential(LayerNorm2d(dim_in, eps=BACKBONE_EPS), nn.Conv2d(dim_in, dim, 2, stride=2))
            if halve
            else nn.Identity()
        )
        self.blocks = nn.Sequential(*(ConvNeXtBlock(dim) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class PooledNorm(nn.Module):
    """Mean over the map, then layer norm: timm's head without a classifier."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=BACKBONE_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mean(dim=(2, 3)))


class ConvNeXt(nn.Module):
    """The backbone: (B, in_chans, H, W) to (B, dims[-1]) features; H, W of at least 32 for four stages."""

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        dims = config.dims
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_chans, dims[0], 4, stride=4), LayerNorm2d(dims[0], eps=BACKBONE_EPS)
        )
        self.stages = nn.Sequential(
            *(
                ConvNeXtStage(dims[max(i - 1, 0)], dims[i], depth, halve=i > 0)
                for i, depth in enumerate(config.depths)
            )
        )
        self.head = PooledNorm(dims[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


def position_embedding(ra_deg: Tensor, dec_deg: Tensor, n_frequencies: int) -> Tensor:
    """Sine embedding of a position on the sky.

    Whole octaves, so that it is continuous across ra = 0 = 360.

    Parameters
    ----------
    ra_deg, dec_deg : Tensor, shape (B,)
        Degrees.
    n_frequencies : int
        k: angles are multiplied by 1, 2, 4 … 2^(k-1).

    Returns
    -------
    Tensor, shape (B, 4 k)
        sin and cos of the multiples of ra, then of dec.
    """
    octaves = 2.0 ** torch.arange(n_frequencies, dtype=ra_deg.dtype, device=ra_deg.device)
    angles = torch.deg2rad(torch.stack([ra_deg, dec_deg], dim=1))  # (B, 2)
    waves = angles[:, :, None] * octaves  # (B, 2, k)
    return torch.cat([waves.sin(), waves.cos()], dim=2).flatten(1)


class SplitHeadConvNeXt(nn.Module):
    """ConvNeXt with a main head, modulated channel by channel by an auxiliary one.

    State-dict names: ``backbone.*`` as timm's ``convnext_tiny``, ``head_main.{1,2,5,6}``, ``head_aux.{0,1}``.
    """

    def __init__(self, config: ConvNeXtConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ConvNeXtConfig()
        width = config.dims[-1]
        self.backbone = ConvNeXt(config)
        self.head_main = nn.Sequential(
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width // 2, width),
            nn.Linear(width, config.outdims),
        )
        seen = width + 4 * config.position_frequencies
        self.head_aux = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, config.outdims), nn.Tanh())

    def forward(self, images: Tensor, position: Tensor | None = None) -> Tensor:
        """Embed images.

        Parameters
        ----------
        images : Tensor, float, shape (B, in_chans, H, W)
        position : Tensor, shape (B, 2), optional
            ra, dec in degrees; needed exactly where ``position_frequencies`` > 0.

        Returns
        -------
        Tensor, shape (B, outdims)
        """
        return self.forward_with_latent(images, position)[0]

    def forward_with_latent(self, images: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The embedding (B, outdims) and the backbone's features (B, dims[-1])."""
        features = self.backbone(images)  # (B, 768)
        context = features
        if self.config.position_frequencies:
            if position is None:
                raise ValueError(
                    "this image tower is modulated by the sky position: give ra and dec in degrees"
                )
            sky = position_embedding(position[:, 0], position[:, 1], self.config.position_frequencies)
            context = torch.cat([features, sky], dim=1)
        return self.head_main(features) * self.head_aux(context), features

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's pooled, normalised features, (B, dims[-1])."""
        return self.backbone(images)


def build(**cfg: object) -> SplitHeadConvNeXt:
    """A split-head ConvNeXt from the fields of :class:`ConvNeXtConfig`."""
    fixed = {k: tuple(v) if isinstance(v, list) else v for k, v in cfg.items()}
    return SplitHeadConvNeXt(ConvNeXtConfig(**fixed))  # type: ignore[arg-type]
