"""``evaluate anomaly``: what the anomaly scores find, and whether the flags keep their promise.

For every class in turn a small light-curve network is trained *without* it, with several seeds, and a
reference is made for it; then the objects of that class are the anomalies, and the test objects of the others
the crowd. Types outside the classes (``OTHER``) are anomalies to a network of all classes. Files::

    OUT/anomaly.json                        all numbers
    OUT/trainings/<left out>-<seed>/        trainings, resumed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.anomaly import ITEM_SCORES
from applecider_batch.inference.anomaly_file import load_reference
from applecider_batch.inference.anomaly_reference import AnomalyReference
from applecider_batch.inference.batches import cut_by_length
from applecider_batch.inference.forest import fit_forest
from applecider_batch.inference.shard import ShardOutputs
from applecider_batch.models import build_network
from applecider_batch.models.model_set import ModelSet
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES, OTHER
from applecider_batch.training.anomaly import ScoredObjects, fit_reference, scored_objects
from applecider_batch.training.anomaly_rates import flag_rates
from applecider_batch.training.answers import run_networks
from applecider_batch.training.dataset import HORIZONS, Dataset, load_dataset
from applecider_batch.training.evaluate import horizon_name
from applecider_batch.training.labels import read_labels
from applecider_batch.training.metrics import average_precision, average_ranks, roc_auc
from applecider_batch.training.photometry import (
    PRESETS,
    PROFILE,
    VALIDATION_HORIZONS,
    PhotometryPreset,
    fit_photometry,
    network_config,
)
from applecider_batch.training.photometry_task import Curves
from applecider_batch.training.probe import summary_numbers
from applecider_batch.training.splits import SplitRule
from applecider_batch.training.trainer import Trained

RECALL_AT = (40, 100, 2000)
FALSE_ALARMS = 0.01
MIN_LEFT_OUT = 10
#: An isolation forest on simple numbers of the curve, without any network: what is there for free.
FEATURES = "features_iforest"
METHODS: tuple[str, ...] = (*ITEM_SCORES, "consensus", FEATURES)
#: Small, because it is trained once for each class left out and each seed.
PRESET = replace(
    PRESETS["compact"], config={"d_model": 48, "n_heads": 4, "n_layers": 1, "d_ff": 96, "dropout": 0.1}
)
_BATCH = 256


def detection_measures(anomaly: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """What a ranking finds.

    Parameters
    ----------
    anomaly : ndarray, bool, shape (n,)
    score : ndarray, float, shape (n,)
        Higher is more anomalous.

    Returns
    -------
    dict
        ``auroc``, ``auprc``, ``recall@N`` (share of the anomalies among the first N; of equal scores the
        crowd comes first) and ``recall@1%``: beyond the score that 1 % of the crowd exceeds.
    """
    order = np.lexsort((anomaly, -score))
    hit = np.cumsum(anomaly[order])
    out = {"auroc": roc_auc(anomaly, score), "auprc": average_precision(anomaly, score)}
    for n in RECALL_AT:
        out[f"recall@{n}"] = float(hit[min(n, len(hit)) - 1] / hit[-1])
    threshold = np.quantile(score[~anomaly], 1 - FALSE_ALARMS, method="higher")
    out["recall@1%"] = float((score[anomaly] > threshold).mean())
    return out


def auroc_interval(positive: np.ndarray, scores: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % interval of the mean AUROC of several rankings of the same objects.

    From the variance of the placements of the objects, averaged over the rankings (DeLong, DeLong &
    Clarke-Pearson 1988, doi:10.2307/2531595).

    Parameters
    ----------
    positive : ndarray, bool, shape (n,)
    scores : sequence of ndarray, float, shape (n,)
    """
    m, n = int(positive.sum()), int((~positive).sum())
    above, below = np.zeros(m), np.zeros(n)
    for score in scores:
        rank = average_ranks(score)
        above += (rank[positive] - average_ranks(score[positive])) / n / len(scores)
        below += 1 - (rank[~positive] - average_ranks(score[~positive])) / m / len(scores)
    half = 1.959964 * np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    return max(float(above.mean() - half), 0.0), min(float(above.mean() + half), 1.0)


