"""``calibrate``: temperatures of every modality and of the fused probabilities, by availability pattern.

A temperature is the one of the lowest negative log likelihood on the validation objects (Guo et al. 2017,
arXiv:1706.04599), all horizons together, every object with the same weight. The temperature of an
availability pattern is its own where the pattern has enough objects, else the one over all (back-off).
Where a class has fewer than 50 objects the set is not called calibrated, whatever was fitted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.inference.calibration import DEFAULT, FUSED, Calibration, pattern_name
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.models.manifest import refuse_packaged
from applecider_batch.models.model_set import update_files
from applecider_batch.training.answers import Answers, open_evaluation
from applecider_batch.training.dataset import HORIZONS, Dataset
from applecider_batch.training.metrics import expected_calibration_error, negative_log_likelihood
from applecider_batch.training.setup import LabelledData

MIN_PER_CLASS = 50
MIN_PATTERN = 50
RANGE = (0.05, 20.0)


def fit_temperature(logits: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Temperature T of the lowest weighted NLL of softmax(logits / T).

    Parameters
    ----------
    logits : ndarray of float64, shape (n, C)
    label : ndarray of int64, shape (n,)
    weight : ndarray of float64, shape (n,), optional

    Returns
    -------
    float
        Within :data:`RANGE`. The NLL is convex in 1/T, so the minimum is the only one.
    """
    from scipy.optimize import minimize_scalar

    w = np.ones(len(label)) if weight is None else weight

    def nll(inverse: float) -> float:
        return float(-(w * log_softmax(logits * inverse)[np.arange(len(label)), label]).sum() / w.sum())

    found = minimize_scalar(
        nll, bounds=(1 / RANGE[1], 1 / RANGE[0]), method="bounded", options={"xatol": 1e-6}
    )
    return float(1 / found.x)


def calibration_document(dataset: Dataset, answers: Answers, members: np.ndarray) -> dict[str, Any]:
    """Fit all temperatures on some objects of a data set.

    Returns
    -------
    dict
        A model set's calibration document, with objects per class that a fused answer was fitted on, and per
        modality objects per class, ECE and NLL before and after.
    """
    label = np.repeat(dataset.label[members], len(dataset.horizons))
    mask = answers.mask[members].ravel()
    owner = np.repeat(np.arange(len(members)), len(dataset.horizons))
    temperatures: dict[str, dict[str, float]] = {}
    check: dict[str, Any] = {}
    identity = Calibration()

    def fit(values: np.ndarray, rows: np.ndarray) -> float:
        weight = 1.0 / np.bincount(owner[rows])[owner[rows]]
        return round(fit_temperature(values[rows], label[rows], weight), 6)

    for what in (*answers.logits, FUSED):
        # The fused vector is fitted on what the calibrated modalities give: that is what it will meet.
        so_far = Calibration(temperatures)
        flat = answers.log_prob(what, so_far if what == FUSED else identity)[members]
        flat = flat.reshape(len(label), -1)
        rows = np.flatnonzero(np.isfinite(flat).all(1))
        if not len(rows):
            continue
        fitted = {DEFAULT: fit(flat, rows)}
        for bits in np.unique(mask[rows]):
            own = rows[mask[rows] == bits]
            if len(np.unique(owner[own])) >= MIN_PATTERN and len(np.unique(label[own])) > 1:
                fitted[pattern_name(int(bits))] = fit(flat, own)
        temperatures[what] = fitted
        after = log_softmax(Calibration(temperatures).apply(what, flat[rows], mask[rows]))
        objects = np.unique(owner[rows])
        counts = np.bincount(dataset.label[members[objects]], minlength=len(dataset.classes))
        check[what] = {
            "objects": len(objects),
            "counts": dict(zip(dataset.classes, counts.tolist(), strict=True)),
            "calibrated": bool(counts.min() >= MIN_PER_CLASS),
            "ece_before": expected_calibration_error(label[rows], np.exp(flat[rows])),
            "ece_after": expected_calibration_error(label[rows], np.exp(after)),
            "nll_before": negative_log_likelihood(label[rows], np.exp(flat[rows])),
            "nll_after": negative_log_likelihood(label[rows], np.exp(after)),
        }
    return {
        "format": "applecider-batch calibration 1",
        "calibrated": FUSED in check and check[FUSED]["calibrated"],
        "temperature": temperatures,
        "counts": check[FUSED]["counts"] if FUSED in check else {},
        "min_per_class": MIN_PER_CLASS,
        "check": check,
    }


def calibrate(data: LabelledData, part: str = "validation") -> dict[str, Any]:
    """Fit temperatures on the validation objects and write them into the model set.

    Parameters
    ----------
    data : LabelledData
    part : {"validation", "test"}

    Returns
    -------
    dict
        The calibration document.
    """
    if part not in ("validation", "test"):
        raise UserError(f"Calibrate on 'validation' or 'test'; given '{part}'.")
    refuse_packaged(data.models)
    opened = open_evaluation(data, HORIZONS)
    members = opened.dataset.members(part)
    members = members[~opened.trained_on[members]]
    if not len(members):
        raise UserError(
            f"The part '{part}' has no objects that trained no network in use: {opened.dataset.counts()}.",
            hint="Give the split that the networks were trained with.",
        )
    document = calibration_document(opened.dataset, opened.answers, members)
    if not document["temperature"]:
        raise UserError("No network of the set gave an answer for any object of that part.")
    update_files(data.models, calibration=document)
    return document
