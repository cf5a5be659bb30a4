"""``train``, ``evaluate models``, ``calibrate``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from applecider_batch.cli.option_groups import expand_groups
from applecider_batch.cli.output import (
    Format,
    FormatOption,
    QuietOption,
    StorageOption,
    answer,
    parse_storage_options,
    say,
)

if TYPE_CHECKING:
    from applecider_batch.training.setup import LabelledData as LabelledDataRequest
    from applecider_batch.training.setup import TrainingRequest

train_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train networks on labelled objects of an archive."
)
evaluate_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Say what networks are worth.")


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


class PhotometryNetwork(StrEnum):
    """Light-curve networks."""

    cls_transformer = "cls_transformer"
    informer = "informer"
    tabular_ensemble = "tabular_ensemble"


class SpectraNetwork(StrEnum):
    """Networks of spectra."""

    spectranet = "spectranet"
    resnet1d = "resnet1d"


class ClassSet(StrEnum):
    """Outputs of a network."""

    five = "five"
    ten = "ten"


class Part(StrEnum):
    """Sides of a split."""

    train = "train"
    validation = "validation"
    test = "test"
    all = "all"


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


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.add_typer(train_app, name="train")
    app.add_typer(evaluate_app, name="evaluate")
    app.command()(calibrate)


@train_app.command("photometry")
@expand_groups
def photometry(
    given: NetworkTraining,
    network: Annotated[
        PhotometryNetwork,
        typer.Option(
            "--network", help="The paper's transformer, its baseline, or one that also reads summary numbers."
        ),
    ] = PhotometryNetwork.cls_transformer,
    classes: Annotated[
        ClassSet, typer.Option("--classes", help="Outputs; ten are summed to five when used.")
    ] = ClassSet.five,
    pretrain_epochs: Annotated[
        int, typer.Option("--pretrain-epochs", min=0, help="Masked-event pre-training first; 0: none.")
    ] = 0,
    head_epochs: Annotated[
        int, typer.Option("--head-epochs", min=0, help="Gradual unfreezing: the head alone at first.")
    ] = 0,
) -> None:
    """Train a light-curve network: random horizons, focal loss, early stop on macro-AUPRC.

    Killed and started again it ends with the same weights.

    Example: applecider-batch train photometry --archive ARCHIVE --labels labels.parquet --models MODELS
    --out TRAINING --preset compact
    """
    from applecider_batch.training.photometry import train_photometry

    result = train_photometry(
        given.request(),
        network=network.value,
        class_set=classes.value,
        pretrain_epochs=pretrain_epochs,
        head_epochs=head_epochs,
    )
    given.answer(result)


@train_app.command("image")
@expand_groups
def image(
    given: NetworkTraining,
    max_days: Annotated[
        float, typer.Option("--max-days", min=0, help="Packets up to so many days after t0 are examples.")
    ] = 100.0,
) -> None:
    """Train AstroMiNN on stamps and metadata: focal loss, experts by class, turned and mirrored stamps.

    Stamps are read from the archive once, into files beside the training. Killed and started again it ends
    with the same weights.

    Example: applecider-batch train image --archive ARCHIVE --labels labels.parquet --models MODELS
    --out TRAINING --preset compact
    """
    from applecider_batch.training.image import train_image

    result = train_image(given.request(), max_days=max_days)
    given.answer(result)


@train_app.command("spectra")
@expand_groups
def spectra(
    given: NetworkTraining,
    network: Annotated[
        SpectraNetwork,
        typer.Option(
            "--network", help="The paper's SpectraNet, or a ResNet-1D on log bins: for few spectra."
        ),
    ] = SpectraNetwork.spectranet,
    classes: Annotated[
        ClassSet, typer.Option("--classes", help="Outputs; ten are summed to five when used.")
    ] = ClassSet.ten,
    start: Annotated[
        str | None,
        typer.Option("--start", metavar="SET", help="Begin with the weights of this set's network in use."),
    ] = None,
) -> None:
    """Train a SpectraNet or ResNet-1D: focal loss, class-balanced weights, blanked edges, unknown redshifts.

    Killed and started again it ends with the same weights.

    Example: applecider-batch train spectra --archive ARCHIVE --labels labels.parquet --models MODELS
    --out TRAINING --network resnet1d --preset compact
    """
    from applecider_batch.training.spectra import train_spectra

    result = train_spectra(
        given.request(),
        network=network.value,
        class_set=classes.value,
        start=start,
    )
    given.answer(result)


@train_app.command("joint")
@expand_groups
def joint(
    given: Training,
    result: Annotated[
        str, typer.Option("--result", metavar="SET", help="The model set to write; --models is not changed.")
    ],
    horizon: Annotated[
        str,
        typer.Option("--horizon", metavar="DAYS", help="Days after t0 at which objects are seen, or full."),
    ] = "10",
    min_modalities: Annotated[
        int, typer.Option("--min-modalities", min=1, help="Objects with at least so many; others are masked.")
    ] = 2,
) -> None:
    """Fine-tune the networks in use of a set together, on the fused probabilities and each one's own.

    Give the split that the networks were trained with. Killed and started again it ends with the same
    weights.

    Example: applecider-batch train joint --archive ARCHIVE --labels labels.parquet --models MODELS
    --out TRAINING --result JOINT
    """
    from applecider_batch.cli.runs import parse_horizons
    from applecider_batch.training.joint import train_joint

    found = train_joint(
        given.request(),
        result=result,
        horizon=parse_horizons(horizon)[0],
        min_modalities=min_modalities,
    )
    given.answer(found, result)


@evaluate_app.command("models")
@expand_groups
def evaluate(
    given: LabelledData,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for numbers and figures.")],
    part: Annotated[Part, typer.Option("--part", help="Side of the split to judge on.")] = Part.test,
    horizons: Annotated[
        str, typer.Option("--horizons", metavar="DAYS,…", help="Days after t0, and 'full'.")
    ] = "3,5,10,20,30,50,100,full",
    alert_days: Annotated[
        float,
        typer.Option("--alert-days", min=0, help="Figures per alert up to so many days; 0: none."),
    ] = 100.0,
    include_trained: Annotated[
        bool, typer.Option("--include-trained", help="Judge objects that trained a network in use, too.")
    ] = False,
    draws: Annotated[int, typer.Option("--draws", min=0, help="Resamples for the intervals.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resamples.")] = 0,
) -> None:
    """Judge the networks in use by modality and fused: horizon sweep, intervals, figures, source probe.

    Give the split that the networks were trained with.

    Example: applecider-batch evaluate models --archive ARCHIVE --labels labels.parquet --models MODELS
    --out EVALUATION
    """
    from applecider_batch.cli.runs import parse_horizons
    from applecider_batch.training.evaluate import evaluate_models
    from applecider_batch.training.probe import probe_sentences

    result = evaluate_models(
        given.data(),
        out,
        part=part.value,
        horizons=parse_horizons(horizons),
        alert_days=alert_days,
        include_trained=include_trained,
        draws=draws,
        seed=seed,
    )
    for sentence in probe_sentences(result["source_probe"]):
        say(sentence)
    if result["left_out"]["in_training_set"]:
        say(f"{result['left_out']['in_training_set']} objects that trained a network in use are left out.")
    if not result["left_out"]["training_sets_known"]:
        say(
            "Warning: not every network in use says what trained it; figures may be on objects that it knows."
        )
    if not result["trained"]:
        say("Warning: the weights of this model set are untrained.")
    if given.format is Format.json:
        answer(result, given.format)
    else:
        next_command = f"tables.md, evaluation.json and the figures in {out}"
        answer(_short(result), given.format, next_command=next_command)


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """One line per modality and horizon, for people."""
    rows = [
        {
            "what": what,
            "horizon": horizon,
            "objects": found.get("objects", 0),
            **{
                name: found.get("measures", {}).get(name)
                for name in ("macro_auprc", "macro_auc", "balanced_accuracy", "auc SN I/SN II", "ece")
            },
        }
        for what, by_horizon in result["results"].items()
        for horizon, found in by_horizon.items()
    ]
    kept = ("model_set_id", "trained", "calibrated", "part")
    return {**{k: result[k] for k in kept}, "results": rows}


@expand_groups
def calibrate(given: LabelledData) -> None:
    """Fit temperatures on the validation objects and write them into the model set.

    Give the split that the networks were trained with. An anomaly reference was fitted with the old
    temperatures and leaves the set: run models fit-anomaly afterwards.

    Example: applecider-batch calibrate --archive ARCHIVE --labels labels.parquet --models MODELS
    """
    from applecider_batch.training.calibrate import calibrate as run

    result = run(given.data())
    if not result["calibrated"]:
        few = [name for name, count in result["counts"].items() if count < result["min_per_class"]]
        say(f"Not called calibrated: fewer than {result['min_per_class']} objects of {', '.join(few)}.")
    answer(
        result,
        given.format,
        leave_out=("format",),
        next_command=f"applecider-batch classify --archive {given.archive} --models {given.models} --run RUN",
    )