def without(dataset: Dataset, left_out: str) -> Dataset:
    """The data set of the five classes with no object of one of them in any part."""
    other = dataset.classes.index(OTHER)
    gone = (dataset.label == dataset.classes.index(left_out)) | (dataset.label == other)
    label = np.where(dataset.label == other, -1, dataset.label)
    return replace(dataset, classes=CLASSES, label=label, part=np.where(gone, -1, dataset.part))


def curve_outputs(trained: Trained, curves: Curves, preset: PhotometryPreset) -> ShardOutputs:
    """All light curves of a data set through a trained network."""
    import torch

    network = build_network(PROFILE, preset.network, **network_config(preset, curves)).eval()
    network.load_state_dict(trained.state)
    ragged = curves.curves
    count = len(ragged.offsets) - 1
    logits = np.full((count, len(CLASSES)), np.nan, np.float32)
    latent = np.empty((count, 0), np.float32)
    with torch.inference_mode():
        for length, items in cut_by_length(ragged.lengths(np.arange(count)), _BATCH):
            batch = curves.batch(ragged, items, length)
            out, hidden = network.forward_with_latent(*(torch.as_tensor(v) for v in batch.values()))
            if not latent.shape[1]:
                latent = np.full((count, hidden.shape[1]), np.nan, np.float32)
            logits[items], latent[items] = out.numpy(), hidden.numpy()
    energy = -np.logaddexp.reduce(logits, axis=1)
    return ShardOutputs({"photometry": logits}, {"photometry": latent}, {"photometry": energy})


