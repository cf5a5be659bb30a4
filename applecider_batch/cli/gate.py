"""``train gate``."""

from __future__ import annotations

from typing import Annotated

import typer

from applecider_batch.cli.output import Format, FormatOption, StorageOption, answer, parse_storage_options
from applecider_batch.cli.training import train_app


def register(app: typer.Typer) -> None:
    """Add the verb of this file to the ``train`` group, which is in the application already."""
    train_app.command("gate")(gate)


def gate(
    archive: Annotated[
        list[str], typer.Option("--archive", metavar="URL", help="An archive to learn from; repeatable.")
    ],
    labels: Annotated[
        list[str],
        typer.Option(
            "--labels",
            metavar="FILE",
            help="What its objects are: gate, class, or simbad and vsx_type; one for each --archive.",
        ),
    ],
    models: Annotated[str, typer.Option("--models", metavar="SET", help="The set that gets the gate.")],
    hold_out: Annotated[
        bool,
        typer.Option("--hold-out", help="Leave a quarter of the objects out, by hash; measure on it."),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of trees and folds.")] = 0,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Train the gate that decides which objects the classes describe; says what it lets through.

    Example: applecider-batch train gate --archive REAL --labels real.parquet --archive SIMULATED
    --labels truth.parquet --models MODELS
    """
    from applecider_batch.errors import UsageError
    from applecider_batch.training.gate import train_gate

    if len(archive) != len(labels):
        raise UsageError(f"Every --archive needs its --labels: given were {len(archive)} and {len(labels)}.")
    result = train_gate(
        list(zip(archive, labels, strict=True)),
        models,
        hold_out=hold_out,
        seed=seed,
        storage_options=parse_storage_options(storage_option),
    )
    answer(
        result,
        format,
        leave_out=("trees", "horizons"),
        next_command=f"applecider-batch classify --archive {archive[0]} --models {models} --run RUN",
    )
