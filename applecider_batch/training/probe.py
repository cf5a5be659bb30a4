"""The source probe: can the data's source be told from a modality within one class?

Labelled objects of different classes often come from different collections. If a curve gives its source away
*within* a class, a classifier may have learned the sources: an AUC above 0.6 voids a claim that rests on
these classes, and is said. The probe is a random forest on simple numbers of the truncated curve, on the
image's metadata or on a coarse spectrum, judged out of fold by object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from applecider_batch.features.curve_summary import N_LIMIT, curve_summary
from applecider_batch.features.prepared import PhotometryInputs, Prepared
from applecider_batch.features.segments import take_ranges
from applecider_batch.training.dataset import Dataset
from applecider_batch.training.metrics import roc_auc

VOID_AUC = 0.6
MIN_OBJECTS = 10
_FOLDS = 5
_PIECES = 64


def source_probe(dataset: Dataset, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Probe every class whose objects come from at least two sources, by every modality that there is.

    Parameters
    ----------
    dataset : Dataset
        With ``source``; sources with fewer than 10 objects of a class are left out of that class. Objects are
        seen at the last horizon.
    seed : int

    Returns
    -------
    dict
        By modality and class: ``auc`` (one source against the rest, the highest of them) and ``void``; or
        ``why_not``.
    """
    out = {}
    for modality, features_of in _FEATURES.items():
        items = dataset.items(modality)[:, -1]
        if (items >= 0).any():
            out[modality] = {
                name: _probe_class(dataset, number, items, features_of, seed)
                for number, name in enumerate(dataset.classes)
            }
    return out


def probe_sentences(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """What :func:`source_probe` found, in words: what is void, what is not, and what it cannot judge."""
    out = []
    for what, by_class in found.items():
        for name, result in by_class.items():
            if result.get("void"):
                out.append(
                    f"VOID: within {name} the {what} gives its source away (AUC {result['auc']:.2f} > "
                    f"{VOID_AUC}); claims that rest on this class are void."
                )
            elif "auc" in result:
                out.append(f"Source probe within {name} by {what}: AUC {result['auc']:.2f}.")
        unknown: dict[str, list[str]] = {}
        for name, result in by_class.items():
            if "why_not" in result:
                unknown.setdefault(result["why_not"], []).append(name)
        if unknown:
            reasons = "; ".join(f"{', '.join(names)} ({why})" for why, names in unknown.items())
            out.append(
                f"The source probe needs two sources with {MIN_OBJECTS} objects of a class; by {what} it "
                f"cannot judge {reasons}."
            )
    return out


def _probe_class(
    dataset: Dataset,
    number: int,
    items: np.ndarray,
    features_of: Callable[[Prepared, np.ndarray], np.ndarray],
    seed: int,
) -> dict[str, Any]:
    rows = np.flatnonzero((dataset.label == number) & (items >= 0))
    sources, counts = np.unique(dataset.source[rows].astype(str), return_counts=True)
    enough = sources[(counts >= MIN_OBJECTS) & (sources != "")]
    if len(enough) < 2:
        if not len(rows):
            return {"why_not": "no objects"}
        if not (sources != "").any():
            return {"why_not": "the label table names no source"}
        return {"why_not": f"{counts.max()} of {counts.sum()} from one source"}
    rows = rows[np.isin(dataset.source[rows].astype(str), enough)]
    features = features_of(dataset.prepared, items[rows])
    auc = {s: _out_of_fold_auc(features, dataset.source[rows].astype(str) == s, seed) for s in enough}
    worst = max(auc, key=lambda s: auc[s])
    return {"auc": auc[worst], "source": worst, "void": bool(auc[worst] > VOID_AUC)}


def _coarse(flux: np.ndarray) -> np.ndarray:
    """Means over 64 pieces of spectra (n, n_points), 0 where not covered."""
    points = flux.shape[1] // _PIECES * _PIECES
    return flux[:, :points].reshape(len(flux), _PIECES, -1).mean(2)


def summary_numbers(inputs: PhotometryInputs, items: np.ndarray) -> np.ndarray:
    """Summary numbers of sequences, without upper limits where the data set has none; (n, F)."""
    if inputs.curve_summary is not None:
        return inputs.curve_summary.values[items]
    position, offsets = take_ranges(inputs.offsets, items)
    no_limits = np.empty((0, N_LIMIT), np.float32), np.zeros(len(items) + 1, np.int64)
    return curve_summary(inputs.values[position], offsets, *no_limits)


_FEATURES: dict[str, Callable[[Prepared, np.ndarray], np.ndarray]] = {
    "photometry": lambda prepared, items: summary_numbers(prepared.photometry, items),
    "image": lambda prepared, items: prepared.image.metadata[items],
    "spectra": lambda prepared, items: _coarse(prepared.spectra.flux[prepared.spectra.offsets[items]]),
}


def _out_of_fold_auc(features: np.ndarray, positive: np.ndarray, seed: int) -> float:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    forest = RandomForestClassifier(100, class_weight="balanced", min_samples_leaf=2, random_state=seed)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    score = cross_val_predict(forest, features, positive, cv=folds, method="predict_proba")[:, 1]
    return roc_auc(positive, score)
