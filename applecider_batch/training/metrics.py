"""What classification is worth: all measures in NumPy, fast enough for a bootstrap.

A class counts where the sample has at least one object of it and one of another; averages over classes are
over those that count. Probabilities are (n, C) in the order of the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ECE_BINS = 15
_TINY = 1e-12


def average_ranks(score: np.ndarray) -> np.ndarray:
    """Average ranks, 1 for the lowest; float64 (n,)."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    end = np.cumsum(counts)
    return (end - (counts - 1) / 2)[inverse]


def roc_auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN without both kinds.

    Parameters
    ----------
    positive : ndarray of bool, shape (n,)
    score : ndarray of float, shape (n,)
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not (n_positive and n_negative):
        return float("nan")
    rank_sum = average_ranks(score)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall curve as the step-wise sum; NaN without a positive."""
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hit, ordered = positive[order], score[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # ends of groups of equal scores
    true = np.cumsum(hit)[last]
    precision = true / (last + 1)
    return float((np.diff(np.append(0, true)) * precision).sum() / hit.sum())


def counting_classes(label: np.ndarray, n_classes: int) -> np.ndarray:
    """Classes with at least one object in the sample, and one outside; int64."""
    counts = np.bincount(label, minlength=n_classes)
    return np.flatnonzero((counts > 0) & (counts < len(label)))


def macro(
    one: Callable[[np.ndarray, np.ndarray], float], label: np.ndarray, prob: np.ndarray, classes: np.ndarray
) -> float:
    """Mean of a one-against-rest measure over the classes."""
    values = [one(label == c, prob[:, c]) for c in classes]
    return float(np.mean(values)) if values else float("nan")


def recall_per_class(label: np.ndarray, prob: np.ndarray) -> np.ndarray:
    """Fraction of each class that is put into it, NaN for a class without objects; float64 (C,)."""
    n = prob.shape[1]
    total = np.bincount(label, minlength=n)
    right = np.bincount(label[prob.argmax(1) == label], minlength=n)
    return np.divide(right, total, out=np.full(n, np.nan), where=total > 0)


def top_k(label: np.ndarray, prob: np.ndarray, k: int) -> float:
    """Fraction of objects whose class is among the k most probable (ties by class order)."""
    best = np.argsort(-prob, axis=1, kind="stable")[:, :k]
    return float((best == label[:, None]).any(1).mean())


def calibration_bins(label: np.ndarray, prob: np.ndarray, bins: int = ECE_BINS) -> dict[str, list[float]]:
    """Reliability: per bin of the top probability the number of objects, mean confidence and accuracy."""
    confidence, right = prob.max(1), prob.argmax(1) == label
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    safe = np.maximum(count, 1)
    return {
        "count": count.tolist(),
        "confidence": (np.bincount(number, confidence, bins) / safe).tolist(),
        "accuracy": (np.bincount(number, right, bins) / safe).tolist(),
    }


def expected_calibration_error(label: np.ndarray, prob: np.ndarray, bins: int = ECE_BINS) -> float:
    """ECE over equal bins of the top probability (Guo et al. 2017, arXiv:1706.04599)."""
    found = calibration_bins(label, prob, bins)
    count, confidence, accuracy = (np.array(found[k]) for k in ("count", "confidence", "accuracy"))
    return float((count * np.abs(confidence - accuracy)).sum() / max(count.sum(), 1))


def brier(label: np.ndarray, prob: np.ndarray) -> float:
    """Mean over objects of the squared distance to the one-hot class (0 to 2)."""
    hot = np.eye(prob.shape[1])[label]
    return float(((prob - hot) ** 2).sum(1).mean())


def negative_log_likelihood(label: np.ndarray, prob: np.ndarray) -> float:
    """Mean of -ln p(class); probabilities below 1e-12 count as 1e-12."""
    return float(-np.log(np.maximum(prob[np.arange(len(label)), label], _TINY)).mean())


def confusion(label: np.ndarray, prob: np.ndarray) -> np.ndarray:
    """Counts, int64 (C, C): rows are true classes."""
    n = prob.shape[1]
    return np.bincount(label * n + prob.argmax(1), minlength=n * n).reshape(n, n)


def measures(label: np.ndarray, prob: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """All scalar measures of a sample.

    Parameters
    ----------
    label : ndarray of int64, shape (n,)
    prob : ndarray of float64, shape (n, C)
    classes : sequence of str, length C

    Returns
    -------
    dict
        ``macro_auprc``, ``macro_auc``, ``balanced_accuracy``, ``accuracy``, ``macro_f1``, ``top2``, ``top3``,
        ``ece``, ``brier``, ``nll``; ``auc``, ``auprc``, ``recall`` and, where it was predicted, ``precision
        <class>`` for the classes that count; with SN I and SN II ``auc SN I/SN II`` (on these two alone, by
        the difference of their log probabilities).
    """
    counting = counting_classes(label, len(classes))
    recall = recall_per_class(label, prob)
    present = np.isfinite(recall)
    matrix = confusion(label, prob)
    f1 = 2 * np.diag(matrix) / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
    out = {
        "macro_auprc": macro(average_precision, label, prob, counting),
        "macro_auc": macro(roc_auc, label, prob, counting),
        "balanced_accuracy": float(recall[present].mean()) if present.any() else float("nan"),
        "accuracy": float((prob.argmax(1) == label).mean()) if len(label) else float("nan"),
        "macro_f1": float(f1[present].mean()) if present.any() else float("nan"),
        "top2": top_k(label, prob, 2),
        "top3": top_k(label, prob, 3),
        "ece": expected_calibration_error(label, prob),
        "brier": brier(label, prob),
        "nll": negative_log_likelihood(label, prob),
    }
    for c in counting:
        out[f"auc {classes[c]}"] = roc_auc(label == c, prob[:, c])
        out[f"auprc {classes[c]}"] = average_precision(label == c, prob[:, c])
        out[f"recall {classes[c]}"] = float(recall[c])
        if matrix[:, c].any():
            out[f"precision {classes[c]}"] = float(matrix[c, c] / matrix[:, c].sum())
    if "SN I" in classes and "SN II" in classes:
        out["auc SN I/SN II"] = pair_auc(label, prob, classes.index("SN I"), classes.index("SN II"))
    return out


def pair_auc(label: np.ndarray, prob: np.ndarray, first: int, second: int) -> float:
    """AUC of the second of two classes against the first, on the objects of these two."""
    pair = (label == first) | (label == second)
    log_p = np.log(np.maximum(prob[pair][:, [first, second]], _TINY))
    return roc_auc(label[pair] == second, log_p[:, 1] - log_p[:, 0])


def bootstrap(
    group: np.ndarray,
    measure: Callable[[np.ndarray], dict[str, float]],
    *,
    draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals from resampling whole groups (objects) with replacement.

    Parameters
    ----------
    group : ndarray, shape (n,)
        Rows of one object have one value.
    measure : callable, row numbers -> measures
    draws, seed, level
        Number of resamples, seed, and width of the interval.

    Returns
    -------
    dict
        Measure -> (low, high); NaN draws (a class that was not drawn) are left out.
    """
    _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    rows = np.argsort(inverse, kind="stable")
    starts = np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)
    values: dict[str, list[float]] = {}
    for _ in range(draws):
        drawn = rng.integers(len(counts), size=len(counts))
        index = np.concatenate([rows[starts[g] : starts[g] + counts[g]] for g in drawn])
        for name, value in measure(index).items():
            values.setdefault(name, []).append(value)
    tail = (1 - level) / 2
    out = {}
    for name, drawn_values in values.items():
        good = np.array([v for v in drawn_values if np.isfinite(v)])
        if len(good):
            low, high = np.quantile(good, [tail, 1 - tail])
            out[name] = (float(low), float(high))
    return out


def report(
    label: np.ndarray,
    prob: np.ndarray,
    classes: Sequence[str],
    group: np.ndarray,
    *,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures with intervals, counts per class, confusion matrix and reliability of a sample, JSON-ready."""
    values = measures(label, prob, classes)
    intervals = bootstrap(
        group, lambda rows: measures(label[rows], prob[rows], classes), draws=draws, seed=seed
    )
    counts = np.bincount(label, minlength=len(classes))
    matrix = confusion(label, prob)
    return {
        "rows": len(label),
        "objects": len(np.unique(group)),
        "counts": dict(zip(classes, counts.tolist(), strict=True)),
        "measures": {k: None if not np.isfinite(v) else v for k, v in values.items()},
        "intervals": {k: list(v) for k, v in intervals.items()},
        "confusion": matrix.tolist(),
        "confusion_normalised": (matrix / np.maximum(matrix.sum(1, keepdims=True), 1)).tolist(),
        "reliability": calibration_bins(label, prob),
    }
