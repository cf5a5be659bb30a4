"""ResNet-1D: residual convolutions over a spectrum on a logarithmic grid, with its continuum taken off.

Beside the paper's SpectraNet and on the same input, for small training sets. What a human classifier does
first is done by fixed layers, so that it need not be learned: logarithmic rebinning, on which a velocity or
an error of the redshift is a shift; subtraction of the smoothed spectrum and division by the local spread
(as SNID does it, Blondin & Tonry 2007, doi:10.1086/520494, but without the zero of the flux scale, which
the z-scored input no longer has). Residual blocks: He et al. 2016, arXiv:1603.05027.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.errors import UserError
from applecider_batch.models.spectranet import check_spectra

_FLOOR = 1e-3  # of the local spread, in units of the spectrum's own


@dataclass(frozen=True)
class ResNet1dConfig:
    """Shape of a ResNet-1D.

    Attributes
    ----------
    n_classes : int
    members : int
        Networks of one shape whose probabilities are averaged.
    widths : tuple of int
        Channels of the stages; every stage halves the length.
    blocks : int
        Residual blocks a stage.
    kernel : int
        Length of the convolutions, odd.
    hidden : int
        Width of the latent vector of a member.
    squeeze : int
        Channels before the positions are flattened.
    dropout : float
    grid : tuple (float, float, int)
        Input wavelengths: first, last (Angstrom), number; evenly spaced.
    n_bins : int
        Logarithmic bins.
    continuum, spread : float
        Standard deviation in ln(wavelength) of the Gaussians that make the continuum and the local spread.
    """

    n_classes: int = 10
    members: int = 1
    widths: tuple[int, ...] = (32, 48, 64, 96)
    blocks: int = 1
    kernel: int = 9
    hidden: int = 128
    squeeze: int = 24
    dropout: float = 0.5
    grid: tuple[float, float, int] = (3850.0, 8500.0, 4096)
    n_bins: int = 512
    continuum: float = 0.06
    spread: float = 0.09

    @property
    def log_step(self) -> float:
        """Width of a bin in ln(wavelength)."""
        return math.log(self.grid[1] / self.grid[0]) / self.n_bins

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "grid", tuple(self.grid))
        if self.kernel % 2 == 0:
            raise UserError(f"The kernel must be odd to keep the length; given {self.kernel}.")
        if self.members < 1 or self.blocks < 1:
            raise UserError("members and blocks must be at least 1.")
        if self.n_bins % 2 ** (len(self.widths) + 1):
            raise UserError(f"{self.n_bins} bins cannot be halved {len(self.widths) + 1} times.")


class LogBins(nn.Module):
    """Mean flux in logarithmic bins; nothing is learned."""

    def __init__(self, grid: tuple[float, float, int], n_bins: int) -> None:
        super().__init__()
        low, high, n = grid
        edges = np.linspace(math.log(low), math.log(high), n_bins + 1)
        which = np.searchsorted(edges, np.log(np.linspace(low, high, n)), "right") - 1
        matrix = np.zeros((n, n_bins), np.float32)
        matrix[np.arange(n), which.clip(0, n_bins - 1)] = 1.0
        self.register_buffer("matrix", torch.from_numpy(matrix), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Spectra (B, N) to (B, n_bins); 0 where less than half of a bin is covered."""
        covered = (x != 0).to(x.dtype) @ self.matrix
        seen = covered > 0.5 * self.matrix.sum(0)
        return torch.where(seen, (x @ self.matrix) / covered.clamp(min=1), 0.0)


