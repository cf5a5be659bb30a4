"""Figures in other classes than the five: AGN and TDE as one (the paper's Table 6), sub-classes (Table 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from applecider_batch.features.segments import take_ranges
from applecider_batch.inference.batches import spectra_input
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.inference.marginal import marginalise
from applecider_batch.taxonomy import CLASSES, CLASSES10, to_class10
from applecider_batch.training.answers import BATCH, Opened
from applecider_batch.training.dataset import Dataset
from applecider_batch.training.metrics import report
from applecider_batch.training.setup import LabelledData

NUCLEAR = ("SN I", "SN II", "CV", "nuclear")
_TO_NUCLEAR = np.array([NUCLEAR.index(c if c in NUCLEAR else "nuclear") for c in CLASSES])


def nuclear_report(
    dataset: Dataset, log_prob: np.ndarray, members: np.ndarray, *, draws: int, seed: int
) -> dict[str, Any]:
    """Report of log probabilities (n, 5) with AGN and TDE taken as one class."""
    rows = members[np.isfinite(log_prob[members]).all(1)]
    if not len(rows):
        return {"rows": 0}
    prob = np.exp(log_prob[rows]) @ np.eye(len(NUCLEAR))[_TO_NUCLEAR]
    group = dataset.group[rows].astype(str)
    return report(_TO_NUCLEAR[dataset.label[rows]], prob, NUCLEAR, group, draws=draws, seed=seed)


def spectra_subclasses(
    opened: Opened, data: LabelledData, members: np.ndarray, *, draws: int, seed: int
) -> dict[str, Any]:
    """Report of the spectra network's own classes where they are sub-classes, at the last horizon.

    Returns
    -------
    dict
        The report, or ``why_not``. Probabilities are conditional on the classes that are among
        `taxonomy.CLASSES10`.
    """
    card = opened.model_set.defaults["spectra"].card
    own = [to_class10(name) for name in card.class_order]
    outputs = [i for i, name in enumerate(own) if name in CLASSES10]
    classes = tuple(str(own[i]) for i in outputs)
    if len(classes) <= len(CLASSES) or len(set(classes)) < len(classes):
        return {"why_not": f"the network's classes are {', '.join(card.class_order)}"}
    table = data.read_labels("ten")
    at = table.positions(opened.dataset.object_id[members].tolist())
    item = opened.dataset.items("spectra")[members, -1]
    number = {i: classes.index(name) for i, name in enumerate(CLASSES10) if name in classes}
    label = np.array([number.get(int(table.label[i]), -1) if i >= 0 else -1 for i in at], np.int64)
    kept = np.flatnonzero((item >= 0) & (label >= 0))
    if not len(kept):
        return {"why_not": "no object with a spectrum has a sub-class"}
    log_prob = _own_log_prob(opened, item[kept])[:, outputs]
    prob = np.exp(log_softmax(log_prob))
    group = opened.dataset.group[members[kept]].astype(str)
    return {"classes": list(classes), **report(label[kept], prob, classes, group, draws=draws, seed=seed)}


def _own_log_prob(opened: Opened, items: np.ndarray) -> np.ndarray:
    """Log probabilities of the network's own classes; without a redshift the mean over the trials."""
    entry = opened.model_set.defaults["spectra"]
    network, size = entry.build(), entry.card.picture_size
    spectra = opened.dataset.prepared.spectra
    rows, offsets = take_ranges(spectra.offsets, items)
    out = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            x = spectra_input(spectra.flux[rows[start : start + BATCH]], size)
            out.append(network(torch.tensor(x)).float().numpy())
    logits = np.concatenate(out)
    energy = -np.logaddexp.reduce(logits, axis=1)
    return log_softmax(marginalise(logits, logits, energy, spectra.redshift[rows], offsets)[0])
