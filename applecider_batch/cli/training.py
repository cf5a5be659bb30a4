"""``train photometry|image|spectra|joint``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from applecider_batch.cli.labelled import NetworkTraining, Training
from applecider_batch.cli.option_groups import expand_groups

train_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train networks on labelled objects of an archive."
)


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


ClassesOption = Annotated[
    ClassSet, typer.Option("--classes", help="Outputs; ten are summed to five when used.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.add_typer(train_app, name="train")


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
    classes: ClassesOption = ClassSet.five,
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
    classes: ClassesOption = ClassSet.ten,
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
