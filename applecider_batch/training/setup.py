"""What trainings, evaluation and calibration are asked, and what the trainings have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.storage import Store
from applecider_batch.training.labels import LabelTable, read_labels
from applecider_batch.training.splits import SplitRule
from applecider_batch.training.trainer import TrainerOptions

P = TypeVar("P")


def choose_preset(presets: Mapping[str, P], name: str) -> P:
    """The preset of that name; a UserError lists the choices."""
    if name not in presets:
        raise UserError(f"Unknown preset '{name}'; allowed are {', '.join(presets)}.")
    return presets[name]


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Labelled objects of an archive, the networks, and where to compute.

    Attributes
    ----------
    archive, labels, models : str
        Archive, label table, model set.
    split : SplitRule
        To judge and to calibrate: as in training.
    label_column : str or None
        Column of the class; chosen as `labels` says if None.
    device : str
        ``cpu`` or ``cuda``.
    threads : int
        CPU threads; part of the result, because it decides the order of sums.
    storage_options : mapping or None
        For archive and labels.
    """

    archive: str
    labels: str
    models: str
    split: SplitRule = field(default_factory=SplitRule)
    label_column: str | None = None
    device: str = "cpu"
    threads: int = 1
    storage_options: Mapping[str, Any] | None = None

    def open(self, class_set: str = "five") -> tuple[Archive, LabelTable]:
        """The archive and the label table."""
        archive = Archive.open(self.archive, self.storage_options)
        return archive, self.read_labels(class_set)

    def read_labels(self, class_set: str = "five") -> LabelTable:
        """The label table in a class set."""
        return read_labels(
            self.labels,
            class_set=class_set,
            column=self.label_column,
            storage_options=self.storage_options,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(LabelledData):
    """What every training is asked; the model set is made if absent.

    Attributes
    ----------
    out : str
        The training's folder; resumed if it is there.
    preset : {"paper", "compact"}
    epochs : int or None
        At most; the preset's if None.
    seed : int
        Of weights and batches.
    name : str or None
        In the model set; the network's if None.
    progress : bool
    """

    out: str
    preset: str = "paper"
    epochs: int | None = None
    seed: int = 0
    name: str | None = None
    progress: bool = False

    def options(self, preset: TrainerOptions) -> TrainerOptions:
        """A preset's options with what was asked for."""
        given = replace(preset, seed=self.seed, device=self.device, threads=self.threads)
        return given if self.epochs is None else replace(given, epochs=self.epochs)


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
        "split": rule.record(),
        "split_digest": split_digest,
        "labels_left_out": labels.left_out,
        **more,
    }


def cache_folder(store: Store) -> Path:
    """Where a training keeps what it can make again: its own folder, or the machine's if that is remote."""
    return Path(store.path()) if store.is_local else Path(tempfile.gettempdir()) / "applecider-batch"
