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
from applecider_batch.features.curve_summary import CURVE_SUMMARY, SUMMARY_NAMES
from applecider_batch.features.profiles import get_profile
from applecider_batch.models import build_network
from applecider_batch.models.card import PHOTOMETRY_CHANNELS, ModelCard, Statistics
from applecider_batch.models.manifest import refuse_packaged
from applecider_batch.storage import Store
from applecider_batch.training.augment import Augmentation, RaggedCurves
from applecider_batch.training.dataset import HORIZONS, Dataset, load_dataset
from applecider_batch.training.finish import finish, write_split
from applecider_batch.training.labels import LabelTable
from applecider_batch.training.photometry_task import (
    ClassificationTask,
    Curves,
    PretrainingTask,
    curve_statistics,
    summary_statistics,
)
from applecider_batch.training.setup import TrainingRequest, choose_preset, data_record
from applecider_batch.training.splits import SplitRule
from applecider_batch.training.trainer import Trained, TrainerOptions, checkpoint_name, train
from applecider_batch.training.trees import TreeOptions

PROFILE = "paper"
_SUMMARY_CLIP = 4.0
VALIDATION_HORIZONS: tuple[float | None, ...] = (10.0, 30.0, 100.0, None)


@dataclass(frozen=True)
class PhotometryPreset:
    """Network, its size, and how it is trained; ``versions`` as `photometry_task.ClassificationTask`."""

    network: str = "cls_transformer"
    config: dict[str, Any] = field(default_factory=dict)
    options: TrainerOptions = field(default_factory=TrainerOptions)
    augmentation: Augmentation = field(default_factory=Augmentation)
    gamma: float = 2.0
    versions: int = 0


TABULAR = "tabular_ensemble"
_TABULAR = PhotometryPreset(
    network=TABULAR,
    options=TrainerOptions(
        epochs=80,
        batch_size=128,
        learning_rate=1.5e-3,
        weight_decay=2e-2,
        warmup_epochs=2,
        cosine=True,
        ema=0.99,
        patience=80,
    ),
    augmentation=Augmentation(horizons=(3.0, 150.0)),
    gamma=0.0,
    versions=16,
)

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


_INFORMER = ("d_model", "n_heads", "n_layers", "d_ff", "dropout")


def preset_of(name: str, network: str | None = None) -> PhotometryPreset:
    """The recipe of a preset for a network (None: the paper's transformer).

    Raises
    ------
    UserError
        If there is no such preset.
    """
    preset = choose_preset(PRESETS, name)
    if network == TABULAR:
        return _TABULAR if name == "compact" else replace(_TABULAR, config={"members": 8, "rounds": 240})
    if network == "informer":
        preset = replace(preset, config={k: v for k, v in preset.config.items() if k in _INFORMER})
    return replace(preset, network=network or preset.network)


def load_curves(
    archive_url: str,
    labels: LabelTable,
    rule: SplitRule,
    storage_options: Mapping[str, Any] | None = None,
    *,
    summary: bool = False,
) -> tuple[Dataset, Archive]:
    """The labelled light curves of an archive at the standard horizons, split; with summaries if asked."""
    archive = Archive.open(archive_url, storage_options)
    wanted = ("photometry", CURVE_SUMMARY) if summary else ("photometry",)
    dataset = load_dataset(archive, labels, get_profile(PROFILE), horizons=HORIZONS, modalities=wanted)
    return dataset.split(rule), archive


