"""Late fusion: the class-wise mean of the probabilities of the modalities that are there.

Paper section 6 (arXiv:2507.16088).  A missing modality is a mask, not an error: it takes no part in the mean.
Everything is in logarithms and float64, so that a probability of 1e-40 keeps its rank.
"""

from __future__ import annotations

import numpy as np

MODALITIES: tuple[str, ...] = ("photometry", "image", "spectra")
MODALITY_BITS: dict[str, int] = {"photometry": 1, "image": 2, "spectra": 4}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis; a row that is not all finite becomes NaN.

    Parameters
    ----------
    logits : ndarray, float, shape (..., C)

    Returns
    -------
    ndarray, float64, shape (..., C)
    """
    wide = np.asarray(logits, np.float64)
    finite = np.isfinite(wide).all(axis=-1, keepdims=True)
    safe = np.where(finite, wide, 0.0)
    shifted = safe - safe.max(axis=-1, keepdims=True)
    return np.where(finite, shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.nan)


def fuse(log_probs: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Logarithm of the class-wise mean probability over the modalities available.

    Parameters
    ----------
    log_probs : ndarray, float, shape (n, M, C)
        Log-probabilities of each modality, in the order of :data:`MODALITIES`; ignored where not available.
    available : ndarray, bool, shape (n, M)
        True = the modality is there.

    Returns
    -------
    ndarray, float64, shape (n, C)
        NaN where no modality is available.
    """
    available = np.asarray(available, bool)
    # -inf is a probability of 0: an absent modality adds nothing to the sum.
    terms = np.where(available[:, :, None], np.asarray(log_probs, np.float64), -np.inf)
    count = available.sum(axis=1)
    some = count > 0
    out = np.full((terms.shape[0], terms.shape[2]), np.nan)
    out[some] = np.logaddexp.reduce(terms[some], axis=1) - np.log(count[some])[:, None]
    return out


def mask_and_count(available: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``modality_mask`` (sum of bits) and ``n_modalities``, int16 (n,), from ``available`` bool (n, M)."""
    available = np.asarray(available, bool)
    bits = np.array([MODALITY_BITS[name] for name in MODALITIES[: available.shape[1]]], np.int16)
    return (available * bits).sum(axis=1).astype(np.int16), available.sum(axis=1).astype(np.int16)
