"""The source probe: can the data's source be told from a curve within one class?

Labelled objects of different classes often come from different collections. If a curve gives its source away
*within* a class, a classifier may have learned the sources: an AUC above 0.6 voids a claim that rests on
these classes, and is said. The probe is a random forest on simple numbers of the truncated curve, judged out
of fold by object.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from applecider_batch.features.curve_summary import N_LIMIT, curve_summary
from applecider_batch.features.prepared import PhotometryInputs
from applecider_batch.features.segments import take_ranges
from applecider_batch.training.dataset import Dataset
from applecider_batch.training.metrics import roc_auc

VOID_AUC = 0.6
MIN_OBJECTS = 10
_FOLDS = 5


def source_probe(dataset: Dataset, horizon: float | None = None, seed: int = 0) -> dict[str, Any]:
    """Probe every class whose objects come from at least two sources.

    Parameters
    ----------
    dataset : Dataset
        With ``source``; sources with fewer than 10 objects of a class are left out of that class.
    horizon : float or None
        The curves' truncation; one of the data set's.
    seed : int

    Returns
    -------
    dict
        By class: ``auc`` (one source against the rest, the highest of them) and ``void``; or ``why_not``.
    """
    items = dataset.items("photometry")[:, dataset.column(horizon)]
    out: dict[str, Any] = {}
    for number, name in enumerate(dataset.classes):
        rows = np.flatnonzero((dataset.label == number) & (items >= 0))
        sources, counts = np.unique(dataset.source[rows].astype(str), return_counts=True)
        enough = sources[(counts >= MIN_OBJECTS) & (sources != "")]
        if len(enough) < 2:
            largest = f"{counts.max()} of {counts.sum()} from one source" if len(counts) else "no curves"
            out[name] = {"why_not": f"fewer than two sources with {MIN_OBJECTS} objects: {largest}"}
            continue
        rows = rows[np.isin(dataset.source[rows].astype(str), enough)]
        features = summary_numbers(dataset.prepared.photometry, items[rows])
        auc = {s: _out_of_fold_auc(features, dataset.source[rows].astype(str) == s, seed) for s in enough}
        worst = max(auc, key=lambda s: auc[s])
        out[name] = {"auc": auc[worst], "source": worst, "void": bool(auc[worst] > VOID_AUC)}
    return out


def summary_numbers(inputs: PhotometryInputs, items: np.ndarray) -> np.ndarray:
    """Summary numbers of sequences, without upper limits where the data set has none; (n, F)."""
    if inputs.curve_summary is not None:
        return inputs.curve_summary.values[items]
    position, offsets = take_ranges(inputs.offsets, items)
    no_limits = np.empty((0, N_LIMIT), np.float32), np.zeros(len(items) + 1, np.int64)
    return curve_summary(inputs.values[position], offsets, *no_limits)


def _out_of_fold_auc(features: np.ndarray, positive: np.ndarray, seed: int) -> float:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    forest = RandomForestClassifier(100, class_weight="balanced", min_samples_leaf=2, random_state=seed)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    score = cross_val_predict(forest, features, positive, cv=folds, method="predict_proba")[:, 1]
    return roc_auc(positive, score)
