"""``plan``, ``classify``, ``status``, ``logs``, ``cancel``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from applecider_batch.cli.executors import AddressOption, Executor, ExecutorOption
from applecider_batch.cli.output import (
    Format,
    FormatOption,
    QuietOption,
    StorageOption,
    answer,
    parse_storage_options,
    say,
)
from applecider_batch.errors import EXIT_SET_ASIDE


class NumberType(StrEnum):
    """Number types of the networks."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


ArchiveOption = Annotated[str, typer.Option("--archive", metavar="URL", help="The archive to read.")]
ModelsOption = Annotated[
    str, typer.Option("--models", metavar="SET", help="The model set: a folder, or the packaged 'compact'.")
]
HorizonsOption = Annotated[
    str,
    typer.Option(
        "--horizons",
        metavar="DAYS,…",
        help="Days after the first eligible alert, and 'full' for the whole history.",
    ),
]
RegionOption = Annotated[
    str | None,
    typer.Option("--region", metavar="RA,DEC,RADIUS", help="Only objects within a cone; degrees."),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Largest batch for a network; by default 64 on a CPU, 1024 on a GPU (halved if too large).",
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of each network.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
ShardObjectsOption = Annotated[
    int, typer.Option("--objects-per-shard", min=1, help="Objects that a shard should hold.")
]
DtypeOption = Annotated[
    NumberType, typer.Option("--dtype", help="Numbers of the networks; half precision for GPUs only.")
]
SnapshotOption = Annotated[
    int | None,
    typer.Option("--snapshot", min=1, help="Snapshot of the archive; none takes the newest."),
]
CutsOption = Annotated[
    str | None,
    typer.Option(
        "--cuts", metavar="FILE", help="TOML with own cut presets, beside ipac, ztfrest, boom, fink."
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run folder: a path or any fsspec URL.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    for verb in (plan, classify, status, logs, cancel):
        app.command()(verb)


def parse_horizons(text: str) -> list[float | None]:
    """``"3,10,full"`` as ``[3.0, 10.0, None]``, ascending, each once."""
    from applecider_batch.errors import UsageError

    days: set[float] = set()
    full = False
    for part in text.split(","):
        word = part.strip()
        if word == "full":
            full = True
            continue
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf"):
            raise UsageError(
                f"--horizons takes positive days and 'full', separated by commas, and got '{word}'.",
                hint="For example: --horizons 3,10,30,full",
            )
        days.add(value)
    return [*sorted(days), *([None] if full else [])]


def parse_region(text: str | None) -> tuple[float, float, float] | None:
    """``"ra,dec,radius"`` in degrees."""
    from applecider_batch.errors import UsageError

    if text is None:
        return None
    try:
        ra, dec, radius = (float(part) for part in text.split(","))
        good = 0 <= ra < 360 and -90 <= dec <= 90 and 0 < radius <= 180
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"--region takes RA,DEC,RADIUS in degrees (0..360, -90..90, 0..180), and got '{text}'.",
            hint="For example: --region 150.1,2.2,1.5",
        )
    return ra, dec, radius


def parse_pools(texts: list[str] | None) -> dict[str, dict[str, float]] | None:
    """``["image:size=4,num_gpus=0.25"]`` as ``{"image": {"size": 4.0, "num_gpus": 0.25}}``."""
    from applecider_batch.errors import UsageError

    pools: dict[str, dict[str, float]] = {}
    for text in texts or ():
        name, _, rest = text.partition(":")
        try:
            pools[name] = {key: float(value) for key, value in (pair.split("=") for pair in rest.split(","))}
        except ValueError:
            raise UsageError(
                f"--pool takes NAME:KEY=N,… and got '{text}'.",
                hint="For example: --pool image:size=4,num_gpus=0.25",
            ) from None
    return pools or None


def plan(
    archive: ArchiveOption,
    models: ModelsOption,
    horizons: HorizonsOption = "3,10,30,full",
    region: RegionOption = None,
    objects_per_shard: ShardObjectsOption = 2000,
    batch_size: BatchOption = None,
    threads: ThreadsOption = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = NumberType.float32,
    snapshot: SnapshotOption = None,
    cuts: CutsOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Shard workers, for the estimate of time.")] = 1,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Do a few pieces of the plan first, and time them.")
    ] = False,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="TOML: currency, cpu_hour (a worker), gpu_hour, gb_read, gb_written."
        ),
    ] = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Say what a run would do, take and cost: shards, objects, bytes, seconds, memory. Writes nothing.

    Without --calibrate times and memory are an order of magnitude.

    Example: applecider-batch plan --archive ARCHIVE --models MODELS --horizons 3,10,30,full --calibrate
    """
    from applecider_batch.engine import api

    result = api.plan(
        archive,
        models,
        horizons=parse_horizons(horizons),
        region=parse_region(region),
        objects_per_shard=objects_per_shard,
        batch_size=batch_size,
        threads=threads,
        device=device,
        dtype=dtype.value,
        snapshot=snapshot,
        cuts=cuts,
        workers=workers,
        calibrated=calibrate,
        prices=prices,
        storage_options=parse_storage_options(storage_option),
    )
    answer(
        result,
        format,
        next_command=f"applecider-batch classify --archive {archive} --models {models} --run RUN "
        f"--horizons {horizons}",
    )


def classify(
    archive: ArchiveOption,
    models: ModelsOption,
    run: Annotated[str, typer.Option("--run", metavar="URL", help="The run folder; resumed if it is there.")],
    horizons: HorizonsOption = "3,10,30,full",
    executor: ExecutorOption = Executor.serial,
    address: AddressOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Shard workers; none chooses by the CPUs.")
    ] = None,
    region: RegionOption = None,
    limit_shards: Annotated[int | None, typer.Option(min=1, help="Stop after so many shards.")] = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try shards again that were set aside.")] = False,
    objects_per_shard: ShardObjectsOption = 2000,
    batch_size: BatchOption = None,
    threads: ThreadsOption = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = NumberType.float32,
    snapshot: SnapshotOption = None,
    cuts: CutsOption = None,
    side: Annotated[
        list[str] | None,
        typer.Option("--side", metavar="TABLE", help="Also embeddings or light_curves; may be repeated."),
    ] = None,
    autoscale: Annotated[
        bool,
        typer.Option("--autoscale", help="The cluster grows on demand; do not refuse what it lacks now."),
    ] = False,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:KEY=N,…",
            help="At most so many actors of a modality (or 'worker') and what each reserves: size, num_cpus, "
            "num_gpus, memory_gib, e.g. image:size=4,num_gpus=0.25; may be repeated. None chooses by what "
            "the cluster has.",
        ),
    ] = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Classify every object of an archive; run it again to resume.

    Exit code 3: finished, with objects or shards set aside (see 'status').

    Example: applecider-batch classify --archive ARCHIVE --models MODELS --run RUN --executor ray
    """
    from applecider_batch.engine import api

    result = api.classify(
        archive,
        models,
        run,
        horizons=parse_horizons(horizons),
        executor=executor.value,
        address=address,
        workers=workers,
        region=parse_region(region),
        limit_shards=limit_shards,
        retry_quarantined=retry_quarantined,
        objects_per_shard=objects_per_shard,
        batch_size=batch_size,
        threads=threads,
        device=device,
        dtype=dtype.value,
        snapshot=snapshot,
        cuts=cuts,
        side=side or (),
        autoscale=autoscale,
        pools=parse_pools(pool),
        storage_options=parse_storage_options(storage_option),
        progress=not quiet,
    )
    finish(result, format, run)


