"""``simulate``, ``ingest`` and ``archive info|verify|compact|gc``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from applecider_batch.cli.executors import AddressOption, Executor, ExecutorOption, TasksOption
from applecider_batch.cli.output import (
    Format,
    FormatOption,
    QuietOption,
    StorageOption,
    answer,
    parse_storage_options,
    say,
)
from applecider_batch.errors import EXIT_REFUSED, EXIT_SET_ASIDE

UrlArgument = Annotated[
    str, typer.Argument(metavar="ARCHIVE", help="The archive: a folder or any fsspec URL.")
]

archive_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after an archive.")


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(simulate)
    app.command()(ingest)
    app.add_typer(archive_app, name="archive")


def simulate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; made if absent.")],
    objects: Annotated[int, typer.Option(min=1, help="Number of objects.")] = 200,
    nights: Annotated[int, typer.Option(min=1, help="Number of nights.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed; equal seeds give equal bytes.")] = 0,
    rare: Annotated[int, typer.Option(min=0, help="Rare events of no class, beside the others.")] = 0,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Make a small survey in ZTF's own format, with truth.

    Example: applecider-batch simulate survey --objects 200 --nights 60 --seed 1
    """
    from applecider_batch.logs import Progress
    from applecider_batch.simulate import simulate as run

    with Progress("simulate", unit="objects", total=objects + rare, enabled=not quiet) as progress:
        result = run(
            folder,
            n_objects=objects,
            n_nights=nights,
            seed=seed,
            n_rare=rare,
            progress=lambda *_: progress.update(),
        )
    answer(
        result,
        format,
        leave_out=("nights", "packets_per_night"),
        next_command=f"applecider-batch ingest {folder}/alerts/*.tar.gz --archive ARCHIVE",
    )


def ingest(
    archive: Annotated[str, typer.Option("--archive", metavar="URL", help="The archive; made if absent.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Nightly tarballs, folders of .avro, .avro files, Fink-layout Parquet; local or URL.",
        ),
    ] = None,
    spectra: Annotated[
        list[str] | None,
        typer.Option(
            "--spectra", metavar="FILE", help="Spectra: Parquet, CSV, ASCII or FITS; may be repeated."
        ),
    ] = None,
    photometry: Annotated[
        list[str] | None,
        typer.Option(
            "--photometry",
            metavar="FILE",
            help="Light-curve table: Parquet, CSV, ASCII or FITS; may be repeated.",
        ),
    ] = None,
    memory: Annotated[
        int, typer.Option(min=64, metavar="MIB", help="Memory for sorting, in MiB, of every process.")
    ] = 256,
    executor: ExecutorOption = Executor.serial,
    address: AddressOption = None,
    workers: TasksOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Store alert packets, light curves and spectra; each packet is decoded once and for all.

    The same source twice changes nothing. With Ray, tasks read sources and write parts; the bytes are the
    same. Exit code 3: something was set aside (see 'archive info').

    Example: applecider-batch ingest ztf_public_20240519.tar.gz --archive ARCHIVE
    """
    from applecider_batch.archive.ingest import ingest as run
    from applecider_batch.engine.ray_spread import open_spread
    from applecider_batch.errors import UsageError
    from applecider_batch.logs import Progress

    if not (sources or spectra or photometry):
        raise UsageError(
            "Nothing to ingest was given.",
            hint="Give at least one SOURCE, --spectra FILE or --photometry FILE.",
        )
    with (
        open_spread(executor.value, address, workers) as spread,
        Progress("ingest", unit="packets", enabled=not quiet) as progress,
    ):
        result = run(
            sources or [],
            archive,
            spectra=spectra or [],
            photometry=photometry or [],
            storage_options=parse_storage_options(storage_option),
            memory_bytes=memory << 20,
            progress=progress,
            spread=spread,
        )
    if format is Format.human:
        say(
            f"{result['packets_in']:,} packets in = {result['stored']:,} stored + {result['duplicates']:,} "
            f"duplicates + {result['quarantined']:,} quarantined"
        )
    if (result["jd_max_tables"] or 0) > (result["jd_max"] or 0):
        say(
            "The light curves go on after the last alert, where the archive ends: these points are stored, "
            "and seen once alerts of that time have come."
        )
    aside = result["quarantined"] + result["rejected"]
    following = f"applecider-batch classify --archive {archive} --models compact --run RUN"
    if aside:
        say(f"{aside:,} packets or rows were set aside; the next command says which and why.")
        following = f"applecider-batch archive info {archive}"
    answer(result if format is Format.json else _short(result), format, next_command=following)
    if aside:
        raise typer.Exit(EXIT_SET_ASIDE)


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """For people: no counts of what was not given; of the sources those of which something was set aside."""
    shown = {k: v for k, v in result.items() if v != 0 or k in ("packets_in", "stored", "quarantined")}
    aside = [s for s in result["sources"] if s["counts"].get("quarantined") or s["counts"].get("rejected")]
    shown.pop("sources")
    shown["sources read"], shown["sources already there"] = len(result["sources"]), len(shown.pop("already"))
    return shown | ({"set aside in": aside} if aside else {})


@archive_app.command("info")
def info(url: UrlArgument, storage_option: StorageOption = None, format: FormatOption = Format.human) -> None:
    """What is in an archive: counts, nights, sources, snapshots, and what was set aside and why.

    Example: applecider-batch archive info ARCHIVE
    """
    from applecider_batch.archive.verify import info as run

    result = run(url, storage_options=parse_storage_options(storage_option))
    answer(result, format, leave_out=("nights", "sources") if len(result["sources"]) > 10 else ())


@archive_app.command("verify")
def verify(
    url: UrlArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every row, not only digests and counts.")
    ] = False,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Check files, counts, order and digests; exit code 4 if anything is wrong.

    Example: applecider-batch archive verify ARCHIVE --deep
    """
    from applecider_batch.archive.verify import verify as run
    from applecider_batch.logs import Progress

    options = parse_storage_options(storage_option)
    with Progress("verify", unit="files", enabled=not quiet) as progress:
        result = run(url, deep=deep, storage_options=options, progress=progress)
    answer(result, format)
    if result["problems"]:
        raise typer.Exit(EXIT_REFUSED)


@archive_app.command("compact")
def compact(
    url: UrlArgument,
    full: Annotated[
        bool, typer.Option("--full", help="Merge everything, not only tiers that are full.")
    ] = False,
    executor: ExecutorOption = Executor.serial,
    address: AddressOption = None,
    workers: TasksOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Merge small parts into larger ones in a new snapshot; nothing in place is rewritten.

    Example: applecider-batch archive compact ARCHIVE
    """
    from applecider_batch.archive.compact import compact as run
    from applecider_batch.engine.ray_spread import open_spread
    from applecider_batch.logs import Progress

    options = parse_storage_options(storage_option)
    with (
        open_spread(executor.value, address, workers) as spread,
        Progress("compact", unit="rows", enabled=not quiet) as progress,
    ):
        result = run(url, full=full, storage_options=options, progress=progress, spread=spread)
    answer(result, format, next_command=f"applecider-batch archive gc {url}")


@archive_app.command("gc")
def gc(
    url: UrlArgument,
    keep: Annotated[int, typer.Option(min=1, help="Newest snapshots to keep readable.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Remove files that no kept snapshot names.

    A plan pins a snapshot: do not collect one that a run still reads.

    Example: applecider-batch archive gc ARCHIVE --keep 2
    """
    from applecider_batch.archive.gc import gc as run

    answer(
        run(url, keep=keep, dry_run=dry_run, storage_options=parse_storage_options(storage_option)), format
    )
