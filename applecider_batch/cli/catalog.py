"""``catalog build|verify|export|query|diff|audit`` and ``report``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
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

catalog_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build and use catalogues.")
CatalogArgument = Annotated[str, typer.Argument(metavar="CATALOG", help="The catalogue's folder or URL.")]
KnownOption = Annotated[
    list[str] | None,
    typer.Option(
        "--known",
        metavar="[KIND=]FILE",
        help="List to cross-match with; KIND transient, minor_planet, variable_star or agn; repeatable.",
    ),
]


class ExportFormat(StrEnum):
    """Formats a catalogue can be written in."""

    parquet = "parquet"
    csv = "csv"
    ecsv = "ecsv"
    hats = "hats"
    votable = "votable"
    fits = "fits"


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.add_typer(catalog_app, name="catalog")
    app.command()(report)


@catalog_app.command("build")
def build(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run's folder or URL.")],
    out: Annotated[str, typer.Option("--out", metavar="URL", help="The catalogue to write.")],
    allow_partial: Annotated[
        bool, typer.Option(help="Build although shards are missing; it says so.")
    ] = False,
    known: KnownOption = None,
    match_radius: Annotated[float, typer.Option("--match-radius", help="Arcsec.")] = 3.0,
    window: Annotated[
        tuple[float, float], typer.Option("--window", help="Days after the first detection: FROM TO.")
    ] = (-30.0, 100.0),
    late_after: Annotated[float, typer.Option("--late-after", help="Days until a report is late.")] = 10.0,
    executor: ExecutorOption = Executor.serial,
    address: AddressOption = None,
    workers: TasksOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Build a catalogue from a run's committed shards, checking counts, duplicates and checksums.

    Example: applecider-batch catalog build RUN --out CATALOG
    """
    from applecider_batch.catalog.build import build_catalog
    from applecider_batch.catalog.crossmatch import MatchOptions
    from applecider_batch.catalog.known import parse_known, read_known
    from applecider_batch.engine.ray_spread import open_spread
    from applecider_batch.logs import Progress

    options = parse_storage_options(storage_option)
    lists = [(kind, file) for kind, file in map(parse_known, known or ())]
    replaced = _matched_with(out, options)
    with (
        open_spread(executor.value, address, workers) as spread,
        Progress("catalog build", unit="shards", enabled=not quiet) as progress,
    ):
        result = build_catalog(
            run,
            out,
            allow_partial=allow_partial,
            storage_options=options,
            known=[read_known(file, kind, storage_options=options) for kind, file in lists],
            match=MatchOptions(match_radius, window, late_after),
            progress=progress,
            spread=spread,
        )
    if replaced and replaced != (now := _lists(result)):
        say(f"The catalogue of this run that was here, matched with {replaced}, is replaced; now: {now}.")
    for used in (result["crossmatch"] or {}).get("lists", ()):
        if used["rejected"] or not used["rows"]:
            say(
                f"Warning: of the list '{used['list']}' {used['rows']:,} rows were matched with; "
                f"{used['rejected']:,} have no position that can be read, in degrees."
            )
    answer(
        result if format is Format.json else _short(result),
        format,
        next_command=f"applecider-batch candidates find {out} --out candidates.parquet"
        if known
        else f"applecider-batch catalog verify {out}",
    )
    if result.get("partial"):
        raise typer.Exit(EXIT_SET_ASIDE)


def _lists(info: Mapping[str, Any]) -> str:
    return ", ".join(used["list"] for used in (info["crossmatch"] or {}).get("lists", ())) or "no list"


def _matched_with(url: str, options: Mapping[str, Any] | None) -> str:
    """Names of the lists of the catalogue that is there already; empty where there is none."""
    from applecider_batch.catalog.store import CATALOG_FILE
    from applecider_batch.storage import Store

    try:
        return _lists(Store(url, options).read_json(CATALOG_FILE))
    except (FileNotFoundError, NotADirectoryError, KeyError):
        return ""


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """For people: what came of the objects, in tables; of shards and rows only what is missing."""
    from applecider_batch.catalog.funnel import funnel_table

    names = ("run_id", "content_sha256", "as_of_jd", "horizons", "rows", "objects", "episodes", "trained")
    troubles = (
        "missing_shards", "quarantined_shards", "degraded_shards", "errors", "rows_in_error",
        "rows_without_position", "simulated_rows",
    )  # fmt: skip
    shown = {name: result[name] for name in names}
    shown |= {name: result[name] for name in troubles if result[name]}
    shown |= {name: result[name] for name in ("gates", "known_status")}
    shown["classes"] = [{"horizon": horizon, **counts} for horizon, counts in result["classes"].items()]
    shown["cuts"] = [{"preset": preset, **counts} for preset, counts in result["cuts"].items()]
    return shown | {"funnel": funnel_table(result["funnel_by_year"])}