def finish(result: dict[str, Any], format: Format, run: str) -> None:
    """Write classify's answer, warn about what the set lacks, and choose the exit code."""
    if not result.get("trained", True):
        say("Warning: the weights of this model set are untrained; the classes mean nothing.")
    if result.get("anomaly_ref_id") is None:
        say(
            "The model set has no anomaly reference, so the rows have no anomaly scores (models fit-anomaly)."
        )
    if not result["objects"] and not result["shards_remaining"]:
        say("Warning: no object was classified; is the archive empty, or the --region elsewhere?")
    following = f"applecider-batch catalog build {run} --out CATALOG"
    if result.get("shards_quarantined"):
        say("Shards were set aside. Mend what 'status' says, then classify again with --retry-quarantined.")
        following = f"applecider-batch status {run}"
    answer(result, format, next_command=following)
    if result.get("shards_quarantined") or result.get("objects_in_error"):
        raise typer.Exit(EXIT_SET_ASIDE)


def status(
    run: RunArgument, storage_option: StorageOption = None, format: FormatOption = Format.human
) -> None:
    """What a run was asked, what is done, what failed and why, how fast: from its folder alone.

    Example: applecider-batch status RUN
    """
    from applecider_batch.engine import api

    answer(api.status(run, storage_options=parse_storage_options(storage_option)), format)


def logs(
    run: RunArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Last lines to show.")] = 50,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """The last lines of a run's log.

    Example: applecider-batch logs RUN -n 100
    """
    from applecider_batch.engine import api

    found = api.logs(run, lines=lines, storage_options=parse_storage_options(storage_option))
    if format is Format.json:
        answer({"lines": found}, format)
    else:
        for line in found:
            typer.echo(line)


def cancel(
    run: RunArgument, storage_option: StorageOption = None, format: FormatOption = Format.human
) -> None:
    """Ask the driver of a run to stop after the shards in work; the run can be resumed.

    Example: applecider-batch cancel RUN
    """
    from applecider_batch.engine import api

    result = api.cancel(run, storage_options=parse_storage_options(storage_option))
    if not result["cancelled"]:
        say("Nothing to stop: no process works on this run.")
    answer(result, format)
