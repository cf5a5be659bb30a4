"""Light-curve network that reads summary numbers: an ensemble of perceptrons and boosted trees.

Reading tabular features of a light curve beside, or in place of, its events is common where training sets are
small (ATAT: Cabrera-Vives et al. 2024, arXiv:2405.03078). M perceptrons judge the numbers of
`features.curve_summary`: they see the same batches, start differently, miss other numbers and learn each by
its own loss; their probabilities are averaged (deep ensembles: Lakshminarayanan et al. 2017,
arXiv:1612.01474). Boosted trees on the same numbers have their own opinion of the five classes; both
opinions are averaged in their logarithms. What the trees cannot say, how a class divides into the network's
sub-classes, the perceptrons do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import DIRECT_NAMES, SUMMARY_NAMES
from applecider_batch.models.boosted_trees import BoostedTrees
from applecider_batch.taxonomy import CLASSES


@dataclass(frozen=True)
class TabularEnsembleConfig:
    """Hyper-parameters.

    Attributes
    ----------
    members, hidden, d_latent : int
        Perceptrons, and the widths of their two layers; the latent is all second layers in a row.
    input_dropout, hidden_dropout : float
        On the summary numbers and inside the perceptrons.
    rounds, leaves, depth : int
        Trees per class, and their size.
    to_five : sequence of int, length n_classes
        Which of the five classes each output counts for; by default the outputs are the five.
    """

    members: int = 4
    hidden: int = 192
    d_latent: int = 64
    hidden_dropout: float = 0.4
    input_dropout: float = 0.15
    rounds: int = 120
    leaves: int = 15
    depth: int = 7
    n_classes: int = len(CLASSES)
    to_five: Sequence[int] = tuple(range(len(CLASSES)))

    def __post_init__(self) -> None:
        if self.members < 1 or self.rounds < 1:
            raise UserError(f"members and rounds must be at least 1; given {self.members}, {self.rounds}")
        if len(self.to_five) != self.n_classes:
            raise UserError(f"to_five names {len(self.to_five)} classes; the network has {self.n_classes}")


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


class TabularEnsemble(nn.Module):
    """Perceptrons and trees over summary numbers."""

    to_five: Tensor

    def __init__(self, cfg: TabularEnsembleConfig) -> None:
        super().__init__()
        self.config = cfg
        self.input_dropout = nn.Dropout(cfg.input_dropout)
        self.hidden_dropout = nn.Dropout(cfg.hidden_dropout)
        self.first = MemberLinear(cfg.members, len(SUMMARY_NAMES) + len(DIRECT_NAMES), cfg.hidden)
        self.second = MemberLinear(cfg.members, cfg.hidden, cfg.d_latent)
        self.fc = MemberLinear(cfg.members, cfg.d_latent, cfg.n_classes)
        self.trees = BoostedTrees(cfg.rounds, len(CLASSES), 2 * cfg.leaves - 1, cfg.depth)
        self.register_buffer("to_five", torch.tensor(cfg.to_five, dtype=torch.int64), persistent=False)

    def _members(self, summary: Tensor) -> Tensor:
        if summary.ndim != 2 or summary.shape[1] != len(SUMMARY_NAMES):
            raise ValueError(f"summary numbers must be (B, {len(SUMMARY_NAMES)}); got {tuple(summary.shape)}")
        missing = torch.isnan(summary)
        parts = [torch.where(missing, 0.0, summary), missing[:, : len(DIRECT_NAMES)].to(summary.dtype)]
        table = torch.cat(parts, dim=1).unsqueeze(1).expand(-1, self.config.members, -1)  # (B, M, F)
        h = self.hidden_dropout(nn.functional.gelu(self.first(self.input_dropout(table))))
        return nn.functional.gelu(self.second(h))  # (B, M, d_latent)

    def member_logits(self, x: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        """Logits of every perceptron (B, M, C), for training; arguments as `forward_with_latent`."""
        out: Tensor = self.fc(self.hidden_dropout(self._members(summary)))
        return out

    def forward_with_latent(self, x: Tensor, mask: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        """Classify light curves.

        Parameters
        ----------
        x, mask : Tensor, (B, L, 7) and (B, L)
            Events, as every light-curve network is given them; their summary is all that is read.
        summary : Tensor, (B, F) float
            Standardised summary numbers, NaN where one is not defined.

        Returns
        -------
        tuple of Tensor
            Logits (B, C), and the perceptrons' last layers (B, M * d_latent). The logits are log
            probabilities and the mean of the perceptrons' logsumexp, by which they say whether any class
            claims the light curve (the energy of `inference.anomaly`): log probabilities alone add up to 1.
        """
        h = self._members(summary)
        logits = self.fc(h).float()  # (B, M, C)
        log_p = torch.log_softmax(logits, dim=-1)
        own = torch.logsumexp(log_p, dim=1) - math.log(self.config.members)  # (B, C)
        own_five = self._five(own)
        trees = torch.log_softmax(self.trees(summary), dim=-1)
        five = torch.log_softmax((own_five + trees) / 2, dim=-1)
        claimed = torch.logsumexp(logits, dim=-1).mean(dim=1, keepdim=True)
        return own + (five - own_five)[:, self.to_five] + claimed, h.flatten(1)

    def _five(self, log_p: Tensor) -> Tensor:
        """Log probabilities of the five classes from those of the outputs."""
        five = [log_p[:, self.to_five == c].logsumexp(1) for c in range(len(CLASSES))]
        return torch.stack(five, dim=1)

    def embed(self, x: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        """Latent (B, M * d_latent); arguments as `forward_with_latent`."""
        return self.forward_with_latent(x, mask, summary)[1]

    def forward(self, x: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        """Logits (B, C); arguments as `forward_with_latent`."""
        return self.forward_with_latent(x, mask, summary)[0]


def build(**cfg: object) -> TabularEnsemble:
    """Build the network; keywords are the fields of `TabularEnsembleConfig`."""
    return TabularEnsemble(TabularEnsembleConfig(**cfg))  # type: ignore[arg-type]
