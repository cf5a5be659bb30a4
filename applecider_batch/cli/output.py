"""The output sink: answers on stdout (a table for people or one JSON document), talk on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

JD_OF_2000 = 2451544.5  # 2000-01-01 00:00 UTC


class Format(StrEnum):
    """How the answer is written."""

    human = "human"
    json = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="'json' puts one JSON document on stdout and nothing else there.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help="Option for the storage, e.g. endpoint_url=http://localhost:9000 or anon=true; may be repeated.",
    ),
]


def parse_storage_options(pairs: list[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` pairs as a mapping; values that are JSON (true, 3) are taken as such."""
    from applecider_batch.errors import UsageError

    options: dict[str, Any] = {}
    for pair in pairs or ():
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"--storage-option takes KEY=VALUE, and got '{pair}'.")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def say(text: str) -> None:
    """Talk to the person: stderr."""
    typer.echo(text, err=True)


def answer(
    value: Mapping[str, Any],
    format: Format,
    *,
    next_command: str | None = None,
    leave_out: tuple[str, ...] = (),
) -> None:
    """Write a command's answer to stdout and, for people, the next command to stderr.

    People do not see the keys in ``leave_out``; the JSON document always holds all.
    """
    if format is Format.json:
        sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")
        return
    for line in human_lines({key: item for key, item in value.items() if key not in leave_out}):
        typer.echo(line)
    if next_command:
        say(f"\nNext: {next_command}")


def human_lines(value: Mapping[str, Any], indent: int = 0, under: str = "") -> list[str]:
    """A mapping as aligned lines, lists of mappings as small tables; ``under`` is the mapping's own key."""
    lines: list[str] = []
    width = max((len(str(key)) for key in value), default=0)
    for key, item in value.items():
        label = f"{' ' * indent}{_words(key):<{width}}"
        if isinstance(item, Mapping):
            lines.append(label.rstrip())
            lines.extend(human_lines(item, indent + 2, str(key)))
        elif isinstance(item, list | tuple) and item and isinstance(item[0], Mapping):
            lines.append(label.rstrip())
            lines.extend(_table(list(item), indent + 2))
        else:
            lines.append(f"{label}  {_cell(item, under if under == 'bytes' else key)}")
    return lines


def _table(rows: list[Mapping[str, Any]], indent: int) -> list[str]:
    names = list(rows[0])
    cells = [[_words(n) for n in names]] + [[_cell(row.get(n), n) for n in names] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    pad = " " * indent
    return [
        pad + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def _words(key: Any) -> str:
    """A key for people: ``packets_in`` as "packets in"; names of files and objects stay as they are."""
    text = str(key)
    return text.replace("_", " ") if text.isidentifier() else text


def _cell(value: Any, key: Any = "") -> str:
    """A value for people; ``key`` says what it is: bytes, a date, a horizon."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    words = str(key).split("_")
    if isinstance(value, int | float):
        if "bytes" in words:
            return _size(value)
        if "jd" in words and value > JD_OF_2000:
            day = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=value - JD_OF_2000)
            return f"{value:.11g} ({day:%Y-%m-%d})"
        if key in ("time", "heartbeat"):
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.11g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_cell(item, name)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        parts = ("full" if key == "horizons" and item is None else _cell(item, key) for item in value)
        return ", ".join(parts) or "-"
    return str(value)


def _size(count: float) -> str:
    """Bytes as people read them: three digits and a unit."""
    unit = "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    return f"{count:.3g} {unit}"
