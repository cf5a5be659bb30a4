"""``candidates find|label|drafts|completeness``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from applecider_batch.cli.output import Format, FormatOption, StorageOption, answer, parse_storage_options

candidates_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The transients that nobody reported."
)
CatalogArgument = Annotated[str, typer.Argument(metavar="CATALOG", help="The catalogue's folder or URL.")]
OutOption = Annotated[
    str, typer.Option("--out", metavar="FILE", help="File to write: .parquet, .csv or .json.")
]
HorizonOption = Annotated[
    str | None,
    typer.Option("--horizon", metavar="DAYS", help="Rank by the rows of this horizon (or 'full'); the last."),
]
TopOption = Annotated[int, typer.Option("--top", min=1, help="Candidates to keep.")]
ThresholdOption = Annotated[
    float, typer.Option("--threshold", help="Probability of a transient that 'first_horizon' waits for.")
]
NeighbourOption = Annotated[
    float, typer.Option("--neighbour-radius", help="List other objects of the catalogue within; arcsec.")
]
UncheckedOption = Annotated[
    bool, typer.Option("--include-unchecked", help="Also those that no list could be asked about.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.add_typer(candidates_app, name="candidates")


@candidates_app.command("find")
def find(
    catalog: CatalogArgument,
    out: OutOption,
    horizon: HorizonOption = None,
    top: TopOption = 500,
    threshold: ThresholdOption = 0.5,
    neighbour_radius: NeighbourOption = 10.0,
    include_unchecked: UncheckedOption = False,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Rank the missed transients of a catalogue, with the evidence for each.

    Example: applecider-batch candidates find CATALOG --out candidates.parquet
    """
    from applecider_batch.catalog.candidates import FindOptions, find_candidates

    options = FindOptions(horizon, top, threshold, neighbour_radius, include_unchecked)
    result = find_candidates(catalog, out, options, storage_options=parse_storage_options(storage_option))
    page = f"applecider-batch report {catalog} --archive ARCHIVE --candidates {out} --out report.html"
    answer(result, format, leave_out=("content_sha256", "run_id"), next_command=page)


@candidates_app.command("label")
def label(
    catalog: CatalogArgument,
    labels: Annotated[
        str, typer.Option("--labels", metavar="FILE.csv", help="objectId, episode, label (yes, no, unsure).")
    ],
    out: OutOption,
    horizon: HorizonOption = None,
    top: TopOption = 500,
    threshold: ThresholdOption = 0.5,
    neighbour_radius: NeighbourOption = 10.0,
    include_unchecked: UncheckedOption = False,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Rank the missed transients again, by what your labels say about some of them.

    Example: applecider-batch candidates label CATALOG --labels labels.csv --out candidates.parquet
    """
    from applecider_batch.catalog.candidates import FindOptions
    from applecider_batch.catalog.feedback import label_candidates

    options = FindOptions(horizon, top, threshold, neighbour_radius, include_unchecked)
    storage = parse_storage_options(storage_option)
    result = label_candidates(catalog, labels, out, options, storage_options=storage)
    answer(result, format, leave_out=("content_sha256", "run_id"))


@candidates_app.command("drafts")
def drafts(
    candidates: Annotated[
        str, typer.Argument(metavar="CANDIDATES", help="A .parquet or .json that find or label wrote.")
    ],
    archive: Annotated[str, typer.Option("--archive", metavar="URL", help="The archive, for photometry.")],
    settings: Annotated[
        str, typer.Option("--settings", metavar="FILE.toml", help="Who reports: [tns] and [skyportal].")
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    top: Annotated[int | None, typer.Option("--top", min=1, help="Only the first candidates.")] = None,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Draft a TNS bulk report and SkyPortal classifications as files; nothing is sent.

    Example: applecider-batch candidates drafts candidates.parquet --archive ARCHIVE --settings drafts.toml
    --out DRAFTS --top 20
    """
    from applecider_batch.catalog.drafts import write_drafts

    storage = parse_storage_options(storage_option)
    answer(write_drafts(candidates, archive, settings, out, top=top, storage_options=storage), format)


@candidates_app.command("completeness")
def completeness(
    archive: Annotated[str, typer.Option("--archive", metavar="URL", help="Light curves and alerts.")],
    models: Annotated[str, typer.Option("--models", metavar="SET", help="The model set.")],
    labels: Annotated[
        str, typer.Option("--labels", metavar="FILE", help="objectId and class: whose light curves to take.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Local folder to write.")],
    injections: Annotated[int, typer.Option("--injections", min=1, help="Light curves to inject.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")] = 0,
    horizon: Annotated[
        float | None, typer.Option("--horizon", help="Search so many days after t0; the full history.")
    ] = None,
    threshold: ThresholdOption = 0.5,
    storage_option: StorageOption = None,
    format: FormatOption = Format.human,
) -> None:
    """Measure what the search finds: real light curves injected at other epochs, magnitudes and hosts.

    They go through ingest, classify, catalog build and candidates find like any packet.

    Example: applecider-batch candidates completeness --archive ARCHIVE --models MODELS
    --labels labels.parquet --out COMPLETENESS
    """
    from applecider_batch.engine.completeness import measure_completeness
    from applecider_batch.report.recovery import recovery_figure
    from applecider_batch.storage import Store

    result = measure_completeness(
        archive,
        models,
        labels,
        str(out),
        count=injections,
        seed=seed,
        horizon=horizon,
        threshold=threshold,
        storage_options=parse_storage_options(storage_option),
    )
    title = f"{injections} injections, {models}, horizon {result['horizon']}, prob_transient >= {threshold:g}"
    Store(out).write_atomic("recovery.png", recovery_figure(result["recovery"], title))
    answer(result, format, leave_out=("recovery",))
