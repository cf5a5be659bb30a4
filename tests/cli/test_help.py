"""Every command has help with an example, and help is cheap."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer

from applecider_batch import __version__
from applecider_batch.cli.main import app, run
from applecider_batch.cli.output import human_lines

HEAVY = (
    "torch",
    "ray",
    "polars",
    "pyarrow",
    "numpy",
    "astropy",
    "matplotlib",
    "sklearn",
    "datafusion",
    "fsspec",
)


def _commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        below = (*path, name)
        found += _commands(command, below) if hasattr(command, "commands") else [below]
    return found


COMMANDS = _commands(typer.main.get_command(app))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_with_an_example(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"applecider-batch {' '.join(command)}" in " ".join(text.split())
    assert "Example:" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from applecider_batch.cli.main import run; run(['--help']);"
        f"bad = [m for m in {HEAVY!r} if m in sys.modules]; sys.exit(f'imported {{bad}}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"applecider-batch {__version__}"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nonsense"], "No such command"),
        (["plan"], "--archive"),
        (["classify", "--archive", "a", "--models", "m", "--run", "r", "--pool", "image"], "--pool takes"),
        (["classify", "--archive", "a", "--models", "m", "--run", "r", "--horizons", "3,-1"], "--horizons"),
        (["classify", "--archive", "a", "--models", "m", "--run", "r", "--horizons", "nan"], "--horizons"),
        (["classify", "--archive", "a", "--models", "m", "--run", "r", "--region", "1,2"], "--region"),
        (["ingest", "--archive", "a"], "Nothing to ingest"),
        (["ingest", "x", "--archive", "a", "--storage-option", "nokey"], "KEY=VALUE"),
    ],
)
def test_usage_errors_end_with_2(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert word in captured.err
    assert "Traceback" not in captured.err


def test_people_see_lists_in_a_table_as_words() -> None:
    rows = [{"name": "S", "networks": {"photometry": ["old", "new"], "spectra": ["one"]}, "trained": True}]
    row = human_lines({"model_sets": rows})[-1]
    assert row.split() == ["S", "photometry:", "old,", "new;", "spectra:", "one", "yes"]
