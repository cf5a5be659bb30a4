"""``models fit-anomaly``: the frozen anomaly reference of a model set.

Forests and whitening are fitted on the latents of the *training* objects, at all horizons together; the
reference is the scores of the *validation* objects, which trained no weight. Only rows in scope take part in
either, because only those will be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.columns import equals
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.anomaly import ITEM_SCORES, LatentScorer, fit_scorer, row_scores
from applecider_batch.inference.anomaly_file import FILE, fitted_with, to_bytes
from applecider_batch.inference.anomaly_reference import (
    FLAG_LEVELS,
    MIN_ANY,
    AnomalyReference,
    Judgement,
)
from applecider_batch.inference.answers import RowAnswers, answer_rows
from applecider_batch.inference.fusion import MODALITIES
from applecider_batch.inference.shard import ShardOutputs
from applecider_batch.models.manifest import refuse_packaged
from applecider_batch.models.model_set import ModelSet, update_files
from applecider_batch.training.answers import answers_of, run_networks
from applecider_batch.training.dataset import HORIZONS, Dataset, load_dataset
from applecider_batch.training.labels import read_labels
from applecider_batch.training.splits import PARTS, SplitRule

_ANSWERED = ("seed", "objects", "latents_fitted", "trained_on_left_out", "training_known")


@dataclass(frozen=True)
class ScoredObjects:
    """A data set as the networks see it, in its own shape: n objects, H horizons.

    Attributes
    ----------
    dataset : Dataset
    outputs : ShardOutputs
    answers : RowAnswers
        Of n x H rows, horizons fastest.
    in_scope : ndarray, bool, shape (n, H)
    """

    dataset: Dataset
    outputs: ShardOutputs
    answers: RowAnswers
    in_scope: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """In scope and answered by some network, bool (n, H)."""
        return self.in_scope & (self.answers.predicted >= 0).reshape(self.in_scope.shape)

    def values(self, scorers: Mapping[str, LatentScorer]) -> np.ndarray:
        """`ITEM_SCORES` by object, horizon and modality, float32 (n, H, M, 4)."""
        prepared, shape = self.dataset.prepared, self.in_scope.shape
        absent = np.full((*shape, len(ITEM_SCORES)), np.nan, np.float32)
        parts = [
            row_scores(self.outputs, prepared, m, scorers.get(m))[self.dataset.row]
            if m in self.outputs.energies
            else absent
            for m in MODALITIES
        ]
        out = np.stack(parts, axis=2)
        out[~self.answers.available.reshape(*shape, len(MODALITIES))] = np.nan
        return out

    def judge(self, reference: AnomalyReference) -> Judgement:
        """All objects at all horizons against a reference, as in a run; rows as in ``answers``."""
        n, h = self.in_scope.shape
        days = np.array([np.nan if d is None else d for d in self.dataset.horizons])
        values = self.values(reference.scorers)
        return reference.judge(
            values.reshape(n * h, *values.shape[2:]),
            self.answers.divergence,
            self.answers.mask,
            self.answers.predicted,
            np.tile(days, n),
            self.in_scope.ravel(),
        )


def scored_objects(dataset: Dataset, outputs: ShardOutputs) -> ScoredObjects:
    """Bring the networks' outputs over a data set's items into the shape of its objects."""
    found = answers_of(dataset, outputs)
    flat = {m: logits.reshape(-1, logits.shape[-1]) for m, logits in found.logits.items()}
    rows = dataset.prepared.rows
    in_scope = equals(rows, "gate", "in_scope")[dataset.row]
    return ScoredObjects(dataset, outputs, answer_rows(flat, outputs.calibration), in_scope)


def fit_reference(
    scored: ScoredObjects, *, seed: int = 0, document: Mapping[str, Any] | None = None
) -> AnomalyReference:
    """Fit on the training part, calibrate on the validation part.

    Parameters
    ----------
    scored : ScoredObjects
        Of a data set that is split as the networks were trained.
    seed : int
        Of the forests.
    document : mapping, optional
        Kept with the reference.

    Raises
    ------
    UserError
        If the parts are too small.
    """
    dataset, usable = scored.dataset, scored.usable
    train, validation = dataset.members("train"), dataset.members("validation")
    validation = validation[usable[validation].any(axis=1)]
    if len(validation) < MIN_ANY:
        raise UserError(
            f"There are {len(validation)} validation objects in scope, and a reference needs {MIN_ANY}: "
            f"{dataset.counts()}.",
            hint="Give more labelled objects, or a larger --validation share in training and here.",
        )
    scorers: dict[str, LatentScorer] = {}
    fitted: dict[str, int] = {}
    for modality in scored.outputs.latents:
        items = dataset.items(modality)[train]
        wanted = (items >= 0) & usable[train]
        unique, first = np.unique(items[wanted], return_index=True)
        label = np.repeat(dataset.label[train], len(dataset.horizons)).reshape(items.shape)[wanted][first]
        latent = scored.outputs.latents[modality][unique]
        finite = np.isfinite(latent).all(axis=1) & (latent.shape[1] > 0)
        scorer = fit_scorer(latent[finite], np.array(dataset.classes)[label[finite]], seed)
        fitted[modality] = int(finite.sum())
        if scorer is not None:
            scorers[modality] = scorer
    answers, shape = scored.answers, usable.shape
    predicted = np.where(usable, answers.predicted.reshape(shape), -1)[validation]
    counts = {
        "seed": seed,
        "objects": len(validation),
        "latents_fitted": fitted,
        "objects_by_horizon": [int(c) for c in (predicted >= 0).sum(axis=0)],
    }
    return AnomalyReference(
        scorers=scorers,
        horizons=dataset.horizons,
        classes=dataset.classes,
        values=scored.values(scorers)[validation],
        divergence=answers.divergence.reshape(shape)[validation].astype(np.float32),
        mask=answers.mask.reshape(shape)[validation].astype(np.int16),
        predicted=predicted.astype(np.int16),
        document={**counts, **(document or {})},
    )


def fit_anomaly(
    archive: str,
    labels: str,
    models: str,
    *,
    split: SplitRule | None = None,
    horizons: Sequence[float | None] = HORIZONS,
    seed: int = 0,
    label_column: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fit an anomaly reference and write it into the model set.

    Parameters
    ----------
    archive, labels, models : str
    split : SplitRule, optional
        As in training; objects that a network in use says it was trained on never enter the reference.
    horizons : sequence of float or None
        A run's rows are compared with the nearest of these.
    seed : int
        Of the forests.
    label_column, device, threads, storage_options
        As in training.

    Returns
    -------
    dict
        ``model_set``, ``model_set_digest``, ``anomaly_ref_id``, what it was fitted on, and ``groups``: with
        what the rows of a run can be compared, and which flags can fire there.
    """
    refuse_packaged(models)
    model_set = ModelSet.load(models)
    if not model_set.defaults:
        raise UserError(f"The model set '{models}' has no network in use.")
    opened = Archive.open(archive, storage_options)
    table = read_labels(labels, column=label_column, storage_options=storage_options)
    rule = split or SplitRule()
    profile = get_profile(model_set.profile)
    dataset = load_dataset(opened, table, profile, horizons=horizons, modalities=model_set.inputs).split(rule)
    ids, known = model_set.training_ids()
    dataset, left_out = _untrained_validation(dataset, ids)
    outputs = run_networks(model_set, dataset, opened, device=device, threads=threads)
    reference = fit_reference(
        scored_objects(dataset, outputs),
        seed=seed,
        document={
            "fitted_with": fitted_with(model_set),
            "archive": opened.snapshot.logical_digest,
            "split": rule.record(),
            "counts": dataset.counts(),
            "trained_on_left_out": left_out,
            "training_known": known,
        },
    )
    changed = update_files(models, anomaly=(FILE, to_bytes(reference)))
    return {
        "model_set": models,
        "model_set_digest": changed.digest,
        "anomaly_ref_id": changed.anomaly_ref_id,
        "trained": changed.trained,
        **{name: reference.document[name] for name in _ANSWERED},
        "groups": groups_of(reference),
    }


def _untrained_validation(dataset: Dataset, training_ids: Collection[str]) -> tuple[Dataset, int]:
    """The data set without the validation objects that trained a network after all, and their number."""
    wrong = dataset.trained_on(training_ids) & (dataset.part == PARTS.index("validation"))
    return replace(dataset, part=np.where(wrong, -1, dataset.part).astype(np.int8)), int(wrong.sum())


def groups_of(reference: AnomalyReference) -> list[dict[str, Any]]:
    """Every comparison that occurs in the reference itself: name, objects, lowest p, flags that can fire."""
    out = []
    for column in range(len(reference.horizons)):
        pairs = np.stack([reference.mask[:, column], reference.predicted[:, column]], axis=1)
        names: dict[str, int] = {}
        for bits, cls in np.unique(pairs[pairs[:, 1] >= 0], axis=0).tolist():
            group = reference.group(column, bits, cls)
            if group is not None:
                names[group.name] = group.n
        for name, n in sorted(names.items()):
            floor = 1.0 / (n + 1)
            can = sum(floor <= level for level in FLAG_LEVELS)
            out.append({"group": name, "n_ref": n, "lowest_p": floor, "flags_up_to": can})
    return out
