"""Light-curve network that reads events and summary numbers: several members over one encoder.

The idea of reading a light curve as a sequence and as a table of numbers at once is that of ATAT
(Cabrera-Vives et al. 2024, arXiv:2405.03078). Here a small [CLS]-Transformer reads the merged events, its
latent is joined with the summary numbers of `features.curve_summary`, and M perceptrons judge the whole.
They share the encoder, see the same batches, start differently and learn each by its own loss; the answer
is the mean of their probabilities (deep ensembles: Lakshminarayanan et al. 2017, arXiv:1612.01474).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import DIRECT_NAMES, SUMMARY_NAMES
from applecider_batch.models.photometry import EventEncoder, PhotometryConfig


@dataclass(frozen=True)
class TabularTransformerConfig:
    """Hyper-parameters; ``n_layers`` 0 leaves the events out, ``d_latent`` is a member's share of the latent.

    ``input_dropout`` falls on the summary numbers, ``dropout`` on the encoder, ``hidden_dropout`` on the
    members.
    """

    d_model: int = 64
    n_heads: int = 4
    n_layers: int = 2
    d_ff: int = 128
    dropout: float = 0.1
    members: int = 4
    hidden: int = 192
    d_latent: int = 64
    hidden_dropout: float = 0.4
    input_dropout: float = 0.15
    n_classes: int = 5

    def __post_init__(self) -> None:
        if self.members < 1 or self.n_layers < 0:
            raise UserError(
                f"members must be at least 1 and n_layers at least 0; given {self.members}, {self.n_layers}"
            )

    @property
    def events(self) -> PhotometryConfig:
        """Of the encoder."""
        return PhotometryConfig(
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            d_ff=self.d_ff,
            dropout=self.dropout,
        )


class MemberLinear(nn.Module):
    """M linear layers side by side: (B, M, d_in) to (B, M, d_out)."""

    def __init__(self, members: int, d_in: int, d_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(d_in)
        self.weight = nn.Parameter(torch.empty(members, d_in, d_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, d_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, d_in) to (B, M, d_out)."""
        out: Tensor = torch.einsum("bmi,mio->bmo", x, self.weight) + self.bias
        return out


class TabularTransformer(nn.Module):
    """Members over events and summary numbers."""

    def __init__(self, cfg: TabularTransformerConfig) -> None:
        super().__init__()
        self.config = cfg
        width = len(SUMMARY_NAMES) + len(DIRECT_NAMES)
        if cfg.n_layers:
            self.events = EventEncoder(cfg.events)
            self.norm = nn.LayerNorm(cfg.d_model)
            width += cfg.d_model
        self.input_dropout = nn.Dropout(cfg.input_dropout)
        self.hidden_dropout = nn.Dropout(cfg.hidden_dropout)
        self.first = MemberLinear(cfg.members, width, cfg.hidden)
        self.second = MemberLinear(cfg.members, cfg.hidden, cfg.d_latent)
        self.fc = MemberLinear(cfg.members, cfg.d_latent, cfg.n_classes)

    def _members(self, x: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        if summary.ndim != 2 or summary.shape != (len(x), len(SUMMARY_NAMES)):
            raise ValueError(f"summary numbers must be (B, {len(SUMMARY_NAMES)}); got {tuple(summary.shape)}")
        missing = torch.isnan(summary)
        parts = [torch.where(missing, 0.0, summary), missing[:, : len(DIRECT_NAMES)].to(summary.dtype)]
        table = torch.cat(parts, dim=1).unsqueeze(1).expand(-1, self.config.members, -1)
        h = self.input_dropout(table)  # (B, M, F): every member misses other numbers
        if self.config.n_layers:
            latent = self.norm(self.events.encode(x, mask)[:, 0])  # (B, d_model)
            h = torch.cat([h, latent.unsqueeze(1).expand(-1, self.config.members, -1)], dim=2)
        h = self.hidden_dropout(nn.functional.gelu(self.first(h)))  # (B, M, hidden)
        return nn.functional.gelu(self.second(h))  # (B, M, d_latent)

    def member_logits(self, x: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        """Logits of every member (B, M, C), for training; arguments as `forward_with_latent`."""
        out: Tensor = self.fc(self.hidden_dropout(self._members(x, mask, summary)))
        return out

    def forward_with_latent(self, x: Tensor, mask: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        """Classify light curves.

        Parameters
        ----------
        x : Tensor, (B, L, 7) float
            Standardised events.
        mask : Tensor, (B, L) bool
            True = real event.
        summary : Tensor, (B, F) float
            Standardised summary numbers, NaN where one is not defined.

        Returns
        -------
        tuple of Tensor
            Log of the members' mean probability (B, C), and the members' last layers (B, M * d_latent).
        """
        h = self._members(x, mask, summary)
        log_p = torch.log_softmax(self.fc(h).float(), dim=-1)  # (B, M, C)
        return torch.logsumexp(log_p, dim=1) - math.log(self.config.members), h.flatten(1)

    def embed(self, x: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        """Latent (B, M * d_latent); arguments as `forward_with_latent`."""
        return self.forward_with_latent(x, mask, summary)[1]

    def forward(self, x: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        """Log probabilities (B, C); arguments as `forward_with_latent`."""
        return self.forward_with_latent(x, mask, summary)[0]


def build(**cfg: object) -> TabularTransformer:
    """Build the network; keywords are the fields of `TabularTransformerConfig`."""
    return TabularTransformer(TabularTransformerConfig(**cfg))  # type: ignore[arg-type]
