"""[CLS]-Transformer with Time2Vec over the merged events of a light curve.

The same encoder carries the classifier and the masked-event pre-training heads. Parameter names are those of
upstream (skyportal/applecider, commit ec1f931), so that its checkpoints load strictly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.errors import UserError

N_CHANNELS = 7  # log1p(dt), log1p(dt_prev), log10 flux, sigma log10 flux, g, r, i


@dataclass(frozen=True)
class PhotometryConfig:
    """Hyper-parameters of the [CLS]-Transformer.

    ``classifier`` names the linear layer that gives the logits: ``"fc"`` (ours), ``"head"`` (upstream's
    BaselineCLS and the checkpoints of the paper's time) or ``"fc+head"`` (upstream's HyraxBaselineCLS, which
    classifies with ``fc`` and carries a ``head`` that it never uses).
    """

    d_model: int = 128
    n_heads: int = 8
    n_layers: int = 4
    d_ff: int = 512
    n_classes: int = 5
    dropout: float = 0.4
    classifier: Literal["fc", "head", "fc+head"] = "fc"

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise UserError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.classifier not in ("fc", "head", "fc+head"):
            raise UserError(f"classifier {self.classifier!r} is not one of 'fc', 'head', 'fc+head'")


class Time2Vec(nn.Module):
    """Learned time embedding: one linear feature and ``dim - 1`` sinusoids (arXiv:1907.05321)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w0 = nn.Parameter(torch.randn(1))
        self.b0 = nn.Parameter(torch.zeros(1))
        self.w = nn.Parameter(torch.randn(dim - 1))
        self.b = nn.Parameter(torch.zeros(dim - 1))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times ``t`` (B, L), standardised log1p(dt), as (B, L, dim)."""
        t = t.unsqueeze(-1)  # (B, L, 1)
        return torch.cat([self.w0 * t + self.b0, torch.sin(self.w * t + self.b)], dim=-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of ``nn.MultiheadAttention``."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        """Attend ``h`` (B, T, D) to its real positions ``real`` (B, T) bool."""
        b, t, d = h.shape
        qkv = F.linear(h, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(b, t, 3, self.n_heads, d // self.n_heads).permute(
            2, 0, 3, 1, 4
        )  # each (B, H, T, D/H)
        a = F.scaled_dot_product_attention(
            q, k, v, attn_mask=real[:, None, None, :], dropout_p=self.dropout if self.training else 0.0
        )
        out: Tensor = self.out_proj(a.transpose(1, 2).reshape(b, t, d))
        return out


class EncoderLayer(nn.Module):
    """Post-norm encoder layer with a ReLU feed-forward (arXiv:1706.03762)."""

    def __init__(self, cfg: PhotometryConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(cfg.d_model, cfg.n_heads, cfg.dropout)
        self.linear1 = nn.Linear(cfg.d_model, cfg.d_ff)
        self.linear2 = nn.Linear(cfg.d_ff, cfg.d_model)
        self.norm1 = nn.LayerNorm(cfg.d_model)
        self.norm2 = nn.LayerNorm(cfg.d_model)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        """(B, T, D) and its real positions (B, T) to (B, T, D)."""
        h = self.norm1(h + self.dropout(self.self_attn(h, real)))
        ff = self.linear2(self.dropout(F.relu(self.linear1(h))))
        out: Tensor = self.norm2(h + self.dropout(ff))
        return out


class Encoder(nn.Module):
    """Stack of encoder layers without a norm at its end."""

    def __init__(self, cfg: PhotometryConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(cfg) for _ in range(cfg.n_layers))

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        """(B, T, D) and its real positions (B, T) to (B, T, D)."""
        for layer in self.layers:
            h = layer(h, real)
        return h


class EventEncoder(nn.Module):
    """Embedding of the events, [CLS] in front, encoder: what classifier and pre-training share."""

    def __init__(self, cfg: PhotometryConfig) -> None:
        super().__init__()
        self.config = cfg
        self.cls_tok = nn.Parameter(0.02 * torch.randn(1, 1, cfg.d_model))
        self.in_proj = nn.Linear(N_CHANNELS, cfg.d_model)
        self.time2vec = Time2Vec(cfg.d_model)
        self.encoder = Encoder(cfg)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode standardised events.

        Parameters
        ----------
        x : Tensor, (B, L, 7) float
            Standardised events; what stands at padded positions is never read. L may be 0.
        mask : Tensor, (B, L) bool
            True = real event.

        Returns
        -------
        Tensor, (B, 1 + L, d_model)
            Position 0 is [CLS]; rows of padded positions have no meaning.

        Raises
        ------
        ValueError
            Where the shapes or the mask's type are not these.
        """
        if x.ndim != 3 or x.shape[2] != N_CHANNELS or mask.shape != x.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"events must be (B, L, {N_CHANNELS}) with a bool mask (B, L); "
                f"got {tuple(x.shape)} and {tuple(mask.shape)} {mask.dtype}"
            )
        x = torch.where(
            mask.unsqueeze(-1), x, 0.0
        )  # a NaN in the padding would pass a masked softmax as 0 * NaN
        h = self.in_proj(x) + self.time2vec(x[..., 0])  # (B, L, D)
        h = torch.cat([self.cls_tok.expand(len(h), -1, -1), h], dim=1)  # (B, 1 + L, D)
        # The one place where the mask meets attention: there too True = takes part; [CLS] always does.
        z: Tensor = self.encoder(h, F.pad(mask, (1, 0), value=True))
        return z


