"""``train photometry|spectra``, ``evaluate models``, ``calibrate``."""

from __future__ import annotations

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
    say,
)

if TYPE_CHECKING:
    from applecider_batch.training.splits import SplitRule

train_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train networks on labelled objects of an archive."
)
evaluate_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Say what networks are worth.")

ArchiveOption = Annotated[str, typer.Option("--archive", metavar="URL", help="The archive to read.")]
LabelsOption = Annotated[
    str,
    typer.Option(
        "--labels", metavar="FILE", help="Label table, Parquet or CSV: objectId and class5, class10 or type."
    ),
]
LabelColumnOption = Annotated[
    str | None, typer.Option("--label-column", help="Column of the class, if not one of those.")
]
ModelsOption = Annotated[str, typer.Option("--models", metavar="SET", help="The model set.")]
OutOption = Annotated[
    str, typer.Option("--out", metavar="DIR", help="The training's folder; resumed if it is there.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="At most; the preset's if not given.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and batches.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda (then in mixed precision).")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="CPU threads; part of the result.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name in the model set; the network's if not given.")
]


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


SplitOption = Annotated[
    Rule,
    typer.Option(
        "--split",
        help="By object (stratified, seeded), date of t0, HEALPix block, or hash of the object's name.",
    ),
]
SplitSeedOption = Annotated[int, typer.Option("--split-seed", min=0, help="Seed of the split.")]
ValidationOption = Annotated[float, typer.Option("--validation", help="Share of objects that validate.")]
TestOption = Annotated[float, typer.Option("--test", help="Share of objects that test.")]
PresetOption = Annotated[Preset, typer.Option("--preset", help="Sizes of the paper, or small for a CPU.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.add_typer(train_app, name="train")
    app.add_typer(evaluate_app, name="evaluate")
    app.command()(calibrate)


def _rule(split: Rule, seed: int, validation: float, test: float) -> SplitRule:
    from applecider_batch.training.splits import SplitRule

    return SplitRule(split.value, seed=seed, validation=validation, test=test)


def _finish(result: dict[str, Any], format: Format, archive: str, labels: str, models: str) -> None:
    answer(
        result,
        format,
        next_command=f"applecider-batch evaluate models --archive {archive} --labels {labels} "
        f"--models {models} --out EVALUATION",
    )


@train_app.command("photometry")
def photometry(
    archive: ArchiveOption,
    labels: LabelsOption,
    models: ModelsOption,
    out: OutOption,
    preset: PresetOption = Preset.paper,
    network: Annotated[
        PhotometryNetwork, typer.Option("--network", help="The paper's transformer, or its baseline.")
    ] = PhotometryNetwork.cls_transformer,
    pretrain_epochs: Annotated[
        int, typer.Option("--pretrain-epochs", min=0, help="Masked-event pre-training first; 0: none.")
    ] = 0,
    head_epochs: Annotated[
        int, typer.Option("--head-epochs", min=0, help="Gradual unfreezing: the head alone at first.")
    ] = 0,
    split: SplitOption = Rule.object,
    split_seed: SplitSeedOption = 0,
    validation: ValidationOption = 0.15,
    test: TestOption = 0.15,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
    label_column: LabelColumnOption = None,
    name: NameOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Train a light-curve network: random horizons, focal loss, early stop on macro-AUPRC.

    Killed and started again it ends with the same weights.

    Example: applecider-batch train photometry --archive ARCHIVE --labels labels.parquet --models MODELS
    --out TRAINING --preset compact
    """
    from applecider_batch.training.photometry import train_photometry

    result = train_photometry(
        archive,
        labels,
        out,
        models,
        preset=preset.value,
        network=network.value,
        split=_rule(split, split_seed, validation, test),
        pretrain_epochs=pretrain_epochs,
        head_epochs=head_epochs,
        epochs=epochs,
        seed=seed,
        device=device,
        threads=threads,
        label_column=label_column,
        name=name,
        storage_options=parse_storage_options(storage_option),
        progress=not quiet,
    )
    _finish(result, format, archive, labels, models)


@train_app.command("spectra")
def spectra(
    archive: ArchiveOption,
    labels: LabelsOption,
    models: ModelsOption,
    out: OutOption,
    preset: PresetOption = Preset.paper,
    classes: Annotated[
        ClassSet, typer.Option("--classes", help="Outputs; ten are summed to five when used.")
    ] = ClassSet.ten,
    split: SplitOption = Rule.object,
    split_seed: SplitSeedOption = 0,
    validation: ValidationOption = 0.15,
    test: TestOption = 0.15,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
    label_column: LabelColumnOption = None,
    name: NameOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Train a SpectraNet: focal loss, class-balanced weights, blanked edges, unknown redshifts.

    Killed and started again it ends with the same weights.

    Example: applecider-batch train spectra --archive ARCHIVE --labels labels.parquet --models MODELS
    --out TRAINING --preset compact
    """
    from applecider_batch.training.spectra import train_spectra

    result = train_spectra(
        archive,
        labels,
        out,
        models,
        preset=preset.value,
        class_set=classes.value,
        split=_rule(split, split_seed, validation, test),
        epochs=epochs,
        seed=seed,
        device=device,
        threads=threads,
        label_column=label_column,
        name=name,
        storage_options=parse_storage_options(storage_option),
        progress=not quiet,
    )
    _finish(result, format, archive, labels, models)


@evaluate_app.command("models")
def evaluate(
    archive: ArchiveOption,
    labels: LabelsOption,
    models: ModelsOption,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for numbers and figures.")],
    part: Annotated[Part, typer.Option("--part", help="Side of the split to judge on.")] = Part.test,
    horizons: Annotated[
        str, typer.Option("--horizons", metavar="DAYS,…", help="Days after t0, and 'full'.")
    ] = "3,5,10,20,30,50,100,full",
    draws: Annotated[int, typer.Option("--draws", min=0, help="Resamples for the intervals.")] = 200,
    split: SplitOption = Rule.object,
    split_seed: SplitSeedOption = 0,
    validation: ValidationOption = 0.15,
    test: TestOption = 0.15,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
    label_column: LabelColumnOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Judge the networks in use by modality and fused: horizon sweep, intervals, figures, source probe.

    Give the split that the networks were trained with.

    Example: applecider-batch evaluate models --archive ARCHIVE --labels labels.parquet --models MODELS
    --out EVALUATION
    """
    from applecider_batch.cli.runs import parse_horizons
    from applecider_batch.training.evaluate import evaluate_models

    result = evaluate_models(
        archive,
        labels,
        models,
        out,
        part=part.value,
        split=_rule(split, split_seed, validation, test),
        horizons=parse_horizons(horizons),
        draws=draws,
        seed=seed,
        label_column=label_column,
        device=device,
        threads=threads,
        storage_options=parse_storage_options(storage_option),
    )
    for name, found in result["source_probe"].items():
        if found.get("void"):
            say(
                f"Warning: within {name} a curve gives its source away (AUC {found['auc']:.2f}); claims that "
                "rest on this class are void."
            )
        elif "why_not" in found:
            say(f"The source probe cannot judge {name}: {found['why_not']}.")
    if not result["trained"]:
        say("Warning: the weights of this model set are untrained.")
    if format is Format.json:
        answer(result, format)
    else:
        answer(_short(result), format, next_command=f"the figures and evaluation.json in {out}")


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


def calibrate(
    archive: ArchiveOption,
    labels: LabelsOption,
    models: ModelsOption,
    split: SplitOption = Rule.object,
    split_seed: SplitSeedOption = 0,
    validation: ValidationOption = 0.15,
    test: TestOption = 0.15,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
    label_column: LabelColumnOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Fit temperatures on the validation objects and write them into the model set.

    Give the split that the networks were trained with.

    Example: applecider-batch calibrate --archive ARCHIVE --labels labels.parquet --models MODELS
    """
    from applecider_batch.training.calibrate import calibrate as run

    result = run(
        archive,
        labels,
        models,
        split=_rule(split, split_seed, validation, test),
        label_column=label_column,
        device=device,
        threads=threads,
        storage_options=parse_storage_options(storage_option),
    )
    if not result["calibrated"]:
        few = [name for name, count in result["counts"].items() if count < result["min_per_class"]]
        say(f"Not called calibrated: fewer than {result['min_per_class']} objects of {', '.join(few)}.")
    answer(
        result,
        format,
        leave_out=("format",),
        next_command=f"applecider-batch classify --archive {archive} --models {models} --run RUN",
    )
