"""SpectraNet: multi-scale convolutions over a spectrum, in the forms of the paper and of upstream.

``main`` and ``archive`` (skyportal/applecider at ec1f931) are one architecture under two sets of names, with
a classifier or a redshift regressor; ``tripool`` is the form of the archived fusion notebook; ``paper`` is
what section 5.1 of arXiv:2507.16088 describes, which none of upstream's files is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.errors import UserError

KERNELS = ((3, 61, 1021), (3, 31, 251), (3, 15, 61), (3, 11, 31), (3, 7, 13))
POOL = 4
_WIDTHS = {
    "main": (64, 128, 256, 512, 1024),
    "archive": (64, 128, 256, 512, 1024),
    "tripool": (16, 32, 64, 128, 256),
    "paper": (32, 64, 128, 256, 512),
}


@dataclass(frozen=True)
class SpectraNetConfig:
    """Shape of a SpectraNet.

    ``widths`` are the channels of each of a stage's three convolutions (empty: the form's own). ``n_points``
    is used by the forms that flatten (``tripool``, ``paper``); the other two take any length from 256 on.
    ``redshift`` puts a regressor in the classifier's place (``main``: as it comes, ``archive``: softplus).
    """

    form: Literal["paper", "main", "archive", "tripool"] = "paper"
    n_classes: int = 9
    redshift: bool = False
    widths: tuple[int, ...] = ()
    kernels: tuple[tuple[int, ...], ...] = KERNELS
    n_points: int = 4096
    hidden: tuple[int, int] = (2048, 256)
    gate_reduction: int = 8
    dropout: tuple[float, float] = field(default=(0.5, 0.3))

    def __post_init__(self) -> None:
        if self.form not in _WIDTHS:
            raise UserError(f"SpectraNet has the forms {', '.join(_WIDTHS)}; given {self.form!r}.")
        # Cards are read from TOML, which knows lists only.
        object.__setattr__(self, "widths", tuple(self.widths) or _WIDTHS[self.form])
        object.__setattr__(self, "kernels", tuple(tuple(k) for k in self.kernels))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "dropout", tuple(self.dropout))
        if len(self.widths) != len(self.kernels):
            raise UserError(f"{len(self.widths)} widths do not fit {len(self.kernels)} sets of kernels.")
        if any(k % 2 == 0 for ks in self.kernels for k in ks):
            raise UserError(f"kernels must be odd to keep the length; given {self.kernels}.")
        if self.redshift and self.form in ("paper", "tripool"):
            raise UserError(f"the form {self.form!r} has no redshift regressor; 'main' and 'archive' have.")
        if self.n_points < POOL ** (len(self.widths) - 1):
            raise UserError(f"{self.n_points} points are too few for {len(self.widths)} stages.")


def multi_scale(in_channels: int, width: int, kernels: tuple[int, ...]) -> nn.ModuleList:
    """Parallel convolutions that keep the length."""
    return nn.ModuleList(nn.Conv1d(in_channels, width, k, padding=k // 2) for k in kernels)


def layer_norm_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply ``norm`` over the channels at each position of ``x`` (B, C, L)."""
    out: Tensor = norm(x.transpose(1, 2)).transpose(1, 2)
    return out


def tri_pool(x: Tensor) -> Tensor:
    """Maximum, average and minimum over 4 positions: (B, C, L) to (B, 3C, L // 4)."""
    return torch.cat([F.max_pool1d(x, POOL), F.avg_pool1d(x, POOL), -F.max_pool1d(-x, POOL)], dim=1)


def check_spectra(x: Tensor, at_least: int, at_most: int | None = None) -> None:
    """Refuse anything but (B, 1, N) with N in range, by a ValueError."""
    if (
        x.ndim != 3
        or x.shape[1] != 1
        or x.shape[2] < at_least
        or (at_most is not None and x.shape[2] > at_most)
    ):
        allowed = f"{at_least}..{at_most}" if at_most is not None else f"at least {at_least}"
        raise ValueError(f"spectra must be (B, 1, N) with N {allowed}; got {tuple(x.shape)}")


# --- main and archive ---------------------------------------------------------------------------------------


