"""``submit``: the same verbs as Ray jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from applecider_batch.cli import project
from applecider_batch.cli.output import Format, FormatOption, answer


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(submit)


def run_job(arguments: list[str]) -> NoReturn:
    """A job's process: a verb in the submitter's folder, where this machine has it, answering in JSON."""
    from applecider_batch.cli.main import end_with, run
    from applecider_batch.engine.submit import FOLDER_VARIABLE

    folder = os.environ.get(FOLDER_VARIABLE, "")
    if os.path.isdir(folder):
        os.chdir(folder)
    end_with(lambda: run([*arguments, "--format", "json"]))


def submit(
    context: typer.Context,
    verb: Annotated[
        str,
        typer.Argument(metavar="VERB", help="ingest, compact, classify, 'catalog build', update or train."),
    ],
    address: Annotated[
        str, typer.Option("--address", metavar="URL", help="Ray's job server, e.g. http://127.0.0.1:8265.")
    ],
    follow: Annotated[bool, typer.Option("--follow", help="Follow the log to the end.")] = False,
    format: FormatOption = Format.human,
) -> None:
    """Submit a verb to a Ray cluster; everything after it is the verb's own options.

    The package itself travels along; what it depends on is the image's. Submitting the same while it is under
    way attaches to it; afterwards it goes on with what was left. The answer says how to stop it; 'cancel RUN'
    stops a classification, too.

    Options that applecider-batch.toml of this folder holds go along.

    Example: applecider-batch submit classify --address http://127.0.0.1:8265 --follow --archive ARCHIVE
    --models MODELS --run RUN --horizons 10,full
    """
    from applecider_batch.engine.submit import submit as run

    arguments = list(context.args)
    if verb == "catalog" and arguments[:1] == ["build"]:
        verb, arguments = "catalog build", arguments[1:]
    file = Path(project.FILE)
    if file.is_file():
        path = ["archive", verb] if verb == "compact" else verb.split()
        defaults = project.read_defaults(file)
        arguments = project.with_defaults(context.find_root().command, [*path, *arguments], defaults)[
            len(path) :
        ]
    result = run(verb.replace(" ", "-"), arguments, address, follow=follow)
    following = "applecider-batch status RUN" if verb == "classify" else "the same command with --follow"
    answer(result, format, next_command=None if follow else following)
    if result.get("exit_code"):
        raise typer.Exit(int(result["exit_code"]))
