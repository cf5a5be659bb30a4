"""``evaluate models``: what the networks of a set are worth on labelled objects, by modality and fused.

The inputs and the networks are those of a classification: the same as-of walls, predictor, fusion and
calibration. Files::

    OUT/evaluation.json                     all numbers
    OUT/<what>-<horizon>-confusion.png      what: photometry, image, spectra, fused
    OUT/<what>-<horizon>-reliability.png
    OUT/sweep-<measure>.png                 by horizon, with intervals
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.calibration import FUSED, Calibration, pattern_name
from applecider_batch.inference.fusion import MODALITIES, fuse, log_softmax, mask_and_count
from applecider_batch.inference.predictor import Predictor
from applecider_batch.inference.shard import LocalPort, ShardOutputs, infer, stamp_reader
from applecider_batch.models.model_set import ModelSet
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES
from applecider_batch.training.curves import confusion_figure, reliability_figure, sweep_figure
from applecider_batch.training.dataset import HORIZONS, Dataset, load_dataset
from applecider_batch.training.labels import read_labels
from applecider_batch.training.metrics import report
from applecider_batch.training.probe import source_probe
from applecider_batch.training.splits import PARTS, SplitRule

BATCH = 256
SWEPT = ("macro_auprc", "macro_auc", "balanced_accuracy", "auc SN I/SN II")
_FULL = 1000.0


@dataclass(frozen=True)
class Answers:
    """What a model set says about a data set.

    Attributes
    ----------
    logits : dict of modality -> ndarray, float64, shape (n_objects, n_horizons, 5)
        Not calibrated; NaN where the modality is not there.
    mask : ndarray of int64, shape (n_objects, n_horizons)
        Modalities that answered (sum of bits).
    """

    logits: dict[str, np.ndarray]
    mask: np.ndarray

    def log_prob(self, what: str, calibration: Calibration) -> np.ndarray:
        """Calibrated log probabilities of a modality or ``fused``; (n_objects, n_horizons, 5)."""
        n, h = self.mask.shape
        flat_mask = self.mask.ravel()

        def of(modality: str) -> np.ndarray:
            flat = self.logits[modality].reshape(n * h, -1)
            return log_softmax(calibration.apply(modality, flat, flat_mask))

        if what != FUSED:
            return of(what).reshape(n, h, -1)
        stacked = np.stack(
            [of(m) if m in self.logits else np.full((n * h, len(CLASSES)), np.nan) for m in MODALITIES],
            axis=1,
        )
        fused = fuse(stacked, np.isfinite(stacked).all(-1))
        return log_softmax(calibration.apply(FUSED, fused, flat_mask)).reshape(n, h, -1)


def run_networks(
    model_set: ModelSet, dataset: Dataset, archive: Archive, *, device: str, threads: int
) -> ShardOutputs:
    """Run the networks in use over all items of a data set."""
    profile = get_profile(model_set.profile)
    ports = {
        m: LocalPort(Predictor(entry, device=device, threads=threads))
        for m, entry in model_set.defaults.items()
    }
    return infer(
        dataset.prepared,
        stamp_reader(archive, dataset.prepared.image, profile),
        ports,
        batch_size=dict.fromkeys(MODALITIES, BATCH),
        calibration=Calibration.from_document(model_set.calibration),
        picture_size=model_set.picture_size,
    )


def answers_of(dataset: Dataset, outputs: ShardOutputs) -> Answers:
    """What the networks' outputs say about a data set's objects."""
    logits, available = {}, []
    for modality in MODALITIES:
        if modality not in outputs.logits:
            available.append(np.zeros(dataset.row.shape, bool))
            continue
        items = dataset.items(modality)
        own = outputs.logits[modality]
        found = np.concatenate([own, np.full((1, own.shape[1]), np.nan)])  # -1: absent
        logits[modality] = found[items].astype(np.float64)
        available.append(np.isfinite(logits[modality]).all(-1))
    mask, _ = mask_and_count(np.stack(available, -1).reshape(-1, len(MODALITIES)))
    return Answers(logits, mask.astype(np.int64).reshape(dataset.row.shape))


def open_evaluation(
    archive: str,
    labels: str,
    models: str,
    *,
    horizons: Sequence[float | None],
    split: SplitRule | None,
    label_column: str | None,
    device: str,
    threads: int,
    storage_options: Mapping[str, Any] | None,
) -> tuple[ModelSet, Dataset, Answers]:
    """Model set, split data set and the set's answers: what evaluation and calibration share."""
    model_set = ModelSet.load(models)
    if not model_set.defaults:
        raise UserError(f"The model set '{models}' has no network in use.")
    opened = Archive.open(archive, storage_options)
    table = read_labels(labels, column=label_column, storage_options=storage_options)
    dataset = load_dataset(
        opened, table, get_profile(model_set.profile), horizons=horizons, modalities=model_set.inputs
    ).split(split or SplitRule())
    outputs = run_networks(model_set, dataset, opened, device=device, threads=threads)
    return model_set, dataset, answers_of(dataset, outputs)