def evaluate_anomaly(
    archive: str,
    labels: str,
    models: str,
    out: str,
    *,
    leave_out: Sequence[str] | None = None,
    horizons: Sequence[float | None] = HORIZONS,
    seeds: int = 3,
    epochs: int = 15,
    split: SplitRule | None = None,
    label_column: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Leave classes out, and count how often the flags fire on known classes.

    Parameters
    ----------
    archive, labels, models, out : str
        ``models`` gives the profile, and its reference (if it has one) is checked by the test objects.
    leave_out : sequence of str, optional
        Classes; ``OTHER`` for the types outside all classes. All that have enough objects if not given.
    horizons : sequence of float or None
        Those by which training stops are judged too.
    seeds, epochs : int
        Trainings for each class left out, and their length.
    split, label_column, device, threads, storage_options
        As in training.
    progress : bool

    Returns
    -------
    dict
        The document of ``anomaly.json``.
    """
    model_set = ModelSet.load(models)
    profile = get_profile(model_set.profile)
    opened = Archive.open(archive, storage_options)
    table = read_labels(labels, column=label_column, others=True, storage_options=storage_options)
    rule = split or SplitRule()
    modalities = {"photometry", *(model_set.inputs if model_set.anomaly_ref_id else ())}
    days = sorted({*horizons, *VALIDATION_HORIZONS}, key=lambda d: np.inf if d is None else d)
    dataset = load_dataset(opened, table, profile, horizons=days, modalities=modalities).split(rule)
    number = np.bincount(dataset.label, minlength=len(dataset.classes)).tolist()
    counts = dict(zip(dataset.classes, number, strict=True))
    chosen = list(leave_out) if leave_out is not None else [c for c, n in counts.items() if n >= MIN_LEFT_OUT]
    for name in chosen:
        if name not in counts:
            raise UserError(f"Unknown class '{name}'; allowed are {', '.join(counts)}.")
    store = Store(out)
    preset = replace(PRESET, options=replace(PRESET.options, epochs=epochs, device=device, threads=threads))
    document: dict[str, Any] = {
        "model_set_id": model_set.model_set_id,
        "trained": model_set.trained,
        "split": rule.record(),
        "objects": counts,
        "parts": dataset.counts(),
        "network": {"network": preset.network, **preset.config},
        "epochs": preset.options.epochs,
        "seeds": seeds,
        "interval": "95 %, DeLong, of the mean over the seeds",
        "left_out": {},
        "set_flags": _set_flags(model_set, dataset, opened, device, threads),
        "flags": [],
    }
    inputs = dataset.prepared.photometry
    features = summary_numbers(inputs, np.arange(len(inputs.offsets) - 1))
    for name in chosen:
        runs = []
        for seed in range(seeds):
            known = without(dataset, name)
            where = store.join(f"trainings/{name.replace(' ', '_')}-{seed}")
            chosen_preset = replace(preset, options=replace(preset.options, seed=seed))
            trained, curves = fit_photometry(known, where, chosen_preset, progress=progress)
            scored = scored_objects(known, curve_outputs(trained, curves, preset))
            reference = fit_reference(scored, seed=seed)
            runs.append(_scores(scored, reference, seed, features))
            if name == OTHER:
                document["flags"].append(flag_rates(scored, reference, known.members("test")))
        document["left_out"][name] = _table(dataset, name, runs)
        store.write_json_atomic("anomaly.json", document)
    store.write_json_atomic("anomaly.json", document)
    return document


def _set_flags(
    model_set: ModelSet, dataset: Dataset, archive: Archive, device: str, threads: int
) -> dict[str, Any] | None:
    """Rates of the set's own reference on its test objects; None where it has no reference."""
    reference = load_reference(model_set)
    if reference is None:
        return None
    known = without(dataset, OTHER)
    outputs = run_networks(model_set, known, archive, device=device, threads=threads)
    return flag_rates(scored_objects(known, outputs), reference, known.members("test"))


def _scores(
    scored: ScoredObjects, reference: AnomalyReference, seed: int, features: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores of all objects at all horizons by method, float64 (n, H); NaN where not usable."""
    shape, usable = scored.in_scope.shape, scored.usable
    found = scored.judge(reference)
    out = {name: found.scores[:, i].reshape(shape).astype(float) for i, name in enumerate(ITEM_SCORES)}
    out["consensus"] = found.consensus.reshape(shape)
    items, train = scored.dataset.items("photometry"), scored.dataset.members("train")
    fitted = np.unique(items[train][usable[train]])
    features = features[:, np.isfinite(features[fitted]).any(axis=0)]  # a band may have no event at all
    filled = np.where(np.isfinite(features), features, np.nanmedian(features[fitted], axis=0))
    out[FEATURES] = fit_forest(filled[fitted], seed).score(filled)[items]
    return {name: np.where(usable, values, np.nan) for name, values in out.items()}


def _table(dataset: Dataset, name: str, runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Measures by horizon and method: mean, lowest and highest of the seeds; interval of the mean AUROC."""
    anomaly = dataset.label == dataset.classes.index(name)
    crowd = np.zeros(len(dataset), bool)
    crowd[dataset.members("test")] = True
    crowd &= ~anomaly & (dataset.label != dataset.classes.index(OTHER))
    out: dict[str, Any] = {}
    for column, horizon in enumerate(dataset.horizons):
        there = np.all([np.isfinite(run[m][:, column]) for run in runs for m in METHODS], axis=0)
        rows = np.flatnonzero(there & (anomaly | crowd))
        positive = anomaly[rows]
        entry: dict[str, Any] = {"anomalies": int(positive.sum()), "crowd": int((~positive).sum())}
        out[horizon_name(horizon)] = entry
        if min(entry.values()) < MIN_LEFT_OUT:
            continue
        entry["base_rate"] = float(positive.mean())
        entry["methods"] = {
            method: _summary(positive, [run[method][rows, column] for run in runs]) for method in METHODS
        }
    return out


def _summary(positive: np.ndarray, scores: Sequence[np.ndarray]) -> dict[str, Any]:
    each = [detection_measures(positive, score) for score in scores]
    out: dict[str, Any] = {
        key: {"mean": float(np.mean(v)), "lowest": min(v), "highest": max(v)}
        for key in each[0]
        for v in ([e[key] for e in each],)
    }
    out["auroc"]["interval"] = list(auroc_interval(positive, scores))
    return out
