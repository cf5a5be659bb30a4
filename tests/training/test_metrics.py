"""Measures against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from applecider_batch.training import metrics

CLASSES = ("SN I", "SN II", "CV", "AGN", "TDE")


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 4, 300)  # no TDE: it must not count
    logits = rng.normal(0, 1, (300, 5)) + 1.5 * np.eye(5)[label]
    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return label, np.round(prob, 2)  # with ties


def test_against_scikit_learn(sample: tuple[np.ndarray, np.ndarray]) -> None:
    label, prob = sample
    found = metrics.measures(label, prob, CLASSES)
    auc = [oracle.roc_auc_score(label == c, prob[:, c]) for c in range(4)]
    precision = [oracle.average_precision_score(label == c, prob[:, c]) for c in range(4)]
    assert found["macro_auc"] == pytest.approx(np.mean(auc), abs=1e-12)
    assert found["macro_auprc"] == pytest.approx(np.mean(precision), abs=1e-12)
    recall = oracle.recall_score(label, prob.argmax(1), labels=range(4), average="macro", zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recall)
    assert "auc TDE" not in found
    pair = label < 2
    ratio = np.maximum(prob[pair, 1], 1e-12) / np.maximum(prob[pair, 0], 1e-12)
    assert found["auc SN I/SN II"] == pytest.approx(oracle.roc_auc_score(label[pair] == 1, ratio))


def test_calibration_error_by_hand() -> None:
    prob = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    label = np.array([0, 1, 0])
    assert metrics.expected_calibration_error(label, prob) == pytest.approx((2 * 0.4 + 0.4) / 3)
    assert metrics.brier(label, prob) == pytest.approx((0.02 + 1.62 + 0.32) / 3)
    assert metrics.top_k(label, prob, 1) == pytest.approx(2 / 3)


def test_bootstrap_resamples_objects_not_rows() -> None:
    group = np.repeat(np.arange(20), 50)
    value = np.repeat(np.random.default_rng(0).normal(size=20), 50)
    low, high = metrics.bootstrap(group, lambda rows: {"mean": float(value[rows].mean())})["mean"]
    by_object = value[::50].std() / np.sqrt(20)
    assert high - low == pytest.approx(2 * 1.96 * by_object, rel=0.35)  # by rows it were 7 times narrower
