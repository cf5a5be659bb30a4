"""From trained weights to a network of a model set, with a card that says what it is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from applecider_batch.features.profiles import get_profile
from applecider_batch.models.card import ModelCard, Statistics
from applecider_batch.models.importing import put_network
from applecider_batch.storage import Store
from applecider_batch.training.dataset import split_digest
from applecider_batch.training.trainer import Trained


def write_split(store: Store, table: Any) -> str:
    """Write ``split.parquet`` and return its digest."""
    with store.open_output("split.parquet") as out:
        pq.write_table(table, out, compression="zstd")
    return split_digest(table)


def training_ids(store: Store) -> list[str]:
    """Names of the objects that trained, from a training's ``split.parquet``."""
    with store.open_input("split.parquet") as source:
        table = pq.read_table(source)
    return table.filter(pc.equal(table.column("part"), "train")).column("objectId").to_pylist()


def finish(
    store: Store,
    models: str,
    trained: Trained,
    *,
    name: str,
    profile: str,
    network: str,
    modality: str,
    config: Mapping[str, Any],
    classes: tuple[str, ...],
    feature_names: tuple[str, ...],
    normalisation: Mapping[str, Statistics | None],
    data: Mapping[str, Any],
    asked: Mapping[str, Any],
    metrics: Mapping[str, Any],
    known: Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put trained weights into a model set and write ``training.json``.

    Parameters
    ----------
    store : Store
        The training's folder.
    models : str
        The model set; made if absent, a network of the same name is replaced.
    trained : Trained
    name, profile, network, modality, config, classes, feature_names, normalisation
        As `models.card.ModelCard`.
    data : mapping
        Of the training data: archive, snapshot, counts, split.
    asked : mapping
        Options.
    metrics : mapping
        Measures of the kept epoch.
    known : iterable of str
        Objects that trained the weights that this training began with.
    storage_options : mapping, optional
        Of the model set.

    Returns
    -------
    dict
        JSON-ready summary.
    """
    card = ModelCard(
        name=name,
        profile=profile,
        network=network,
        modality=modality,
        config=dict(config),
        class_order=classes,
        feature_names=feature_names,
        normalisation=dict(normalisation),
        trained=True,
        training_data=training_data_text(data),
        metrics={"validation": dict(metrics), "data": dict(data), "options": dict(asked)},
        notes=f"Kept epoch {trained.best_epoch} of {len(trained.history)}.",
        profile_digest=get_profile(profile).digest(),
    )
    state: dict[str, Tensor] = trained.state
    item, digest, in_use = put_network(
        Store(models, storage_options),
        card,
        state,
        profile,
        default=None,
        replace=True,
        training_ids=[*training_ids(store), *known],
    )
    summary = {
        "network": name,
        "model_set": models,
        "model_set_digest": digest,
        "in_use": in_use,
        "weights_sha256": item["weights_sha256"],
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
        "validation": dict(metrics),
        "data": dict(data),
    }
    store.write_json_atomic("training.json", {**summary, "options": dict(asked)})
    return summary


def training_data_text(data: Mapping[str, Any]) -> str:
    """One line for the card."""
    train = data["counts"]["train"]
    classes = ", ".join(f"{name} {count}" for name, count in train.items() if count)
    return f"Archive snapshot {data['snapshot']}; {sum(train.values())} to train on: {classes}."
