"""The options that say where work is done."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Executor(StrEnum):
    """Where the work is done."""

    serial = "serial"
    ray = "ray"


ExecutorOption = Annotated[Executor, typer.Option("--executor", help="One process, or a Ray cluster.")]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Ray address ('auto', host:port); none starts Ray on this machine."),
]
TasksOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Tasks at a time, a CPU each; none chooses by the CPUs."),
]
