"""The score by which candidates are ranked.

One formula for every episode in scope::

    score = G * Q * N * H * (T + A)

    G = prob_in_scope of the learned gate, 1 where rules alone decided
    T = prob_sni + prob_snii + 2 * prob_tde     it is a transient; the rare class counts twice
    A = min(anomaly_consensus, 4) / 4           it is like nothing known; 0 without an anomaly reference
    Q = drb_median, else rb_max, else 0.8       the alerts are real
    N = 1 - exp(-n / 4), n = max(n_det - n_neg, 1)    there is enough to look at
    H = 1 / (1 + n_det_before_t0 / 100)         the position was quiet before; 1 where packets do not say

A class probability and an anomaly score are added, because a transient outside the five classes has a high
anomaly score and probabilities that mean little; everything else multiplies, because nothing makes up for a
bogus or single detection, or for years of variability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.columns import floats

TRANSIENT_WEIGHTS: Mapping[str, float] = {"sni": 1.0, "snii": 1.0, "tde": 2.0}
ANOMALY_FULL = 4.0
QUALITY_UNKNOWN = 0.8
DETECTIONS_SCALE = 4.0
HISTORY_SCALE = 100.0
FORMULA = (
    "G * Q * N * H * (T + A); G = prob_in_scope else 1, T = prob_sni + prob_snii + 2 prob_tde, "
    "A = min(anomaly_consensus, 4)/4, Q = drb_median else rb_max else 0.8, "
    "N = 1 - exp(-max(n_det - n_neg, 1)/4), H = 1/(1 + n_det_before_t0/100)"
)

#: Columns of the catalogue that the formula reads.
COLUMNS = (
    "prob_in_scope", "drb_median", "rb_max", "n_det", "n_neg", "n_det_before_t0", "anomaly_consensus",
    *(f"prob_{key}" for key in TRANSIENT_WEIGHTS),
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """The score of each row and its factors, float64, shape (n,); NaN where the row has no probabilities."""

    total: np.ndarray
    transient: np.ndarray
    anomaly: np.ndarray
    quality: np.ndarray
    detections: np.ndarray
    history: np.ndarray


def score_rows(table: pa.Table) -> Score:
    """Score catalogue rows by the formula of this module.

    Parameters
    ----------
    table : pyarrow.Table
        Rows with :data:`COLUMNS`.

    Returns
    -------
    Score
    """
    transient = sum(
        (weight * floats(table, f"prob_{key}") for key, weight in TRANSIENT_WEIGHTS.items()),
        np.zeros(table.num_rows),
    )
    consensus = np.nan_to_num(floats(table, "anomaly_consensus"))
    anomaly = np.clip(consensus, 0.0, ANOMALY_FULL) / ANOMALY_FULL
    quality = floats(table, "drb_median")
    for other in (floats(table, "rb_max"), np.full(table.num_rows, QUALITY_UNKNOWN)):
        quality = np.where(np.isnan(quality), other, quality)
    count = np.maximum(np.nan_to_num(floats(table, "n_det") - np.nan_to_num(floats(table, "n_neg"))), 1.0)
    detections = 1.0 - np.exp(-count / DETECTIONS_SCALE)
    gate = np.nan_to_num(floats(table, "prob_in_scope"), nan=1.0)
    history = 1.0 / (1.0 + np.nan_to_num(floats(table, "n_det_before_t0")) / HISTORY_SCALE)
    total = gate * quality * detections * history * (transient + anomaly)
    return Score(total, transient, anomaly, quality, detections, history)


def prob_transient(table: pa.Table) -> np.ndarray:
    """Probability of SN I, SN II or TDE, float64, shape (n,); NaN without probabilities."""
    return sum((floats(table, f"prob_{key}") for key in TRANSIENT_WEIGHTS), np.zeros(table.num_rows))
