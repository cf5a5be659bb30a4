"""The help of all commands as one page of the documentation."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import typer

from applecider_batch.cli.main import app, run


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command, in the order of the help."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        below = (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, below)
        else:
            yield below


def help_of(path: tuple[str, ...]) -> str:
    """What ``--help`` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run([*path, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def page() -> str:
    """A heading and the help of every command, as Markdown."""
    return "\n".join(f"## {' '.join(path)}\n\n```text\n{help_of(path)}\n```\n" for path in commands())
