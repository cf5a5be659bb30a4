"""What the networks say about rows: calibrated and fused, with what is there and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from applecider_batch.inference.calibration import FUSED, Calibration
from applecider_batch.inference.fusion import MODALITIES, fuse, log_softmax, mask_and_count


@dataclass(frozen=True)
class RowAnswers:
    """Answers by row; C classes, modalities in the order of `fusion.MODALITIES`.

    Attributes
    ----------
    available : ndarray, bool, shape (n, M)
    mask, count : ndarray, int16, shape (n,)
        Modalities as a sum of bits, and their number.
    log_prob : ndarray, float64, shape (n, M, C)
        Calibrated log probabilities; NaN where the modality is not there.
    mean : ndarray, float64, shape (n, C)
        Logarithm of the mean probability over the modalities, before the fused temperature.
    fused : ndarray, float64, shape (n, C)
        The same with it; NaN where no modality is there.
    """

    available: np.ndarray
    mask: np.ndarray
    count: np.ndarray
    log_prob: np.ndarray
    mean: np.ndarray
    fused: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Most probable class (the first of equals), -1 without an answer; int64 (n,)."""
        known = np.isfinite(self.fused).all(axis=1)
        return np.where(known, np.argmax(np.nan_to_num(self.fused), axis=1), -1)

    @property
    def divergence(self) -> np.ndarray:
        """Jensen-Shannon divergence between the modalities in bits, NaN below two; float64 (n,).

        H(mean of p_m) - mean of H(p_m) over the available modalities (Lin 1991, doi:10.1109/18.61115).
        """
        each = np.where(self.available, entropy(self.log_prob), 0.0).sum(axis=1)
        value = np.maximum(entropy(self.mean) - each / np.maximum(self.count, 1), 0.0) / np.log(2.0)
        return np.where(self.count >= 2, value, np.nan)


def answer_rows(logits: Mapping[str, np.ndarray], calibration: Calibration) -> RowAnswers:
    """Calibrate and fuse.

    Parameters
    ----------
    logits : mapping of modality -> ndarray, float, shape (n, C)
        NaN where the modality is not there; a modality that is nowhere may be left out.
    calibration : Calibration
    """
    shape = next(iter(logits.values())).shape
    stacked = np.stack([logits.get(name, np.full(shape, np.nan)) for name in MODALITIES], axis=1)
    available = np.isfinite(stacked).all(axis=2)  # (n, M)
    mask, count = mask_and_count(available)
    log_prob = np.stack(
        [log_softmax(calibration.apply(name, stacked[:, i], mask)) for i, name in enumerate(MODALITIES)],
        axis=1,
    )
    mean = fuse(log_prob, available)
    return RowAnswers(
        available, mask, count, log_prob, mean, log_softmax(calibration.apply(FUSED, mean, mask))
    )


def entropy(log_probs: np.ndarray) -> np.ndarray:
    """Shannon entropy in nats over the last axis; NaN where the row is NaN."""
    return 0.0 - (np.exp(log_probs) * log_probs).sum(axis=-1)
