"""``update``, and ``catalog fold|releases|gc``: catalogues that are a base and deltas."""

from __future__ import annotations

from typing import Annotated

import typer

from applecider_batch.cli.catalog import CatalogArgument, KnownOption, catalog_app
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
from applecider_batch.cli.runs import ArchiveOption, ModelsOption, ShardObjectsOption
from applecider_batch.errors import EXIT_SET_ASIDE


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(update)
    for verb in (fold, releases, gc):
        catalog_app.command()(verb)


def update(
    catalog: CatalogArgument,
    archive: ArchiveOption,
    models: ModelsOption,
    known: KnownOption = None,
    executor: ExecutorOption = Executor.serial,
    address: AddressOption = None,
    workers: TasksOption = None,
    objects_per_shard: ShardObjectsOption = 2000,
    retry_quarantined: Annotated[bool, typer.Option(help="Try shards again that were set aside.")] = False,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Bring a catalogue up to its archive: classify the objects that changed, make the next release.

    Model set, program and --known must be those of the catalogue; its other settings are taken from it.

    Example: applecider-batch update CATALOG --archive ARCHIVE --models MODELS
    """
    from applecider_batch.engine.update import update as update_catalog

    result = update_catalog(
        archive,
        catalog,
        models,
        known=known or (),
        executor=executor.value,
        address=address,
        workers=workers,
        objects_per_shard=objects_per_shard,
        retry_quarantined=retry_quarantined,
        progress=not quiet,
        storage_options=parse_storage_options(storage_option),
    )
    release = result["release"]
    if not result["changed"]:
        say(f"The archive holds nothing that release {release} of the catalogue does not have.")
    following = f"applecider-batch catalog diff {catalog}@{release - 1} {catalog}" if release > 1 else None
    answer(result, format, next_command=following)
    if result["objects_in_error"]:
        raise typer.Exit(EXIT_SET_ASIDE)


def fold(
    catalog: CatalogArgument,
    known: KnownOption = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Write a catalogue's base and deltas into a new base: the same rows, faster to read.

    With --known all rows are matched with these lists instead of those of before.

    Example: applecider-batch catalog fold CATALOG
    """
    from applecider_batch.catalog.release_upkeep import fold as fold_catalog
    from applecider_batch.logs import Progress

    options = parse_storage_options(storage_option)
    with Progress("catalog fold", unit="rows", enabled=not quiet) as progress:
        result = fold_catalog(catalog, known=known or (), storage_options=options, progress=progress)
    answer(result, format, next_command=f"applecider-batch catalog gc {catalog}")


def releases(
    catalog: CatalogArgument, storage_option: StorageOption = None, format: FormatOption = Format.human
) -> None:
    """The releases of a catalogue that can be read; every command takes one as CATALOG@N.

    Example: applecider-batch catalog releases CATALOG
    """
    from applecider_batch.catalog.release_upkeep import list_releases

    answer(list_releases(catalog, storage_options=parse_storage_options(storage_option)), format)


def gc(
    catalog: CatalogArgument,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Newest releases to keep.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Remove earlier releases of a catalogue, and files that no release names; refused beside an update.

    Example: applecider-batch catalog gc CATALOG --keep 7
    """
    from applecider_batch.catalog.release_upkeep import gc as gc_catalog

    options = parse_storage_options(storage_option)
    result = gc_catalog(catalog, keep, dry_run=dry_run, storage_options=options)
    answer(result, format)
