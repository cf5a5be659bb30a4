"""``train photometry``: a light-curve network from an archive and a label table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from applecider_batch.archive.read import Archive
from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.models import build_network
from applecider_batch.models.card import PHOTOMETRY_CHANNELS, ModelCard, Statistics
from applecider_batch.storage import Store
from applecider_batch.training.dataset import HORIZONS, Dataset, load_dataset
from applecider_batch.training.finish import finish, write_split
from applecider_batch.training.labels import LabelTable, read_labels
from applecider_batch.training.photometry_task import (
    Augmentation,
    ClassificationTask,
    Curves,
    PretrainingTask,
    curve_statistics,
)
from applecider_batch.training.splits import SplitRule
from applecider_batch.training.trainer import Trained, TrainerOptions, train

PROFILE = "paper"
VALIDATION_HORIZONS: tuple[float | None, ...] = (10.0, 30.0, 100.0, None)


@dataclass(frozen=True)
class PhotometryPreset:
    """Network, its size, and how it is trained."""

    network: str = "cls_transformer"
    config: dict[str, Any] = field(default_factory=dict)
    options: TrainerOptions = field(default_factory=TrainerOptions)
    augmentation: Augmentation = field(default_factory=Augmentation)
    gamma: float = 2.0


PRESETS: dict[str, PhotometryPreset] = {
    # Sizes, loss and rates of the paper; its TDE augmentation is what rare classes get here.
    "paper": PhotometryPreset(
        options=TrainerOptions(epochs=100, learning_rate=2e-4),
        augmentation=Augmentation(share=0.0, shift=0.0, stretch=0.0, jitter=1.0),
    ),
    "compact": PhotometryPreset(
        config={"d_model": 64, "n_heads": 4, "n_layers": 2, "d_ff": 256, "dropout": 0.1},
        options=TrainerOptions(
            epochs=60, learning_rate=1e-3, warmup_epochs=2, cosine=True, ema=0.99, patience=20
        ),
        gamma=1.0,
    ),
}


def load_curves(
    archive_url: str, labels: LabelTable, rule: SplitRule, storage_options: Mapping[str, Any] | None = None
) -> tuple[Dataset, Archive]:
    """The labelled light curves of an archive at the standard horizons, split."""
    archive = Archive.open(archive_url, storage_options)
    return load_dataset(archive, labels, get_profile(PROFILE), horizons=HORIZONS).split(rule), archive


def curves_of(dataset: Dataset, card: ModelCard | None = None) -> tuple[Curves, ModelCard]:
    """Training and validation curves of a data set; statistics from the training part unless a card is given.

    Raises
    ------
    UserError
        If a part is empty or the training part has one class only.
    """
    inputs, items = dataset.prepared.photometry, dataset.items("photometry")
    rows = dataset.members("train")
    rows = rows[items[rows, -1] >= 0]
    validation = []
    for horizon in VALIDATION_HORIZONS:
        column = dataset.column(horizon)
        here = dataset.members("validation")
        here = here[items[here, column] >= 0]
        validation.append((items[here, column], dataset.label[here]))
    if len(np.unique(dataset.label[rows])) < 2 or not all(len(i) for i, _ in validation):
        raise UserError(
            f"There is too little to train on: {dataset.counts()}.",
            hint="At least two classes must train, and some objects must validate.",
        )
    if card is None:
        mean, std = curve_statistics(inputs.values, inputs.offsets, items[rows, -1])
        statistics = Statistics(tuple(mean.tolist()), tuple(std.tolist()))
        card = ModelCard("", PROFILE, "", "photometry", normalisation={"photometry": statistics})
    curves = Curves(
        inputs.values,
        inputs.offsets,
        items[rows, -1],
        dataset.label[rows],
        validation,
        card,
        len(dataset.classes),
    )
    return curves, card


def fit_photometry(
    dataset: Dataset,
    store: Store,
    preset: PhotometryPreset,
    *,
    pretrain_epochs: int = 0,
    identity: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> tuple[Trained, ModelCard]:
    """Train on a data set that is split; returns the result and the card that holds the statistics."""
    curves, card = curves_of(dataset)
    config = {**preset.config, "n_classes": len(dataset.classes)}
    whole = {"data": data_digest(dataset), "config": config, "network": preset.network, **(identity or {})}
    whole |= {"augmentation": asdict(preset.augmentation), "gamma": preset.gamma, "pretrain": pretrain_epochs}
    torch.manual_seed(preset.options.seed)
    network = build_network(PROFILE, preset.network, **config)
    if pretrain_epochs:
        if preset.network != "cls_transformer":
            raise UserError(f"Pre-training is for the cls_transformer; given '{preset.network}'.")
        options = replace(preset.options, epochs=pretrain_epochs, head_epochs=0, patience=pretrain_epochs)
        torch.manual_seed(preset.options.seed)
        first = build_network(PROFILE, "cls_transformer_mpt", **config)
        pretrained = train(
            first,
            PretrainingTask(curves, preset.augmentation),
            options,
            store,
            stage="pretrain",
            identity=whole,
            progress=progress,
        )
        shared = {k: v for k, v in pretrained.state.items() if not k.startswith("head_")}
        network.load_state_dict(shared, strict=False)
    heads = ("fc.", "norm.") if preset.network == "cls_transformer" else ("fc.",)
    task = ClassificationTask(curves, preset.augmentation, dataset.classes, preset.gamma, heads)
    trained = train(network, task, preset.options, store, identity=whole, progress=progress)
    return trained, card


def data_digest(dataset: Dataset) -> str:
    """Digest of who is on which side, with which label and how much of a curve."""
    rows = [
        dataset.object_id.tolist(),
        dataset.label.tolist(),
        dataset.part.tolist(),
        dataset.items("photometry").tolist(),
        len(dataset.prepared.photometry.values),
    ]
    return json_digest(rows)


def train_photometry(
    archive: str,
    labels: str,
    out: str,
    models: str,
    *,
    preset: str = "paper",
    network: str | None = None,
    split: SplitRule | None = None,
    pretrain_epochs: int = 0,
    head_epochs: int = 0,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    label_column: str | None = None,
    name: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train a light-curve network and put it into a model set.

    Parameters
    ----------
    archive, labels, out, models : str
        Archive, label table, the training's folder (resumed if it is there), model set (made if absent).
    preset : {"paper", "compact"}
    network : str, optional
        ``cls_transformer`` or ``informer``; the preset's if not given.
    split : SplitRule, optional
    pretrain_epochs : int
        Masked-event pre-training on the training part first; 0: none.
    head_epochs : int
        Gradual unfreezing: so many epochs of the head alone, then the encoder at a tenth of its rate.
    epochs : int, optional
        At most; the preset's if not given.
    seed, device, threads
        As `trainer.TrainerOptions`.
    label_column, name : str, optional
        Column of the class; name in the set.
    storage_options : mapping, optional
        For the archive.
    progress : bool

    Returns
    -------
    dict
        Summary, JSON-ready.

    Raises
    ------
    UserError
        For options or data that cannot be used.
    """
    if preset not in PRESETS:
        raise UserError(f"Unknown preset '{preset}'; allowed are {', '.join(PRESETS)}.")
    chosen = PRESETS[preset]
    config = chosen.config
    if network == "informer":
        config = {
            k: v for k, v in config.items() if k in ("d_model", "n_heads", "n_layers", "d_ff", "dropout")
        }
    options = replace(chosen.options, seed=seed, device=device, threads=threads, head_epochs=head_epochs)
    if epochs is not None:
        options = replace(options, epochs=epochs)
    if head_epochs:
        options = replace(options, head_learning_rate=chosen.options.learning_rate * 2.5)
        options = replace(options, learning_rate=chosen.options.learning_rate / 4)
    chosen = replace(chosen, config=config, options=options, network=network or chosen.network)
    table = read_labels(labels, column=label_column, storage_options=storage_options)
    dataset, opened = load_curves(archive, table, split or SplitRule(), storage_options)
    store = Store(out)
    digest = write_split(store, dataset.split_table())
    trained, card = fit_photometry(dataset, store, chosen, pretrain_epochs=pretrain_epochs, progress=progress)
    return finish(
        store,
        models,
        trained,
        name=name or chosen.network,
        profile=PROFILE,
        network=chosen.network,
        modality="photometry",
        config={**chosen.config, "n_classes": len(dataset.classes)},
        classes=dataset.classes,
        feature_names=PHOTOMETRY_CHANNELS,
        normalisation=card.normalisation,
        data={
            "archive": opened.snapshot.logical_digest,
            "snapshot": opened.snapshot.id,
            "counts": dataset.counts(),
            "split": asdict(split or SplitRule()),
            "split_digest": digest,
            "labels_left_out": table.left_out,
        },
        asked={"preset": preset, "pretrain_epochs": pretrain_epochs, **asdict(options)},
        metrics=trained.best,
    )