class PhotometryTransformer(EventEncoder):
    """Classifier on the normalised [CLS] (section 4 of the golden README, ``photo_cls``)."""

    def __init__(self, cfg: PhotometryConfig) -> None:
        super().__init__(cfg)
        self.norm = nn.LayerNorm(cfg.d_model)
        if cfg.classifier != "fc":
            self.head = nn.Linear(cfg.d_model, cfg.n_classes)
        if cfg.classifier != "head":
            self.fc = nn.Linear(cfg.d_model, cfg.n_classes)

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        """Latent (B, d_model) of events ``x`` (B, L, 7) with ``mask`` (B, L), True = real."""
        latent: Tensor = self.norm(self.encode(x, mask)[:, 0])
        return latent

    def forward_with_latent(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and latent (B, d_model) of events ``x`` (B, L, 7), ``mask`` (B, L) True = real."""
        latent = self.embed(x, mask)
        classify = self.head if self.config.classifier == "head" else self.fc
        return classify(latent), latent

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) of standardised events ``x`` (B, L, 7) with ``mask`` (B, L) bool, True = real event.

        A sequence without events is classified from [CLS] alone; padding changes nothing beyond rounding.
        """
        return self.forward_with_latent(x, mask)[0]


class MaskedEventTransformer(EventEncoder):
    """Masked-event pre-training: flux, band and next-gap heads on the encoder output (``photo_mpt``)."""

    def __init__(self, cfg: PhotometryConfig) -> None:
        super().__init__(cfg)
        self.head_flux = nn.Linear(cfg.d_model, 1)
        self.head_band = nn.Linear(cfg.d_model, 3)
        self.head_dt = nn.Linear(cfg.d_model, 1)

    def heads(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Flux (B, L, 1), band logits (B, L, 3) and dt (B, L, 1) from encoder output (B, 1 + L, d_model)."""
        events = z[:, 1:]
        return self.head_flux(events), self.head_band(events), self.head_dt(events)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions of every event of ``x`` (B, L, 7), of which the caller has hidden some.

        Parameters
        ----------
        x : Tensor, (B, L, 7) float
            Standardised events.
        mask : Tensor, (B, L) bool
            True = real event (hidden or not).

        Returns
        -------
        tuple of Tensor
            Flux (B, L, 1), band logits (B, L, 3), dt to the next event (B, L, 1); padded rows mean nothing.
        """
        return self.heads(self.encode(x, mask))


def build(**cfg: object) -> PhotometryTransformer:
    """Build the classifier; keywords are the fields of `PhotometryConfig`."""
    return PhotometryTransformer(PhotometryConfig(**cfg))  # type: ignore[arg-type]


def build_pretraining(**cfg: object) -> MaskedEventTransformer:
    """Build the pre-training network; keywords are the fields of `PhotometryConfig`."""
    return MaskedEventTransformer(PhotometryConfig(**cfg))  # type: ignore[arg-type]