class ContinuumRemoval(nn.Module):
    """A binned spectrum beside itself without its continuum; nothing is learned."""

    def __init__(self, cfg: ResNet1dConfig) -> None:
        super().__init__()
        lag = cfg.log_step * (np.arange(cfg.n_bins)[:, None] - np.arange(cfg.n_bins))
        for name in ("continuum", "spread"):
            kernel = np.exp(-0.5 * (lag / getattr(cfg, name)) ** 2)
            self.register_buffer(name, torch.from_numpy(kernel.astype(np.float32)), persistent=False)

    def forward(self, flux: Tensor) -> Tensor:
        """(B, n_bins), 0 = not covered, to (B, 3, n_bins): the same, without continuum, covered."""
        covered = (flux != 0).to(flux.dtype)
        continuum = flux @ self.continuum / (covered @ self.continuum).clamp(min=1e-6)
        rest = (flux - continuum) * covered
        variance = rest.square() @ self.spread / (covered @ self.spread).clamp(min=1e-6)
        return torch.stack([flux, rest / variance.sqrt().clamp(min=_FLOOR), covered], 1)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm and GELU before each, added to the input."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.conv1 = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
        self.conv2 = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) to the same shape."""
        y = self.conv1(F.gelu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.gelu(self.norm2(y)))
        return out


class Member(nn.Module):
    """One network: stem, stages, the positions flattened, head."""

    def __init__(self, cfg: ResNet1dConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(3, cfg.widths[0], cfg.kernel, stride=2, padding=cfg.kernel // 2)]
        for before, width in zip((cfg.widths[0], *cfg.widths), cfg.widths, strict=False):
            layers += [nn.MaxPool1d(2), nn.Conv1d(before, width, 1)]
            layers += [ResidualBlock(width, cfg.kernel) for _ in range(cfg.blocks)]
        width, positions = cfg.widths[-1], cfg.n_bins // 2 ** (len(cfg.widths) + 1)
        self.stages = nn.Sequential(*layers)
        self.squeeze = nn.Sequential(nn.BatchNorm1d(width), nn.GELU(), nn.Conv1d(width, cfg.squeeze, 1))
        self.hidden = nn.Sequential(
            nn.Dropout(cfg.dropout),
            nn.Linear(cfg.squeeze * positions, cfg.hidden),
            nn.LayerNorm(cfg.hidden),
            nn.GELU(),
        )
        self.dropout = nn.Dropout(cfg.dropout)
        self.classifier = nn.Linear(cfg.hidden, cfg.n_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, n_bins) to logits (B, C) and latent (B, hidden)."""
        latent = self.hidden(self.squeeze(self.stages(x)).flatten(1))
        return self.classifier(self.dropout(latent)), latent


class ResNet1d(nn.Module):
    """The mean of its members' probabilities."""

    def __init__(self, cfg: ResNet1dConfig) -> None:
        super().__init__()
        self.config = cfg
        self.bins = LogBins(cfg.grid, cfg.n_bins)
        self.front = ContinuumRemoval(cfg)
        self.members = nn.ModuleList(Member(cfg) for _ in range(cfg.members))

    def binned(self, x: Tensor) -> Tensor:
        """Spectra (B, 1, N) in the network's bins (B, n_bins), 0 = not covered."""
        check_spectra(x, self.config.grid[2], self.config.grid[2])
        out: Tensor = self.bins(x.squeeze(1))
        return out

    def member_outputs(self, flux: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, B, C) and latents (M, B, hidden) of binned spectra (B, n_bins)."""
        made = self.front(flux)
        logits, latents = zip(*(member(made) for member in self.members), strict=True)
        return torch.stack(logits), torch.stack(latents)

    def from_bins(self, flux: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and latent (B, M x hidden) of binned spectra; see `forward_with_latent`."""
        logits, latents = self.member_outputs(flux)
        logits = logits.float()
        evidence = logits.logsumexp(-1).mean(0)  # (B,)
        log_mean = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))  # (B, C)
        return log_mean + evidence.unsqueeze(-1), latents.transpose(0, 1).flatten(1)

    def forward_with_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and latent (B, M x hidden) of spectra ``x`` (B, 1, N), z-scored, 0 = not covered.

        Their softmax is the mean of the members' probabilities, their logsumexp the mean evidence for the
        redshift: the log odds that lines are where a supernova has them.
        """
        return self.from_bins(self.binned(x))

    def embed(self, x: Tensor) -> Tensor:
        """Latent (B, M x hidden) of spectra ``x`` (B, 1, N)."""
        return self.forward_with_latent(x)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of spectra ``x`` (B, 1, N)."""
        return self.forward_with_latent(x)[0]


def build(**cfg: object) -> ResNet1d:
    """Build the network; keywords are the fields of `ResNet1dConfig`."""
    return ResNet1d(ResNet1dConfig(**cfg))  # type: ignore[arg-type]