def curves_of(dataset: Dataset, summary: bool = False) -> Curves:
    """Training and validation curves of a data set, with a card of the training part's statistics.

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
        validation.append((items[here, column], here))
    if len(np.unique(dataset.label[rows])) < 2 or not all(len(i) for i, _ in validation):
        raise UserError(
            f"There is too little to train on: {dataset.counts()}.",
            hint="At least two classes must train, and some objects must validate.",
        )
    statistics: dict[str, Statistics | None] = {
        "photometry": _statistics(*curve_statistics(inputs.values, inputs.offsets, items[rows, -1]))
    }
    features: tuple[str, ...] = PHOTOMETRY_CHANNELS
    if summary:
        assert inputs.curve_summary is not None
        values = inputs.curve_summary.values[np.unique(items[rows])]
        statistics["summary"] = _statistics(*summary_statistics(values), clip=_SUMMARY_CLIP)
        features += SUMMARY_NAMES
    card = ModelCard(
        "",
        PROFILE,
        "",
        "photometry",
        class_order=dataset.classes,
        feature_names=features,
        normalisation=statistics,
    )
    ragged = RaggedCurves(inputs.values, inputs.offsets, inputs.curve_summary if summary else None)
    curves = Curves(ragged, items[rows, -1], dataset.label[rows], [], card)
    five = curves.to_five[dataset.label]
    curves.validation = [(chosen, five[here]) for chosen, here in validation]
    return curves


def _statistics(mean: np.ndarray, std: np.ndarray, clip: float | None = None) -> Statistics:
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()), clip)


def fit_photometry(
    dataset: Dataset,
    store: Store,
    preset: PhotometryPreset,
    *,
    pretrain_epochs: int = 0,
    identity: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> tuple[Trained, Curves]:
    """Train on a data set that is split; returns the result, and the curves with their statistics."""
    curves = curves_of(dataset, summary=preset.network == TABULAR)
    config = network_config(preset, curves)
    whole = {"data": data_digest(dataset), "config": config, "network": preset.network, **(identity or {})}
    whole |= {"augmentation": asdict(preset.augmentation), "gamma": preset.gamma, "pretrain": pretrain_epochs}
    whole |= {"versions": preset.versions, "classes": dataset.classes}
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
    task = ClassificationTask(
        curves, preset.augmentation, preset.gamma, heads, preset.versions, preset.options.seed
    )
    if preset.network == TABULAR and not store.exists(checkpoint_name()):
        c = network.config
        state = task.fit_trees(TreeOptions(rounds=c.rounds, leaves=c.leaves, depth=c.depth))
        network.trees.load_state_dict(state)
    trained = train(network, task, preset.options, store, identity=whole, progress=progress)
    return trained, curves


def network_config(preset: PhotometryPreset, curves: Curves) -> dict[str, Any]:
    """What a preset's network is built with for these curves' classes."""
    config = {**preset.config, "n_classes": len(curves.card.class_order)}
    return config | ({"to_five": curves.to_five.tolist()} if preset.network == TABULAR else {})


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
    request: TrainingRequest,
    *,
    network: str | None = None,
    class_set: str = "five",
    pretrain_epochs: int = 0,
    head_epochs: int = 0,
) -> dict[str, Any]:
    """Train a light-curve network and put it into a model set.

    Parameters
    ----------
    request : TrainingRequest
    network : str, optional
        ``cls_transformer`` (the paper's, if not given), ``informer`` or ``tabular_ensemble``.
    class_set : {"five", "ten"}
        Classes of the network's outputs; ten are summed to five when it is used.
    pretrain_epochs : int
        Masked-event pre-training on the training part first; 0: none.
    head_epochs : int
        Gradual unfreezing: so many epochs of the head alone, then the encoder at a tenth of its rate.

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
    chosen = preset_of(request.preset, network)
    options = replace(request.options(chosen.options), head_epochs=head_epochs)
    if head_epochs:
        options = replace(options, head_learning_rate=chosen.options.learning_rate * 2.5)
        options = replace(options, learning_rate=chosen.options.learning_rate / 4)
    chosen = replace(chosen, options=options)
    store, table = Store(request.out), request.read_labels(class_set)
    summary = chosen.network == TABULAR
    dataset, opened = load_curves(
        request.archive, table, request.split, request.storage_options, summary=summary
    )
    digest = write_split(store, dataset.split_table())
    trained, curves = fit_photometry(
        dataset, store, chosen, pretrain_epochs=pretrain_epochs, progress=request.progress
    )
    return finish(
        store,
        request.models,
        trained,
        name=request.name or chosen.network,
        profile=PROFILE,
        network=chosen.network,
        modality="photometry",
        config=network_config(chosen, curves),
        classes=dataset.classes,
        feature_names=curves.card.feature_names,
        normalisation=curves.card.normalisation,
        data=data_record(opened, table, request.split, dataset.counts(), digest),
        asked={
            "preset": request.preset,
            "class_set": class_set,
            "pretrain_epochs": pretrain_epochs,
            **asdict(options),
        },
        metrics=trained.best,
    )