class MaxPoolBlock(nn.Module):
    """Convolutions, LayerNorm, GELU and, but for the last, a 1x1 convolution and max pooling over 4."""

    def __init__(self, in_channels: int, width: int, kernels: tuple[int, ...], *, last: bool) -> None:
        super().__init__()
        channels = width * len(kernels)
        self.convs = multi_scale(in_channels, width, kernels)
        self.norm = nn.LayerNorm(channels)
        self.downsample = None if last else nn.Conv1d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) to (B, width, L // 4), the last to (B, 3 width, L)."""
        x = torch.cat([conv(x) for conv in self.convs], dim=1)  # (B, 3 width, L)
        x = F.gelu(layer_norm_channels(self.norm, x))
        return x if self.downsample is None else F.max_pool1d(self.downsample(x), POOL)


class MaxPoolSpectraNet(nn.Module):
    """Upstream's SpectraNet, main and archive (golden README, section 4: ``spectranet*``)."""

    def __init__(self, cfg: SpectraNetConfig) -> None:
        super().__init__()
        self.config = cfg
        channels = (1, *cfg.widths)
        stages = [
            nn.Sequential(MaxPoolBlock(channels[i], channels[i + 1], kernels, last=i == len(cfg.kernels) - 1))
            for i, kernels in enumerate(cfg.kernels)
        ]
        if cfg.form == "main":
            self.all_stages = nn.ModuleList(stages)
        else:
            for i, stage in enumerate(stages, start=1):
                self.add_module(f"stage{i}", stage)
        flat = cfg.widths[-1] * len(cfg.kernels[-1])
        head = nn.Sequential(
            nn.Linear(flat, flat // 8),
            nn.LayerNorm(flat // 8),
            nn.GELU(),
            nn.Dropout(cfg.dropout[0]),
            nn.Linear(flat // 8, 1 if cfg.redshift else cfg.n_classes),
        )
        self.add_module("regressor" if cfg.redshift else "classifier", head)

    def stages(self) -> list[nn.Module]:
        """Stages in order, whatever their names."""
        if self.config.form == "main":
            return list(self.all_stages)
        return [self.get_submodule(f"stage{i + 1}") for i in range(len(self.config.widths))]

    def forward_with_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C), or redshift (B,), and latent (B, 3072), of spectra ``x`` (B, 1, N), N >= 256."""
        check_spectra(x, POOL ** (len(self.config.widths) - 1))
        for stage in self.stages():
            x = stage(x)
        latent = x.amax(-1)  # (B, 3 * widths[-1])
        if not self.config.redshift:
            return self.get_submodule("classifier")(latent), latent
        z = self.get_submodule("regressor")(latent).squeeze(-1)
        return (F.softplus(z) if self.config.form == "archive" else z), latent

    def embed(self, x: Tensor) -> Tensor:
        """Latent (B, 3072): maximum over positions of the last stage, of spectra ``x`` (B, 1, N)."""
        return self.forward_with_latent(x)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C), or redshift (B,), of spectra ``x`` (B, 1, N), N >= 256 points."""
        return self.forward_with_latent(x)[0]


# --- tri-pool of the archived notebook ----------------------------------------------------------------------


class TriPoolBlock(nn.Module):
    """Convolutions, norm, plus a 1x1 convolution of the input, GELU and, but for the last, tri-pooling."""

    def __init__(self, in_channels: int, width: int, kernels: tuple[int, ...], *, last: bool) -> None:
        super().__init__()
        channels = width * len(kernels)
        self.last = last
        self.convs = multi_scale(in_channels, width, kernels)
        self.norm: nn.Module = nn.LayerNorm(channels) if last else nn.BatchNorm1d(channels)
        self.proj = nn.Conv1d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) to (B, 9 width, L // 4), the last to (B, 3 width, L)."""
        y = torch.cat([conv(x) for conv in self.convs], dim=1)  # (B, 3 width, L)
        y = layer_norm_channels(self.norm, y) if self.last else self.norm(y)
        y = F.gelu(y + self.proj(x))
        return y if self.last else tri_pool(y)


class TriPoolSpectraNet(nn.Module):
    """The notebook's SpectraNet (golden README, section 4: ``tripool``)."""

    def __init__(self, cfg: SpectraNetConfig) -> None:
        super().__init__()
        self.config = cfg
        n_stages = len(cfg.widths)
        in_channels = 1
        for i, (width, kernels) in enumerate(zip(cfg.widths, cfg.kernels, strict=True), start=1):
            last = i == n_stages
            self.add_module(f"stage{i}", nn.Sequential(TriPoolBlock(in_channels, width, kernels, last=last)))
            in_channels = width * len(kernels) * (1 if last else 3)
        self.positions = cfg.n_points // POOL ** (n_stages - 1)
        first, second = cfg.hidden
        self.class_model = nn.Sequential(
            nn.Linear(in_channels * self.positions, first),
            nn.LayerNorm(first),
            nn.GELU(),
            nn.Dropout(cfg.dropout[0]),
            nn.Linear(first, second),
            nn.LayerNorm(second),
            nn.GELU(),
            nn.Dropout(cfg.dropout[1]),
        )
        self.fc = nn.Linear(second, cfg.n_classes)

    def stages(self) -> list[nn.Module]:
        """Stages in order."""
        return [self.get_submodule(f"stage{i + 1}") for i in range(len(self.config.widths))]

    def embed(self, x: Tensor) -> Tensor:
        """Latent (B, 256) of spectra ``x`` (B, 1, N), N in 4096..4351 (``n_points`` 4096)."""
        step = POOL ** (len(self.config.widths) - 1)
        check_spectra(x, self.positions * step, self.positions * step + step - 1)
        for stage in self.stages():
            x = stage(x)
        latent: Tensor = self.class_model(x.flatten(1))
        return latent

    def forward_with_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and latent (B, 256) of spectra ``x`` (B, 1, N)."""
        latent = self.embed(x)
        return self.fc(latent), latent

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of spectra ``x`` (B, 1, N), N in 4096..4351 (``n_points`` 4096)."""
        return self.forward_with_latent(x)[0]


# --- the paper's --------------------------------------------------------------------------------------------


class ChannelGate(nn.Module):
    """Sigmoid gate per channel from the average over positions (squeeze and excitation, arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // reduction))
        self.excite = nn.Linear(self.squeeze.out_features, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) to the same shape."""
        gate = torch.sigmoid(self.excite(F.gelu(self.squeeze(x.mean(-1)))))  # (B, C)
        return x * gate.unsqueeze(-1)


class SpectraBlock(nn.Module):
    """SpectraBlock of section 5.1.

    Three parallel convolutions, concatenated; LayerNorm over the channels of each position, then BatchNorm,
    GELU; TriPool; channel gate; projection; plus a skip, the input averaged over the same 4 positions and
    projected. The last block keeps its 16 positions, so it has no pooling, and gives 3 x 512 = 1536 channels.
    """

    def __init__(
        self, in_channels: int, width: int, kernels: tuple[int, ...], reduction: int, *, last: bool
    ) -> None:
        super().__init__()
        channels = width * len(kernels)
        pooled, out = (channels, channels) if last else (3 * channels, width)
        self.last = last
        self.convs = multi_scale(in_channels, width, kernels)
        self.layer_norm = nn.LayerNorm(channels)
        self.batch_norm = nn.BatchNorm1d(channels)
        self.gate = ChannelGate(pooled, reduction)
        self.proj = nn.Conv1d(pooled, out, 1)
        self.skip = nn.Conv1d(in_channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) to (B, width, L // 4), the last to (B, 3 width, L)."""
        y = torch.cat([conv(x) for conv in self.convs], dim=1)  # (B, 3 width, L)
        y = F.gelu(self.batch_norm(layer_norm_channels(self.layer_norm, y)))
        if not self.last:
            x, y = F.avg_pool1d(x, POOL), tri_pool(y)  # (B, C, L/4), (B, 9 width, L/4)
        out: Tensor = self.proj(self.gate(y)) + self.skip(x)
        return out


class PaperSpectraNet(nn.Module):
    """SpectraNet of the paper: (1, 4096), (32, 1024), (64, 256), (128, 64), (256, 16), (1536, 16), head."""

    def __init__(self, cfg: SpectraNetConfig) -> None:
        super().__init__()
        self.config = cfg
        channels = (1, *cfg.widths)
        n_stages = len(cfg.widths)
        self.blocks = nn.ModuleList(
            SpectraBlock(channels[i], channels[i + 1], kernels, cfg.gate_reduction, last=i == n_stages - 1)
            for i, kernels in enumerate(cfg.kernels)
        )
        positions = cfg.n_points // POOL ** (n_stages - 1)
        flat = cfg.widths[-1] * len(cfg.kernels[-1]) * positions
        layers: list[nn.Module] = []
        for n_in, n_out, dropout in zip((flat, cfg.hidden[0]), cfg.hidden, cfg.dropout, strict=True):
            layers += [
                nn.Linear(n_in, n_out),
                nn.LayerNorm(n_out),
                nn.BatchNorm1d(n_out),
                nn.GELU(),
                nn.Dropout(dropout),
            ]
        self.head = nn.Sequential(*layers)
        self.fc = nn.Linear(cfg.hidden[1], cfg.n_classes)

    def stages(self) -> list[nn.Module]:
        """Blocks in order."""
        return list(self.blocks)

    def embed(self, x: Tensor) -> Tensor:
        """Latent (B, 256) of spectra ``x`` (B, 1, n_points)."""
        check_spectra(x, self.config.n_points, self.config.n_points)
        for block in self.blocks:
            x = block(x)
        latent: Tensor = self.head(x.flatten(1))
        return latent

    def forward_with_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and latent (B, 256) of spectra ``x`` (B, 1, n_points)."""
        latent = self.embed(x)
        return self.fc(latent), latent

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of spectra ``x`` (B, 1, n_points), z-scored, 0 where not covered."""
        return self.forward_with_latent(x)[0]


def build_paper(**cfg: object) -> PaperSpectraNet:
    """Build the paper's form; keywords are the fields of `SpectraNetConfig`."""
    return PaperSpectraNet(SpectraNetConfig(form="paper", **cfg))  # type: ignore[arg-type]


def build(**cfg: object) -> MaxPoolSpectraNet:
    """Build the form of upstream's main; keywords are the fields of `SpectraNetConfig`."""
    return MaxPoolSpectraNet(SpectraNetConfig(form="main", **cfg))  # type: ignore[arg-type]


def build_archive(**cfg: object) -> MaxPoolSpectraNet:
    """Build the same under the names of upstream's archive; keywords are the fields of `SpectraNetConfig`."""
    return MaxPoolSpectraNet(SpectraNetConfig(form="archive", **cfg))  # type: ignore[arg-type]


def build_tripool(**cfg: object) -> TriPoolSpectraNet:
    """Build the archived notebook's form; keywords are the fields of `SpectraNetConfig`."""
    return TriPoolSpectraNet(SpectraNetConfig(form="tripool", **cfg))  # type: ignore[arg-type]
