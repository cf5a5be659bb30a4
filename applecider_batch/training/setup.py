"""What the trainings have in common: choosing a preset, reading labels, and the record of their data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.storage import Store
from applecider_batch.training.labels import LabelTable
from applecider_batch.training.splits import SplitRule
from applecider_batch.training.trainer import TrainerOptions

P = TypeVar("P")


def choose_preset(presets: Mapping[str, P], name: str) -> P:
    """The preset of that name; a UserError lists the choices."""
    if name not in presets:
        raise UserError(f"Unknown preset '{name}'; allowed are {', '.join(presets)}.")
    return presets[name]


def asked_options(
    options: TrainerOptions, *, epochs: int | None, seed: int, device: str, threads: int
) -> TrainerOptions:
    """A preset's options with what was asked for."""
    given = replace(options, seed=seed, device=device, threads=threads)
    return given if epochs is None else replace(given, epochs=epochs)


def data_record(
    archive: Archive,
    labels: LabelTable,
    rule: SplitRule,
    counts: Mapping[str, Any],
    split_digest: str,
    **more: Any,
) -> dict[str, Any]:
    """What a card says of its training data."""
    return {
        "archive": archive.snapshot.logical_digest,
        "snapshot": archive.snapshot.id,
        "counts": dict(counts),
        "split": asdict(rule),
        "split_digest": split_digest,
        "labels_left_out": labels.left_out,
        **more,
    }


def cache_folder(store: Store) -> Path:
    """Where a training keeps what it can make again: its own folder, or the machine's if that is remote."""
    return Path(store.path()) if store.is_local else Path(tempfile.gettempdir()) / "applecider-batch"
