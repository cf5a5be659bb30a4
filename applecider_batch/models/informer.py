"""Informer, the paper's photometry baseline (Zhou et al. 2021, arXiv:2012.07436), deterministic at inference.

ProbSparse attention draws keys at random, so a prediction could not be repeated. Full attention, which it
approximates, is used unless a draw is handed in. Upstream never moves the head axis back before it flattens
the heads and never masks padding in the attention; weights trained that way need ``upstream_form=True``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.errors import UserError
from applecider_batch.models.photometry import N_CHANNELS
from applecider_batch.models.sine_positions import sine_positions

MAX_POSITIONS = 5000


@dataclass(frozen=True)
class InformerConfig:
    """Hyper-parameters; ``upstream_form`` keeps upstream's mix-up of heads and its unmasked padding."""

    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 4
    d_ff: int = 512
    n_classes: int = 5
    dropout: float = 0.2
    seq_len: int = 0  # 0: 257 events, in upstream's form 96
    upstream_form: bool = False

    def __post_init__(self) -> None:
        if self.seq_len == 0:
            object.__setattr__(self, "seq_len", 96 if self.upstream_form else 257)
        if self.d_model % self.n_heads or self.d_model % 2:
            raise UserError(f"d_model {self.d_model} must be even and a multiple of n_heads {self.n_heads}")
        if not 1 <= self.seq_len <= MAX_POSITIONS:
            raise UserError(f"seq_len {self.seq_len} is not in 1..{MAX_POSITIONS}")


class TokenEmbedding(nn.Module):
    """Circular convolution over three neighbouring events."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.tokenConv = nn.Conv1d(N_CHANNELS, d_model, 3, padding=1, padding_mode="circular", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, 7) to (B, L, D)."""
        out: Tensor = self.tokenConv(x.transpose(1, 2)).transpose(1, 2)
        return out


class PositionEmbedding(nn.Module):
    """Fixed sine/cosine positions, computed in float32 and kept in the state dict as ``pe`` (1, 5000, D)."""

    pe: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        pe = torch.from_numpy(sine_positions(MAX_POSITIONS, d_model))
        self.register_buffer("pe", pe.unsqueeze(0))

    def forward(self, length: int) -> Tensor:
        """First ``length`` positions, (1, length, D)."""
        return self.pe[:, :length]


