"""``train joint``: all networks of a model set on the objects that several modalities have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from applecider_batch.archive.read import Archive
from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import Profile, get_profile
from applecider_batch.models.importing import put_network
from applecider_batch.models.manifest import refuse_packaged
from applecider_batch.models.model_set import ModelSet, NetworkEntry
from applecider_batch.storage import Store
from applecider_batch.training.dataset import Dataset, load_dataset
from applecider_batch.training.finish import training_data_text, training_ids, write_split
from applecider_batch.training.joint_task import JointExamples, JointNetwork, JointTask
from applecider_batch.training.setup import TrainingRequest, cache_folder, choose_preset, data_record
from applecider_batch.training.splits import PARTS
from applecider_batch.training.stamp_cache import build_cache
from applecider_batch.training.trainer import Trained, TrainerOptions, defined, train

HORIZON_DAYS = 10.0
MIN_MODALITIES = 2

PRESETS: dict[str, TrainerOptions] = {
    "paper": TrainerOptions(
        epochs=30, batch_size=32, learning_rate=5e-5, warmup_epochs=1, cosine=True, ema=0.99, patience=10
    ),
    "compact": TrainerOptions(
        epochs=20, batch_size=32, learning_rate=2e-4, warmup_epochs=1, cosine=True, ema=0.99, patience=10
    ),
}


def joint_examples(
    archive: Archive,
    dataset: Dataset,
    profile: Profile,
    store: Store,
    modalities: list[str],
    min_modalities: int,
) -> JointExamples:
    """The objects of a split data set (one horizon) that have at least so many of the modalities."""
    stamps = None
    items = {m: dataset.items(m)[:, 0] for m in modalities}
    if "image" in items:
        stamps = build_cache(cache_folder(store), archive, dataset.prepared.image, profile)
        usable = np.append(stamps.usable, False)  # -1: none
        items["image"] = np.where(usable[items["image"]], items["image"], -1)
    if "photometry" in items:
        length = np.append(np.diff(dataset.prepared.photometry.offsets), 0)
        items["photometry"] = np.where(length[items["photometry"]] > 0, items["photometry"], -1)
    kept = np.flatnonzero(np.sum([i >= 0 for i in items.values()], axis=0) >= min_modalities)
    return JointExamples(
        dataset.label[kept],
        dataset.part[kept],
        {m: i[kept] for m, i in items.items()},
        dataset.prepared,
        stamps,
    )


def fit_joint(
    examples: JointExamples,
    entries: Mapping[str, NetworkEntry],
    store: Store,
    options: TrainerOptions,
    *,
    progress: bool = False,
) -> tuple[Trained, dict[str, float]]:
    """Train the networks together; returns the result and the validation measures before.

    Raises
    ------
    UserError
        If fewer than two classes train, or nothing validates.
    """
    rows = examples.members("train")
    if len(np.unique(examples.label[rows])) < 2 or not len(examples.members("validation")):
        counts = {part: len(examples.members(part)) for part in PARTS}
        raise UserError(
            f"There are too few objects that several modalities have in common: {counts}.",
            hint="Give a longer --horizon or fewer --min-modalities, or more data.",
        )
    cards = {m: entry.card for m, entry in entries.items()}
    torch.manual_seed(options.seed)
    network = JointNetwork({m: e.build().requires_grad_(True) for m, e in entries.items()}, cards)
    task = JointTask(examples, cards)
    network.eval()
    with torch.inference_mode():
        before = defined(task.evaluate(network))
    items = [examples.items[m].tolist() for m in cards]
    identity = {
        "weights": [card.weights_sha256 for card in cards.values()],
        "data": json_digest([examples.label.tolist(), examples.part.tolist(), items]),
    }
    return train(network, task, options, store, identity=identity, progress=progress), before


def check_sides(dataset: Dataset, entries: Mapping[str, NetworkEntry]) -> None:
    """Refuse a split whose validation or test objects trained one of the networks."""
    held_out = dataset.part > 0
    for entry in entries.values():
        trained_on = dataset.trained_on(entry.training_ids() or frozenset())
        if wrong := int((trained_on & held_out).sum()):
            raise UserError(
                f"{wrong} validation or test objects of this split trained the network '{entry.name}'.",
                hint="Give the split and the label table that the networks were trained with.",
            )


def train_joint(
    request: TrainingRequest,
    *,
    result: str,
    horizon: float | None = HORIZON_DAYS,
    min_modalities: int = MIN_MODALITIES,
) -> dict[str, Any]:
    """Fine-tune the networks in use of a set together and write them as another set.

    Parameters
    ----------
    request : TrainingRequest
        ``models`` is the set to start from, which is not changed; ``preset`` decides rates and epochs, the
        sizes are those of the set's networks; ``split`` must be what the networks were trained with.
    result : str
        The model set to write; its networks of the same names are replaced.
    horizon : float or None
        Days after t0 at which the objects are seen; None: the full history.
    min_modalities : int
        Objects with at least so many of the set's modalities; the others are masked.

    Returns
    -------
    dict
        Summary, JSON-ready.

    Raises
    ------
    UserError
        For options or data that cannot be used.
    """
    refuse_packaged(result)
    options = request.options(choose_preset(PRESETS, request.preset))
    store, model_set = Store(request.out), ModelSet.load(request.models)
    entries = model_set.defaults
    if not 1 <= min_modalities <= len(entries) or len(entries) < 2:
        raise UserError(
            f"The model set '{request.models}' has networks in use for {', '.join(entries) or 'nothing'}; "
            f"joint training needs two or more, and at least {min_modalities} of them an object."
        )
    if model_set.store.url == Store(result).url:
        raise UserError(
            f"Joint training starts from the model set '{request.models}' and cannot write into it.",
            hint="Name another set as the result.",
        )
    opened, table = request.open()
    profile = get_profile(model_set.profile)
    dataset = load_dataset(opened, table, profile, horizons=[horizon], modalities=model_set.inputs)
    dataset = dataset.split(request.split)
    check_sides(dataset, entries)
    examples = joint_examples(opened, dataset, profile, store, list(entries), min_modalities)
    digest = write_split(store, dataset.split_table())
    trained, before = fit_joint(examples, entries, store, options, progress=request.progress)
    available = {m: int((i >= 0).sum()) for m, i in examples.items.items()}
    common = {part: len(examples.members(part)) for part in PARTS}
    data = data_record(
        opened, table, request.split, dataset.counts(), digest, common_objects=common, with_modality=available
    )
    asked = {
        "preset": request.preset,
        "horizon_days": horizon,
        "min_modalities": min_modalities,
        **asdict(options),
    }
    own = frozenset(training_ids(store))
    for modality, entry in entries.items():
        joint = {"validation": trained.best, "validation_before": before, "data": data, "options": asked}
        earlier = entry.training_ids()
        put_network(
            Store(result),
            replace(
                entry.card,
                trained=True,
                training_data=f"{entry.card.training_data} Then jointly: {training_data_text(data)}",
                metrics={**entry.card.metrics, "joint": joint},
                notes=f"Fine-tuned with {', '.join(m for m in entries if m != modality)}; kept epoch "
                f"{trained.best_epoch} of {len(trained.history)}.",
            ),
            _of_network(trained, modality),
            model_set.profile,
            default=None,
            replace=True,
            # Of a network that does not say what trained it, that stays unknown.
            training_ids=None if earlier is None and entry.card.trained else own | (earlier or frozenset()),
        )
    summary = {
        "networks": [entry.name for entry in entries.values()],
        "model_set": result,
        "model_set_digest": ModelSet.load(result, check_weights=False).digest,
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
        "validation": trained.best,
        "validation_before": before,
        "data": data,
    }
    store.write_json_atomic("training.json", {**summary, "options": asked})
    return summary


def _of_network(trained: Trained, modality: str) -> dict[str, torch.Tensor]:
    prefix = f"networks.{modality}."
    return {k.removeprefix(prefix): v for k, v in trained.state.items() if k.startswith(prefix)}
