"""``submit``: the same verbs as Ray jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from applecider_batch.cli.output import Format, FormatOption, answer


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(submit)


def submit(
    context: typer.Context,
    verb: Annotated[
        str, typer.Argument(metavar="VERB", help="ingest, compact, classify, 'catalog build' or train.")
    ],
    address: Annotated[
        str, typer.Option("--address", metavar="URL", help="Ray's job server, e.g. http://127.0.0.1:8265.")
    ],
    follow: Annotated[bool, typer.Option("--follow", help="Follow the log to the end.")] = False,
    format: FormatOption = Format.human,
) -> None:
    """Submit a verb to a Ray cluster; everything after it is the verb's own options.

    The submission id follows from the verb and its options, so submitting the same twice finds the first.

    Example: applecider-batch submit classify --address http://127.0.0.1:8265 --follow --archive ARCHIVE
    --models MODELS --run RUN --horizons 10,full
    """
    from applecider_batch.engine.submit import submit as run

    arguments = list(context.args)
    if verb == "catalog" and arguments[:1] == ["build"]:
        verb, arguments = "catalog-build", arguments[1:]
    result = run(verb, arguments, address, follow=follow)
    answer(result, format, next_command=None if follow else "applecider-batch status RUN")
    if result.get("exit_code"):
        raise typer.Exit(int(result["exit_code"]))
