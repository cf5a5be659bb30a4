"""``train image``: AstroMiNN from the packets of an archive and a label table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from applecider_batch.archive.read import Archive
from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.models import build_network
from applecider_batch.models.card import ModelCard
from applecider_batch.models.manifest import refuse_packaged
from applecider_batch.storage import Store
from applecider_batch.training.dataset import Dataset, load_dataset
from applecider_batch.training.finish import finish, write_split
from applecider_batch.training.image_task import (
    ImageAugmentation,
    ImageExamples,
    ImageTask,
    load_examples,
    metadata_statistics,
)
from applecider_batch.training.setup import TrainingRequest, cache_folder, choose_preset, data_record
from applecider_batch.training.splits import SplitRule
from applecider_batch.training.trainer import Trained, TrainerOptions, train

PROFILE = "paper"
MAX_DAYS = 100.0


@dataclass(frozen=True)
class ImagePreset:
    """Network, its size, and how it is trained."""

    network: str
    options: TrainerOptions
    config: dict[str, Any] = field(default_factory=dict)
    augmentation: ImageAugmentation = field(default_factory=ImageAugmentation)
    gamma: float = 2.5


PRESETS: dict[str, ImagePreset] = {
    "paper": ImagePreset(
        "astrominn",
        TrainerOptions(epochs=60, learning_rate=2e-4, warmup_epochs=2, cosine=True, ema=0.995, patience=15),
    ),
    "compact": ImagePreset(
        "astrominn_compact",
        TrainerOptions(epochs=40, learning_rate=1e-3, warmup_epochs=2, cosine=True, ema=0.99, patience=15),
        augmentation=ImageAugmentation(hide=0.1),
    ),
}


def fit_image(
    examples: ImageExamples, store: Store, preset: ImagePreset, *, progress: bool = False
) -> tuple[Trained, ModelCard]:
    """Train on examples; returns the result and the card that holds the metadata's statistics.

    Raises
    ------
    UserError
        If fewer than two classes train, or nothing validates.
    """
    rows = examples.members("train")
    if len(np.unique(examples.label[rows])) < 2 or not len(examples.members("validation")):
        raise UserError(
            f"There is too little to train on: {len(rows)} packets with three decodable stamps to train, "
            f"{len(examples.members('validation'))} to validate.",
            hint="At least two classes must train, and some objects must validate.",
        )
    names = examples.feature_names
    card = ModelCard(
        "",
        PROFILE,
        "",
        "image",
        feature_names=names,
        normalisation={"metadata": metadata_statistics(examples)},
    )
    config = {**preset.config, "n_classes": len(examples.classes)}
    identity = {
        "config": config,
        "network": preset.network,
        "augmentation": asdict(preset.augmentation),
        "gamma": preset.gamma,
        "data": json_digest([getattr(examples, n).tolist() for n in ("candid", "label", "part")]),
    }
    torch.manual_seed(preset.options.seed)
    network = build_network(PROFILE, preset.network, **config)
    task = ImageTask(examples, card, preset.augmentation, preset.gamma)
    return train(network, task, preset.options, store, identity=identity, progress=progress), card


def load_images(
    archive: Archive, labels: Any, rule: SplitRule, store: Store, max_days: float
) -> tuple[Dataset, ImageExamples]:
    """The split data set of an archive's labelled objects, and the packets to train on."""
    profile = get_profile(PROFILE)
    dataset = load_dataset(archive, labels, profile, modalities=("image",)).split(rule)
    return dataset, load_examples(archive, dataset, profile, cache_folder(store), max_days)


def train_image(request: TrainingRequest, *, max_days: float = MAX_DAYS) -> dict[str, Any]:
    """Train an image and metadata network and put it into a model set.

    Parameters
    ----------
    request : TrainingRequest
    max_days : float
        Packets up to so many days after t0 are examples.

    Returns
    -------
    dict
        Summary, JSON-ready.

    Raises
    ------
    UserError
        For options or data that cannot be used.
    """
    refuse_packaged(request.models)
    chosen = choose_preset(PRESETS, request.preset)
    chosen = replace(chosen, options=request.options(chosen.options))
    store, (opened, table) = Store(request.out), request.open()
    dataset, examples = load_images(opened, table, request.split, store, max_days)
    digest = write_split(store, dataset.split_table())
    trained, card = fit_image(examples, store, chosen, progress=request.progress)
    packets = {part: len(examples.members(part)) for part in ("train", "validation")}
    return finish(
        store,
        request.models,
        trained,
        name=request.name or chosen.network,
        profile=PROFILE,
        network=chosen.network,
        modality="image",
        config={**chosen.config, "n_classes": len(dataset.classes)},
        classes=dataset.classes,
        feature_names=examples.feature_names,
        normalisation=card.normalisation,
        data=data_record(opened, table, request.split, dataset.counts(), digest, packets=packets),
        asked={"preset": request.preset, "max_days": max_days, **asdict(chosen.options)},
        metrics=trained.best,
    )
