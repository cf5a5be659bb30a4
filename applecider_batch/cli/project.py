"""``init``: a commented file of defaults for the folder in which one works."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from applecider_batch.cli.output import Format, FormatOption, answer
from applecider_batch.errors import UserError

FILE = "applecider-batch.toml"
#: What the file may hold: text, or a list of texts for options that may be repeated.
KEYS: dict[str, type] = {
    "archive": str, "models": str, "horizons": str, "prices": str, "known": list, "storage_option": list,
}  # fmt: skip
TEMPLATE = """\
# Defaults for the commands of applecider-batch that are started in this folder.
# What is given on the command line goes before what is written here. Remove the # of the lines you want.
# Commands that are started in other folders do not read this file.

# The archive, a folder or URL: --archive
# archive = "archive"

# The model set, a folder, a URL or the packaged one: --models
# models = "compact"

# Days after the first alert at which objects are classified: --horizons
# horizons = "3,10,30,full"

# Lists of known transients and of other sources: --known (catalog build, update, catalog fold)
# known = ["tns_public_objects.csv.zip", "agn=milliquas.parquet"]

# Options of the storage, as KEY=VALUE: --storage-option
# storage_option = ["endpoint_url=https://s3.example.org"]

# What an hour costs: --prices (plan)
# prices = "prices.toml"
"""


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of the project.")] = Path("."),
    format: FormatOption = Format.human,
) -> None:
    """Write applecider-batch.toml, a commented file of defaults that commands in its folder read.

    Example: applecider-batch init
    """
    file = folder / FILE
    if file.exists():
        raise UserError(f"'{file}' is there already.", hint="Edit it, or remove it first.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(TEMPLATE, encoding="utf-8")
    answer(
        {"file": str(file)},
        format,
        next_command=f"edit {file}; then applecider-batch ingest SOURCE.tar.gz --archive ARCHIVE",
    )


def read_defaults(file: Path) -> dict[str, Any]:
    """The keys of a file of defaults, checked."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' is not TOML: {error}.") from error
    for key, value in found.items():
        kind = KEYS.get(key)
        if kind is None:
            raise UserError(f"'{file}' has the key '{key}'; allowed are {', '.join(KEYS)}.")
        parts = value if kind is list and isinstance(value, list) else [value]
        if not isinstance(value, kind) or not all(isinstance(part, str) for part in parts):
            wanted = "a list of texts" if kind is list else "a text"
            raise UserError(f"'{key}' in '{file}' must be {wanted}, and is {value!r}.")
    return found


def default_map(command: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """The defaults that each command of a group has an option for, as the parser wants them."""
    if hasattr(command, "commands"):
        return {name: default_map(one, defaults) for name, one in command.commands.items()}
    return {
        p.name: defaults[p.name]
        for p in command.params
        if p.param_type_name == "option"
        and p.name in defaults
        and p.multiple == isinstance(defaults[p.name], list)
    }


def with_defaults(command: Any, arguments: Sequence[str], defaults: dict[str, Any]) -> list[str]:
    """Arguments of a command (or of one of a group), and the options of the file that are not among them."""
    words = list(arguments)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    own = {} if hasattr(command, "commands") else default_map(command, defaults)
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    added = []
    for parameter in command.params:
        value = own.get(parameter.name)
        if value is not None and not given & set(parameter.opts):
            for text in value if isinstance(value, list) else [value]:
                added += [parameter.opts[0], text]
    return [*arguments, *added]
