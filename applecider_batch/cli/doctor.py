"""``doctor``: is this machine fit, and if not, what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from applecider_batch.cli.output import Format, FormatOption, StorageOption, answer, parse_storage_options
from applecider_batch.errors import EXIT_REFUSED


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(doctor)


def doctor(
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="A folder to write to and read from, local or s3://.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to connect to; none starts Ray on this machine.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="Look at Ray, which takes some seconds.")
    ] = True,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Look over Python, packages, memory, disk, GPU, Ray, storage and clock, and say what to do.

    Exit code 4: something does not work.

    Example: applecider-batch doctor --storage s3://BUCKET/scratch
    """
    from applecider_batch.engine.doctor import examine

    result = examine(storage, parse_storage_options(storage_option), address, ray)
    answer(result, format)
    if not result["ok"]:
        raise typer.Exit(EXIT_REFUSED)