class EventEmbedding(nn.Module):
    """Value plus position embedding."""

    def __init__(self, cfg: InformerConfig) -> None:
        super().__init__()
        self.value_embedding = TokenEmbedding(cfg.d_model)
        self.position_embedding = PositionEmbedding(cfg.d_model)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, 7) to (B, L, D)."""
        out: Tensor = self.dropout(self.value_embedding(x) + self.position_embedding(x.shape[1]))
        return out


def prob_sparse(q: Tensor, k: Tensor, v: Tensor, index_sample: Tensor) -> Tensor:
    """ProbSparse attention for a given draw of keys (arXiv:2012.07436, eqs. 4-6).

    Parameters
    ----------
    q, k, v : Tensor, (B, H, L, D/H)
        Queries, keys, values.
    index_sample : Tensor, (L, u) integer
        Keys drawn for every query; the u queries of largest sparsity measure are attended in full, the others
        get the mean of the values.

    Returns
    -------
    Tensor, (B, H, L, D/H)
    """
    length, u = index_sample.shape
    sampled = torch.einsum("bhld,bhlsd->bhls", q, k[:, :, index_sample])  # (B, H, L, u)
    measure = sampled.amax(-1) - sampled.sum(-1) / length  # (B, H, L)
    top = measure.topk(u, dim=-1).indices.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])  # (B, H, u, D/H)
    attended = F.scaled_dot_product_attention(q.gather(2, top), k, v)
    return v.mean(2, keepdim=True).expand_as(v).scatter(2, top, attended)


class InformerAttention(nn.Module):
    """Attention with separate query, key and value projections."""

    def __init__(self, cfg: InformerConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.upstream_form = cfg.upstream_form
        self.dropout = cfg.dropout
        self.query_projection = nn.Linear(cfg.d_model, cfg.d_model)
        self.key_projection = nn.Linear(cfg.d_model, cfg.d_model)
        self.value_projection = nn.Linear(cfg.d_model, cfg.d_model)
        self.out_projection = nn.Linear(cfg.d_model, cfg.d_model)

    def forward(self, h: Tensor, keys: Tensor | None, index_sample: Tensor | None) -> Tensor:
        """Attend ``h`` (B, L, D) to ``keys`` (B, L) bool (None: all), or to a draw of keys (L, u)."""
        b, length, d = h.shape
        split = (b, length, self.n_heads, d // self.n_heads)
        q = self.query_projection(h).view(split).transpose(1, 2)  # (B, H, L, D/H)
        k = self.key_projection(h).view(split).transpose(1, 2)
        v = self.value_projection(h).view(split).transpose(1, 2)
        if index_sample is None:
            a = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if keys is None else keys[:, None, None, :],
                dropout_p=self.dropout if self.training else 0.0,
            )
        else:
            a = prob_sparse(q, k, v, index_sample)
        if not self.upstream_form:
            a = a.transpose(
                1, 2
            )  # upstream leaves (B, H, L, D/H) as it lies, which mixes heads with positions
        out: Tensor = self.out_projection(a.reshape(b, length, d))
        return out


class InformerLayer(nn.Module):
    """Post-norm layer; the feed-forward is two convolutions of kernel 1."""

    def __init__(self, cfg: InformerConfig) -> None:
        super().__init__()
        self.attention = InformerAttention(cfg)
        self.conv1 = nn.Conv1d(cfg.d_model, cfg.d_ff, 1)
        self.conv2 = nn.Conv1d(cfg.d_ff, cfg.d_model, 1)
        self.norm1 = nn.LayerNorm(cfg.d_model)
        self.norm2 = nn.LayerNorm(cfg.d_model)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, h: Tensor, keys: Tensor | None, index_sample: Tensor | None) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        h = self.norm1(h + self.dropout(self.attention(h, keys, index_sample)))
        ff = self.dropout(F.gelu(self.conv1(h.transpose(1, 2))))
        out: Tensor = self.norm2(h + self.dropout(self.conv2(ff).transpose(1, 2)))
        return out


class InformerEncoder(nn.Module):
    """Layers and the final norm."""

    def __init__(self, cfg: InformerConfig) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(InformerLayer(cfg) for _ in range(cfg.n_layers))
        self.norm = nn.LayerNorm(cfg.d_model)

    def forward(self, h: Tensor, keys: Tensor | None, index_sample: Tensor | None) -> Tensor:
        """(B, L, D) to (B, L, D); ``index_sample`` is (layers, L, u) or None."""
        for i, layer in enumerate(self.attn_layers):
            h = layer(h, keys, None if index_sample is None else index_sample[i])
        out: Tensor = self.norm(h)
        return out


class Informer(nn.Module):
    """Informer encoder, flattened over a fixed number of positions into a linear classifier."""

    def __init__(self, cfg: InformerConfig) -> None:
        super().__init__()
        self.config = cfg
        self.enc_embedding = EventEmbedding(cfg)
        self.encoder = InformerEncoder(cfg)
        self.fc = nn.Linear(cfg.seq_len * cfg.d_model, cfg.n_classes)

    def encode(self, x: Tensor, mask: Tensor, index_sample: Tensor | None = None) -> Tensor:
        """Encoder output (B, seq_len, d_model), 0 at padded positions; arguments as `forward_with_latent`."""
        if x.ndim != 3 or x.shape[2] != N_CHANNELS or mask.shape != x.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"events must be (B, L, {N_CHANNELS}) with a bool mask (B, L); "
                f"got {tuple(x.shape)} and {tuple(mask.shape)} {mask.dtype}"
            )
        missing = self.config.seq_len - x.shape[1]  # negative: the end of the sequence is cut off
        x, mask = F.pad(x, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        keys = None
        if not self.config.upstream_form:
            x = torch.where(mask.unsqueeze(-1), x, 0.0)
            keys = mask | ~mask.any(1, keepdim=True)  # without any event all rows are zeroed below anyway
        z = self.encoder(self.enc_embedding(x), keys, index_sample)
        return torch.where(mask.unsqueeze(-1), z, 0.0)

    def forward_with_latent(
        self, x: Tensor, mask: Tensor, index_sample: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify events.

        Parameters
        ----------
        x : Tensor, (B, L, 7) float
            Standardised events, padded to or cut at ``seq_len``. ``upstream_form`` reads the padding too.
        mask : Tensor, (B, L) bool
            True = real event.
        index_sample : Tensor, (n_layers, seq_len, u) integer, optional
            A draw of keys for ProbSparse attention; without it attention is full and nothing is random.

        Returns
        -------
        tuple of Tensor
            Logits (B, C), and as latent the mean encoder output over the real events (B, d_model).
        """
        z = self.encode(x, mask, index_sample)
        n_events = mask[:, : self.config.seq_len].sum(1, keepdim=True).clamp(min=1)
        return self.fc(z.flatten(1)), z.sum(1) / n_events

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        """Latent (B, d_model): mean encoder output over the real events, 0 without any."""
        return self.forward_with_latent(x, mask)[1]

    def forward(self, x: Tensor, mask: Tensor, index_sample: Tensor | None = None) -> Tensor:
        """Logits (B, C); arguments as `forward_with_latent`."""
        return self.forward_with_latent(x, mask, index_sample)[0]


def build(**cfg: object) -> Informer:
    """Build the network; keywords are the fields of `InformerConfig`."""
    return Informer(InformerConfig(**cfg))  # type: ignore[arg-type]
