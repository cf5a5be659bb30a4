"""The command line: assembles the verb groups and turns every ending into an exit code."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from applecider_batch import __version__
from applecider_batch.cli import (
    anomaly,
    archive,
    candidates,
    catalog,
    demo,
    doctor,
    evaluation,
    gate,
    jobs,
    models,
    project,
    releases,
    runs,
    training,
)
from applecider_batch.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_PIPE,
    EXIT_TERMINATED,
    EXIT_USAGE,
    AppleciderError,
)

app = typer.Typer(
    name="applecider-batch",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Reclassify the ZTF alert archive with AppleCiDEr's multimodal networks.\n\n"
        "The way: ingest -> plan -> classify -> catalog build -> candidates find -> report. "
        "'applecider-batch demo' walks it all on a small simulated survey. "
        "A command that was interrupted is simply run again."
    ),
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"applecider-batch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    from applecider_batch.logs import configure_logging

    level = "DEBUG" if os.environ.get("APPLECIDER_BATCH_DEBUG") == "1" else "INFO"
    configure_logging(level, as_json=os.environ.get("APPLECIDER_BATCH_LOG") == "json")


for group in (
    demo,
    project,
    archive,
    runs,
    jobs,
    catalog,
    releases,
    candidates,
    models,
    training,
    evaluation,
    anomaly,
    gate,
    doctor,
):
    group.register(app)


def main() -> None:
    """Entry point of the ``applecider-batch`` command."""
    end_with(lambda: run(sys.argv[1:]))


def end_with(call: Callable[[], int]) -> NoReturn:
    """End the process with the exit code that ``call`` returns, after all else that is done at the exit.

    Python is not taken down: a thread of pyarrow that lets go of a Python object at that time would abort the
    process (exit code 134 in place of ours).
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(codes[0])

    atexit.register(leave)  # the first one registered runs last
    codes.append(call())
    sys.exit(codes[0])


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    Returns
    -------
    int
        0 done; 1 our fault; 2 usage; 3 finished with something set aside; 4 refused, or a verify failed;
        5 cluster unreachable; 130/143 interrupted, state safe; 141 nobody reads on.
    """
    debug = os.environ.get("APPLECIDER_BATCH_DEBUG") == "1"
    as_json = ("json" in arguments and "--format" in arguments) or "--format=json" in arguments
    with _terminable() as terminated:
        code = _run(arguments, as_json, debug)
    if code is not None:
        return code
    return _interrupted(arguments, as_json, EXIT_TERMINATED if terminated else EXIT_INTERRUPTED)


@contextlib.contextmanager
def _terminable() -> Iterator[list[int]]:
    """SIGTERM ends a command as Ctrl-C does, with its leases and scratch files; a second one ends it at once.

    Yields
    ------
    list
        Not empty once SIGTERM has come.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, handle)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, old)


def _run(arguments: list[str], as_json: bool, debug: bool) -> int | None:
    """The exit code of a command line; None where Ctrl-C ended it, of which nothing is said yet."""
    try:
        command = typer.main.get_command(app)
        file = Path(project.FILE)
        own = project.default_map(command, project.read_defaults(file)) if file.is_file() else None
        result = command(args=arguments, prog_name="applecider-batch", standalone_mode=False, default_map=own)
        code = result if isinstance(result, int) else 0
        return None if code == EXIT_INTERRUPTED else code  # which the parser makes of Ctrl-C
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return None
    except TyperException as error:
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return EXIT_USAGE
    except AppleciderError as error:
        if debug:
            raise
        _complain(error.message, error.hint, as_json, error.exit_code)
        return error.exit_code
    except (BrokenPipeError, SystemExit):  # the parser turns a closed pipe into the latter
        return EXIT_PIPE
    except Exception as error:
        if debug:
            raise
        _complain(
            f"This is a fault of ours: {type(error).__name__}: {error}",
            "Run it again with APPLECIDER_BATCH_DEBUG=1 for the traceback, and please report it.",
            as_json,
            EXIT_INTERNAL,
        )
        return EXIT_INTERNAL


def _interrupted(arguments: list[str], as_json: bool, code: int) -> int:
    hint = f"Run the same command again to go on: applecider-batch {shlex.join(arguments)}"
    _complain("Interrupted; what is committed is safe.", hint, as_json, code)
    return code


def _complain(message: str, hint: str | None, as_json: bool, code: int) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "hint": hint, "exit_code": code}) + "\n")
    typer.echo(f"Error: {message}", err=True)
    if hint:
        typer.echo(f"  {hint}", err=True)
