"""Options that trainings, evaluations and calibration share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from applecider_batch.cli.output import (
    Format,
    FormatOption,
    QuietOption,
    StorageOption,
    answer,
    parse_storage_options,
)

if TYPE_CHECKING:
    from applecider_batch.training.setup import LabelledData as LabelledDataRequest
    from applecider_batch.training.setup import TrainingRequest


class Rule(StrEnum):
    """How objects are split."""

    object = "object"
    date = "date"
    healpix = "healpix"
    hash = "hash"


class Preset(StrEnum):
    """Size and recipe."""

    paper = "paper"
    compact = "compact"


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Labelled objects of an archive, the networks, and where to compute."""

    archive: Annotated[str, typer.Option("--archive", metavar="URL", help="The archive to read.")]
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="Label table, Parquet or CSV: objectId and class5, class10 or type.",
        ),
    ]
    models: Annotated[str, typer.Option("--models", metavar="SET", help="The model set.")]
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Column of the class, if not one of those.")
    ] = None
    split: Annotated[
        Rule,
        typer.Option(
            "--split",
            help="By object (stratified, seeded), date of t0, HEALPix block, or hash of the object's name.",
        ),
    ] = Rule.object
    split_seed: Annotated[int, typer.Option("--split-seed", min=0, help="Seed of the split.")] = 0
    validation: Annotated[float, typer.Option("--validation", help="Share of objects that validate.")] = 0.15
    test: Annotated[float, typer.Option("--test", help="Share of objects that test.")] = 0.15
    device: Annotated[
        str, typer.Option("--device", help="cpu or cuda (training there is in mixed precision).")
    ] = "cpu"
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads; part of the result.")] = 1
    storage_option: StorageOption = None
    format: FormatOption = Format.human

    def arguments(self) -> dict[str, Any]:
        """Fields of `training.setup.LabelledData`."""
        from applecider_batch.training.splits import SplitRule

        return {
            "archive": self.archive,
            "labels": self.labels,
            "models": self.models,
            "split": SplitRule(
                self.split.value, seed=self.split_seed, validation=self.validation, test=self.test
            ),
            "label_column": self.label_column,
            "device": self.device,
            "threads": self.threads,
            "storage_options": parse_storage_options(self.storage_option),
        }

    def data(self) -> LabelledDataRequest:
        """What `evaluate` and `calibrate` take."""
        from applecider_batch.training.setup import LabelledData

        return LabelledData(**self.arguments())


@dataclass(frozen=True, kw_only=True)
class Training(LabelledData):
    """What all trainings take."""

    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="The training's folder; resumed if it is there.")
    ]
    preset: Annotated[Preset, typer.Option("--preset", help="Sizes of the paper, or small for a CPU.")] = (
        Preset.paper
    )
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="At most; the preset's if not given.")
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and batches.")] = 0
    quiet: QuietOption = False

    def arguments(self) -> dict[str, Any]:
        """Fields of `training.setup.TrainingRequest`."""
        return super().arguments() | {
            "out": self.out,
            "preset": self.preset.value,
            "epochs": self.epochs,
            "seed": self.seed,
            "progress": not self.quiet,
        }

    def request(self) -> TrainingRequest:
        """What the trainings take."""
        from applecider_batch.training.setup import TrainingRequest

        return TrainingRequest(**self.arguments())

    def answer(self, result: dict[str, Any], models: str | None = None) -> None:
        """Write the summary and name the next command, on the set that was written."""
        answer(
            result,
            self.format,
            next_command=f"applecider-batch evaluate models --archive {self.archive} --labels {self.labels} "
            f"--models {models or self.models} --out EVALUATION",
        )


@dataclass(frozen=True, kw_only=True)
class NetworkTraining(Training):
    """What the trainings of one network take."""

    name: Annotated[
        str | None, typer.Option("--name", help="Name in the model set; the network's if not given.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Fields of `training.setup.TrainingRequest`."""
        return super().arguments() | {"name": self.name}
