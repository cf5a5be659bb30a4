"""Losses: focal loss in the three forms that upstream trained with, and masked-event pre-training.

Focal loss: Lin et al. 2017, arXiv:1708.02002. Class-balanced weights: Cui et al. 2019, arXiv:1901.05555.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from applecider_batch.errors import UserError

MPT_WEIGHTS = (5.0, 3.0, 5.0)  # flux, band, dt: UPSTREAM, "Training"
EXPERT_WEIGHT = 0.1


def _reduce(per_sample: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise UserError(f"reduction {reduction!r} is not one of 'mean', 'sum', 'none'.")
    if reduction == "none":
        return per_sample
    return per_sample.mean() if reduction == "mean" else per_sample.sum()


def _complement(log_p: Tensor) -> Tensor:
    # 1 - p; kept above 0: the slope of u^gamma at 0 is infinite for gamma < 1 and would make NaN gradients.
    return (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)


def _indices(target: Tensor) -> Tensor:
    return target.argmax(-1) if target.ndim == 2 else target


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss -sum_c y_c alpha_c (1 - p_c)^gamma log p_c.

    Parameters
    ----------
    logits : Tensor, (B, C) float
        Class logits.
    target : Tensor, (B,) int64 or (B, C) one-hot
        Classes.
    gamma : float
        Focusing exponent; 0 is cross entropy.
    alpha : Tensor, (C,) float, optional
        Class weights.
    label_smoothing : float
        eps: y is 1 - eps for the target, eps / (C - 1) elsewhere; every class has its own focal factor.
    reduction : {"mean", "sum", "none"}
        The mean is over samples, not divided by the sum of ``alpha``.

    Returns
    -------
    Tensor
        Scalar, or (B,) for "none".

    References
    ----------
    arXiv:1708.02002
    """
    log_p = F.log_softmax(logits, dim=-1)
    n_classes = logits.shape[-1]
    hot = F.one_hot(_indices(target), n_classes).to(log_p.dtype)
    if label_smoothing:
        hot = hot * (1 - label_smoothing) + (1 - hot) * (label_smoothing / (n_classes - 1))
    per_class = hot * _complement(log_p).pow(gamma) * log_p
    if alpha is not None:
        per_class = per_class * alpha
    return _reduce(-per_class.sum(-1), reduction)


def expert_focal_loss(
    logits: Tensor,
    target: Tensor,
    expert_weights: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | None = None,
    expert_weight: float = EXPERT_WEIGHT,
) -> Tensor:
    """Focal loss plus the pull of every class to its expert (arXiv:2507.16088, eq. 3).

    As in upstream's archive the class weight stands inside the focal factor: p_t = exp(-alpha_t CE_t).

    Parameters
    ----------
    logits : Tensor, (B, C) float
        Class logits.
    target : Tensor, (B,) int64 or (B, C) one-hot
        Classes.
    expert_weights : Tensor, (B, K) float
        Router output.
    gamma, alpha
        As `focal_loss`.
    expert_weight : float
        lambda of MSE(expert weights, one-hot(class mod K)).

    Returns
    -------
    Tensor
        Scalar.
    """
    index = _indices(target)
    ce = F.cross_entropy(logits, index, weight=alpha, reduction="none")
    focal = (_complement(-ce).pow(gamma) * ce).mean()
    return focal + expert_weight * expert_term(expert_weights, index)


def expert_term(expert_weights: Tensor, index: Tensor) -> Tensor:
    """MSE between the router's weights (B, K) and one-hot(class mod K) of classes (B,); scalar."""
    n_experts = expert_weights.shape[-1]
    wanted = F.one_hot(index % n_experts, n_experts).to(expert_weights.dtype)
    return F.mse_loss(expert_weights, wanted)


def masked_event_loss(
    predictions: tuple[Tensor, Tensor, Tensor],
    targets: tuple[Tensor, Tensor, Tensor],
    hidden: Tensor,
    *,
    weights: tuple[float, float, float] = MPT_WEIGHTS,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Pre-training loss: flux MSE, band cross entropy and dt MSE over the hidden events, added.

    Upstream multiplies the three and reads the targets after masking; here the caller hands in the targets of
    the events as they were before masking.

    Parameters
    ----------
    predictions : tuple of Tensor
        Flux (B, L, 1), band logits (B, L, 3), dt (B, L, 1), as the pre-training heads give them.
    targets : tuple of Tensor
        Flux (B, L), band (B, L) int64, dt to the next event (B, L).
    hidden : Tensor, (B, L) bool
        True = event hidden from the network and scored; none at all gives 0.
    weights : tuple of float
        Of flux, band, dt.

    Returns
    -------
    tuple
        Total (scalar) and the three parts (scalars, unweighted).
    """
    flux, band, dt = (p[hidden] for p in predictions)
    flux_true, band_true, dt_true = (t[hidden] for t in targets)
    count = max(int(hidden.sum()), 1)
    parts = (
        (flux.squeeze(-1) - flux_true).square().sum() / count,
        F.cross_entropy(band, band_true, reduction="sum") / count,
        (dt.squeeze(-1) - dt_true).square().sum() / count,
    )
    return weights[0] * parts[0] + weights[1] * parts[1] + weights[2] * parts[2], parts


def inverse_sqrt_weights(counts: Tensor) -> Tensor:
    """Class weights 1 / sqrt(count) scaled to mean 1; classes without objects weigh 0. (C,) to (C,)."""
    w = torch.where(counts > 0, counts.clamp(min=1).to(torch.float64).rsqrt(), 0.0)
    return (w * (len(w) / w.sum().clamp(min=1e-300))).to(torch.float32)


def class_balanced_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Class weights (1 - beta) / (1 - beta^count) scaled to mean 1 (arXiv:1901.05555). (C,) to (C,)."""
    n = counts.to(torch.float64)
    w = torch.where(counts > 0, (1 - beta) / (1 - beta ** n.clamp(min=1)), 0.0)
    return (w * (len(w) / w.sum().clamp(min=1e-300))).to(torch.float32)