def evaluate_models(
    archive: str,
    labels: str,
    models: str,
    out: str,
    *,
    part: str = "test",
    split: SplitRule | None = None,
    horizons: Sequence[float | None] = HORIZONS,
    draws: int = 200,
    seed: int = 0,
    label_column: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a model set on a part of the labelled objects of an archive.

    Parameters
    ----------
    archive, labels, models, out : str
        ``out`` is a folder.
    part : {"test", "validation", "train", "all"}
        ``all`` for objects that no network has seen.
    split : SplitRule, optional
        As in training.
    horizons : sequence of float or None
    draws, seed : int
        Of the bootstrap over objects.
    label_column, device, threads, storage_options
        As in training.

    Returns
    -------
    dict
        The document of ``evaluation.json``.
    """
    if part not in (*PARTS, "all"):
        raise UserError(f"Unknown part '{part}'; allowed are {', '.join((*PARTS, 'all'))}.")
    model_set, dataset, answers = open_evaluation(
        archive,
        labels,
        models,
        horizons=horizons,
        split=split,
        label_column=label_column,
        device=device,
        threads=threads,
        storage_options=storage_options,
    )
    members = np.arange(len(dataset)) if part == "all" else dataset.members(part)
    if not len(members):
        raise UserError(f"The part '{part}' has no objects: {dataset.counts()}.")
    calibration = Calibration.from_document(model_set.calibration)
    store = Store(out)
    document: dict[str, Any] = {
        "model_set_id": model_set.model_set_id,
        "calibration_id": model_set.calibration_id,
        "trained": model_set.trained,
        "calibrated": calibration.calibrated,
        "part": part,
        "split": asdict(split or SplitRule()),
        "objects": dataset.counts(),
        "interval": "95 %, bootstrap over objects",
        "results": {},
        "source_probe": source_probe(dataset),
    }
    for what in (*answers.logits, FUSED):
        log_prob = answers.log_prob(what, calibration)
        document["results"][what] = {
            horizon_name(h): _judge(dataset, answers, log_prob[:, i], members, i, draws, seed)
            for i, h in enumerate(dataset.horizons)
        }
        for h in dataset.horizons:
            _figures(store, what, horizon_name(h), document["results"][what][horizon_name(h)])
    for measure in SWEPT:
        series = sweep_series(document["results"], dataset.horizons, measure)
        if series:
            name = measure.replace("/", "-").replace(" ", "_")
            store.write_atomic(f"sweep-{name}.png", sweep_figure(series, measure.replace("_", " ")))
    store.write_json_atomic("evaluation.json", document)
    return document


def horizon_name(horizon: float | None) -> str:
    """``10d`` or ``full``."""
    return "full" if horizon is None else f"{horizon:g}d"


def _judge(
    dataset: Dataset,
    answers: Answers,
    log_prob: np.ndarray,
    members: np.ndarray,
    column: int,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Report of one modality at one horizon, in all and by availability pattern."""
    there = members[np.isfinite(log_prob[members]).all(1)]
    if not len(there):
        return {"rows": 0}
    prob = np.exp(log_prob)

    def of(rows: np.ndarray, n: int) -> dict[str, Any]:
        return report(
            dataset.label[rows], prob[rows], dataset.classes, dataset.group[rows], draws=n, seed=seed
        )

    out = of(there, draws)
    patterns = answers.mask[there, column]
    if len(np.unique(patterns)) > 1:
        out["patterns"] = {
            pattern_name(int(p)): {k: v for k, v in of(there[patterns == p], 0).items() if k != "reliability"}
            for p in np.unique(patterns)
        }
    return out


def _figures(store: Store, what: str, horizon: str, result: Mapping[str, Any]) -> None:
    if not result["rows"]:
        return
    title = f"{what}, {horizon}: {result['objects']} objects"
    name = f"{what}-{horizon}"
    matrix = np.array(result["confusion"])
    store.write_atomic(f"{name}-confusion.png", confusion_figure(matrix, list(result["counts"]), title))
    store.write_atomic(f"{name}-reliability.png", reliability_figure(result["reliability"], title))


def sweep_series(
    results: Mapping[str, Any], horizons: Sequence[float | None], measure: str
) -> dict[str, list[tuple[float, float, float, float]]]:
    """(horizon, value, low, high) of a measure for every series that has it."""
    out: dict[str, list[tuple[float, float, float, float]]] = {}
    for what, by_horizon in results.items():
        for h in horizons:
            found = by_horizon[horizon_name(h)]
            value = found.get("measures", {}).get(measure)
            if value is not None:
                low, high = found["intervals"].get(measure, (value, value))
                out.setdefault(what, []).append((_FULL if h is None else h, value, low, high))
    return out
