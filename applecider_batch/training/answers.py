"""A model set's answers on a labelled data set: what evaluation and calibration have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import Profile, get_profile
from applecider_batch.inference.answers import answer_rows
from applecider_batch.inference.calibration import FUSED, Calibration
from applecider_batch.inference.fusion import MODALITIES, mask_and_count
from applecider_batch.inference.predictor import Predictor
from applecider_batch.inference.shard import LocalPort, ShardOutputs, infer, stamp_reader
from applecider_batch.models.model_set import ModelSet
from applecider_batch.training.dataset import Dataset, load_dataset
from applecider_batch.training.setup import LabelledData

BATCH = 256


@dataclass(frozen=True)
class Answers:
    """What a model set says about a data set.

    Attributes
    ----------
    logits : dict of modality -> ndarray, float64, shape (n_objects, n_horizons, 5)
        Not calibrated; NaN where the modality is not there.
    """

    logits: dict[str, np.ndarray]

    @property
    def mask(self) -> np.ndarray:
        """Modalities that answered (sum of bits); int64 (n_objects, n_horizons)."""
        shape = next(iter(self.logits.values())).shape[:2]
        there = [
            np.isfinite(self.logits[m]).all(-1) if m in self.logits else np.zeros(shape, bool)
            for m in MODALITIES
        ]
        mask, _ = mask_and_count(np.stack(there, -1).reshape(-1, len(MODALITIES)))
        return mask.astype(np.int64).reshape(shape)

    def log_prob(self, what: str, calibration: Calibration) -> np.ndarray:
        """Calibrated log probabilities of a modality or ``fused``; (n_objects, n_horizons, 5)."""
        shape = next(iter(self.logits.values())).shape
        rows = answer_rows({m: v.reshape(-1, shape[2]) for m, v in self.logits.items()}, calibration)
        flat = rows.fused if what == FUSED else rows.log_prob[:, MODALITIES.index(what)]
        return flat.reshape(shape)


def run_networks(
    model_set: ModelSet,
    dataset: Dataset,
    archive: Archive,
    *,
    device: str,
    threads: int,
    modalities: Sequence[str] = MODALITIES,
) -> ShardOutputs:
    """Run the networks in use (of some modalities) over all items of a data set."""
    profile = get_profile(model_set.profile)
    ports = {
        m: LocalPort(Predictor(entry, device=device, threads=threads))
        for m, entry in model_set.defaults.items()
        if m in modalities
    }
    return infer(
        dataset.prepared,
        stamp_reader(archive, dataset.prepared.image, profile),
        ports,
        batch_size=dict.fromkeys(MODALITIES, BATCH),
        picture_size=model_set.picture_size,
        calibration=Calibration.from_document(model_set.calibration),
    )


def answers_of(dataset: Dataset, outputs: ShardOutputs) -> Answers:
    """What the networks' outputs say about a data set's objects."""
    logits = {}
    for modality, own in outputs.logits.items():
        found = np.concatenate([own, np.full((1, own.shape[1]), np.nan)])  # -1: absent
        logits[modality] = found[dataset.items(modality)].astype(np.float64)
    return Answers(logits)


def ask(model_set: ModelSet, dataset: Dataset, archive: Archive, **where: Any) -> Answers:
    """The networks' answers; arguments as :func:`run_networks`."""
    return answers_of(dataset, run_networks(model_set, dataset, archive, **where))


@dataclass(frozen=True)
class Opened:
    """A model set, a split data set, and what the set says about it.

    Attributes
    ----------
    model_set : ModelSet
    archive : Archive
    profile : Profile
    dataset : Dataset
    answers : Answers
    trained_on : ndarray of bool, shape (n_objects,)
        Objects that trained a network in use, as far as the cards say.
    training_known : bool
        Whether the cards of all networks in use say.
    """

    model_set: ModelSet
    archive: Archive
    profile: Profile
    dataset: Dataset
    answers: Answers
    trained_on: np.ndarray
    training_known: bool


def open_evaluation(data: LabelledData, horizons: Sequence[float | None]) -> Opened:
    """Read the model set and the labelled data, split them and ask the networks."""
    model_set = ModelSet.load(data.models)
    if not model_set.defaults:
        raise UserError(f"The model set '{data.models}' has no network in use.")
    (opened, table), profile = data.open(), get_profile(model_set.profile)
    dataset = load_dataset(opened, table, profile, horizons=horizons, modalities=model_set.inputs)
    dataset = dataset.split(data.split)
    answers = ask(model_set, dataset, opened, device=data.device, threads=data.threads)
    ids, known = model_set.training_ids()
    return Opened(model_set, opened, profile, dataset, answers, dataset.trained_on(ids), known)