@catalog_app.command("verify")
def verify(
    catalog: CatalogArgument,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Check a catalogue and print its content_sha256; exit code 4 if anything is wrong.

    Example: applecider-batch catalog verify CATALOG
    """
    from applecider_batch.catalog.verify import verify_catalog
    from applecider_batch.logs import Progress

    options = parse_storage_options(storage_option)
    with Progress("catalog verify", unit="rows", enabled=not quiet) as progress:
        result = verify_catalog(catalog, storage_options=options, progress=progress)
    answer(result, format)
    if result["problems"]:
        raise typer.Exit(EXIT_REFUSED)


@catalog_app.command("export")
def export(
    catalog: CatalogArgument,
    out: Annotated[str, typer.Option("--out", metavar="PATH", help="File or folder to write.")],
    to: Annotated[ExportFormat, typer.Option("--to", help="Format; hats writes one catalogue per horizon.")],
    executor: Annotated[
        Executor, typer.Option("--executor", help="One process, or a Ray cluster (for hats).")
    ] = Executor.serial,
    address: AddressOption = None,
    workers: TasksOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Write a catalogue for other tools: Parquet, CSV, ECSV, HATS (LSDB), VOTable (TOPCAT), FITS.

    Example: applecider-batch catalog export CATALOG --to csv --out catalogue.csv
    """
    from applecider_batch.catalog.export import export_catalog
    from applecider_batch.engine.ray_spread import open_spread
    from applecider_batch.errors import UsageError
    from applecider_batch.logs import Progress

    if executor is Executor.ray and to is not ExportFormat.hats:
        raise UsageError(f"Only hats is exported by a Ray cluster; {to.value} is one file.")
    options = parse_storage_options(storage_option)
    with (
        open_spread(executor.value, address, workers) as spread,
        Progress("catalog export", unit="rows", enabled=not quiet) as progress,
    ):
        result = export_catalog(
            catalog, out, to.value, storage_options=options, progress=progress, spread=spread
        )
    answer(result, format)


@catalog_app.command("query")
def query(
    catalog: CatalogArgument,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT from the table 'catalogue'.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="All rows to .parquet, .csv or .json.")
    ] = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Ask a catalogue in SQL (docs/queries.md holds common questions).

    Example: applecider-batch catalog query CATALOG "SELECT gate, COUNT(*) AS n FROM catalogue GROUP BY gate"
    """
    from applecider_batch.catalog.query import query_catalog

    result = query_catalog(catalog, sql, out, storage_options=parse_storage_options(storage_option))
    answer(result, format, leave_out=("columns",))


@catalog_app.command("diff")
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The older catalogue.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The newer catalogue.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE.parquet", help="Every single change.")
    ] = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Say what changed class or flag between two releases, and whether by data, model, code or lists.

    Example: applecider-batch catalog diff OLD NEW --out changes.parquet
    """
    from applecider_batch.catalog.diff import diff_catalogs

    answer(diff_catalogs(old, new, out, storage_options=parse_storage_options(storage_option)), format)


@catalog_app.command("audit")
def audit(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or URL.")],
    shards: Annotated[int, typer.Option("--shards", min=1, help="Committed shards to look at.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which shards are drawn.")] = 0,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Prove on a sample that no row saw what came after its horizon; exit code 4 if one did.

    Everything after the wall is removed, inputs are made and rows computed again, and bytes are compared.

    Example: applecider-batch catalog audit RUN --shards 4
    """
    from applecider_batch.engine.audit import audit_run

    result = audit_run(run, shards=shards, seed=seed, storage_options=parse_storage_options(storage_option))
    answer(result, format)
    if not result["ok"]:
        raise typer.Exit(EXIT_REFUSED)


def report(
    catalog: CatalogArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="The page to write.")],
    archive: Annotated[
        str | None, typer.Option("--archive", metavar="URL", help="The archive, for light curves and stamps.")
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            "--candidates",
            metavar="FILE",
            help="Show these: a file of 'candidates find' or 'label', or any list with objectId (CSV, ECSV).",
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth", metavar="FILE", help="Table of objectId and true class: shows what is right."
        ),
    ] = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Write one offline HTML page about a catalogue.

    Its label buttons save a CSV that 'candidates label' reads.

    Example: applecider-batch report CATALOG --archive ARCHIVE --candidates candidates.parquet
    --out report.html
    """
    from applecider_batch.report.page import write_report

    options = parse_storage_options(storage_option)
    result = write_report(catalog, archive, out, candidates=candidates, truth=truth, storage_options=options)
    answer(result, format, next_command=f"open {out} in a browser")
