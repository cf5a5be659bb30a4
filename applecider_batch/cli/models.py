"""``models init|list|info|verify|use|import``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from applecider_batch.cli.output import Format, FormatOption, answer, say
from applecider_batch.errors import EXIT_REFUSED

models_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make and look after model sets.")
SetArgument = Annotated[str, typer.Argument(metavar="SET", help="The model set's folder or URL.")]


class ProfileName(StrEnum):
    """Named profiles: cutout, spectrum, features and networks that belong together."""

    paper = "paper"
    upstream_main = "upstream-main"
    upstream_archive = "upstream-archive"


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.add_typer(models_app, name="models")


@models_app.command("init")
def init(
    folder: SetArgument,
    profile: Annotated[ProfileName, typer.Option(help="Profile of the networks.")] = ProfileName.paper,
    seed: Annotated[int, typer.Option(help="Seed of the weights; equal seeds give equal bytes.")] = 0,
    network: Annotated[
        list[str] | None,
        typer.Option(
            "--network",
            help="A further network beside the main ones, not in use; repeatable (informer, spectra_image).",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="SET", help="Copy this set instead, for example compact."),
    ] = None,
    format: FormatOption = Format.human,
) -> None:
    """Write a seeded model set with UNTRAINED weights, which proves the machinery, or copy a set.

    The packaged set, compact, is trained; a copy of it can be trained on and calibrated.

    Example: applecider-batch models init MODELS --from compact
    """
    from applecider_batch.models.model_set import init_model_set
    from applecider_batch.models.use import copy_set

    if source is not None:
        model_set = copy_set(source, folder)
    else:
        model_set = init_model_set(folder, profile=profile.value, seed=seed, networks=tuple(network or ()))
    if not model_set.trained:
        say("Warning: these weights are untrained; every catalogue row made with them says trained = false.")
    answer(
        model_set.summary(),
        format,
        next_command=f"applecider-batch classify --archive ARCHIVE --models {folder} --run RUN",
    )


@models_app.command("list")
def list_models(
    folder: Annotated[
        str | None, typer.Argument(metavar="[FOLDER]", help="Also look for model sets in this folder.")
    ] = None,
    format: FormatOption = Format.human,
) -> None:
    """The networks that can be built, and the model sets in a folder.

    Example: applecider-batch models list .
    """
    from applecider_batch.models import list_networks
    from applecider_batch.models.set_checks import list_model_sets

    networks = [{"profile": p, "network": n, "modality": m} for p, n, m in list_networks()]
    sets = list_model_sets(folder) if folder else []
    answer({"networks": networks, "model_sets": sets}, format)


@models_app.command("info")
def info(folder: SetArgument, format: FormatOption = Format.human) -> None:
    """What a model set holds: networks, what trained them, digests; --format json has the whole cards.

    Example: applecider-batch models info MODELS
    """
    from applecider_batch.models.model_set import ModelSet

    result = ModelSet.load(folder).summary()
    if format is Format.human:
        cards = result["cards"]
        result["classes"] = {name: card["class_order"] for name, card in cards.items()}
        result["trained_on"] = {name: card["training_data"] for name, card in cards.items()}
        result["notes"] = {name: card["notes"] for name, card in cards.items()}
    answer(result, format, leave_out=("gate", "cards"))


@models_app.command("verify")
def verify(folder: SetArgument, format: FormatOption = Format.human) -> None:
    """Check digests and cards, and build every network; exit code 4 if anything is wrong.

    Example: applecider-batch models verify MODELS
    """
    from applecider_batch.models.set_checks import verify_model_set

    result = verify_model_set(folder)
    answer(result, format)
    if result["problems"]:
        raise typer.Exit(EXIT_REFUSED)


@models_app.command("use")
def use(
    folder: SetArgument,
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="Name of a network in the set.")],
    format: FormatOption = Format.human,
) -> None:
    """Use this network of the set for its modality; resets calibration and anomaly reference.

    Example: applecider-batch models use MODELS informer
    """
    from applecider_batch.models.use import use_network

    answer(
        use_network(folder, network),
        format,
        next_command=f"applecider-batch models verify {folder}",
    )


@models_app.command("import")
def import_checkpoint(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .pt, .pth or .safetensors checkpoint.")],
    profile: Annotated[ProfileName, typer.Option("--profile", help="Profile the checkpoint belongs to.")],
    into: Annotated[
        str, typer.Option("--into", metavar="SET", help="Model set to add it to; made if absent.")
    ],
    card: Annotated[
        Path | None,
        typer.Option(
            "--card",
            metavar="FILE",
            help="TOML or JSON with class_order and feature statistics; never guessed.",
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", help="Network name where the keys fit several ('models list').")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name in the set; the network's name if not given.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the set's network of that name.")
    ] = False,
    format: FormatOption = Format.human,
) -> None:
    """Bring an upstream checkpoint in: strict keys and shapes, named remaps, no pickled code.

    Example: applecider-batch models import photo.pt --profile upstream-main --into MODELS --card card.toml
    """
    from applecider_batch.models.importing import import_checkpoint as run

    answer(
        run(file, profile.value, into, network=network, card=card, name=name, replace=replace),
        format,
        next_command=f"applecider-batch models verify {into}",
    )
