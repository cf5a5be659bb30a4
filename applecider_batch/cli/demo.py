"""``demo``: the whole way on a small simulated survey."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from applecider_batch.cli.output import Format, FormatOption, QuietOption, answer, say

DEMO_HORIZONS: list[float | None] = [3.0, 10.0, 30.0, None]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(demo)


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder to write.")] = Path("demo"),
    objects: Annotated[int, typer.Option(min=10, help="Objects to simulate.")] = 120,
    nights: Annotated[int, typer.Option(min=5, help="Nights to simulate.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed.")] = 1,
    executor: Annotated[str, typer.Option(help="ray or serial.")] = "ray",
    format: FormatOption = Format.human,
    quiet: QuietOption = False,
) -> None:
    """Walk the whole way: simulate, ingest, classify on local Ray, catalogue, report.

    The survey is simulated and the weights are untrained: this shows the machinery, not the classes.

    Example: applecider-batch demo demo
    """
    result = run_demo(
        folder, objects=objects, nights=nights, seed=seed, executor=executor, progress=not quiet
    )
    say("")
    answer(result, format, next_command=f"open {result['report']} in a browser; then on your own nights:")
    if format is Format.human:
        say("  applecider-batch ingest ztf_public_YYYYMMDD.tar.gz --archive ARCHIVE")
        say(
            f"  applecider-batch classify --archive ARCHIVE --models {folder}/models --run RUN --executor ray"
        )
        say("  applecider-batch catalog build RUN --out CATALOG")


def _claim(folder: Path, parameters: dict[str, int]) -> None:
    """Take the folder for a demo of these parameters; an interrupted one goes on, another is refused."""
    from applecider_batch.errors import UserError
    from applecider_batch.storage import Store

    store = Store(folder)
    if not store.exists("demo.json"):
        if store.ls():
            raise UserError(
                f"'{folder}' holds something else than a demo.", hint="Name a new or empty folder."
            )
        store.write_json_atomic("demo.json", parameters)
    elif store.read_json("demo.json") != parameters:
        raise UserError(
            f"'{folder}' holds a demo with {store.read_json('demo.json')}, and asked for is {parameters}.",
            hint="Name another folder, or remove this one.",
        )


def run_demo(
    folder: Path, *, objects: int, nights: int, seed: int, executor: str, progress: bool
) -> dict[str, Any]:
    """The demo as a function; each step is the same library call as the command of that name."""
    from applecider_batch.archive.ingest import ingest
    from applecider_batch.catalog.build import build_catalog
    from applecider_batch.catalog.verify import verify_catalog
    from applecider_batch.engine import api
    from applecider_batch.logs import Progress
    from applecider_batch.models.model_set import init_model_set
    from applecider_batch.report.page import write_report
    from applecider_batch.simulate import simulate

    start = time.monotonic()
    _claim(folder, {"objects": objects, "nights": nights, "seed": seed})
    places = {name: folder / name for name in ("survey", "archive", "models", "run", "catalog")}
    with Progress("simulate", objects, unit="objects", enabled=progress) as bar:
        survey = simulate(
            places["survey"], n_objects=objects, n_nights=nights, seed=seed, progress=lambda *_: bar.update()
        )
    with Progress("ingest", unit="packets", enabled=progress) as bar:
        ingested = ingest(
            [str(night) for night in survey["nights"]],
            str(places["archive"]),
            spectra=[str(places["survey"] / "spectra.parquet")],
            progress=bar,
        )
    if not (places["models"] / "model_set.toml").exists():
        init_model_set(places["models"], profile="paper", seed=seed)
    classified = api.classify(
        str(places["archive"]),
        str(places["models"]),
        str(places["run"]),
        horizons=DEMO_HORIZONS,
        executor=executor,
        objects_per_shard=max(1, objects // 4),
        progress=progress,
    )
    built = build_catalog(str(places["run"]), str(places["catalog"]))
    verified = verify_catalog(str(places["catalog"]))
    page = folder / "report.html"
    write_report(str(places["catalog"]), str(places["archive"]), page)
    return {
        "packets_in": ingested["packets_in"],
        "stored": ingested["stored"],
        "duplicates": ingested["duplicates"],
        "quarantined": ingested["quarantined"],
        "objects": classified["objects"],
        "rows": built["rows"],
        "trained": False,
        "simulated": True,
        "content_sha256": verified["content_sha256"],
        "problems": verified["problems"],
        "seconds": round(time.monotonic() - start, 1),
        "report": str(page),
    }
