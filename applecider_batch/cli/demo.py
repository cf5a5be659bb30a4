"""``demo``: the whole way on a small simulated survey."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from applecider_batch.cli.output import Format, FormatOption, QuietOption, answer, say

MODELS = "compact"
RARE_EVENTS = 5
TRANSIENTS = ("SN I", "SN II", "TDE")
FEWEST_ALERTS = 3
FIRST = 10
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
    """Walk the whole way on a simulated survey: ingest, classify, catalogue, candidates, report.

    The packaged model set ``compact`` classifies it on local Ray. Transients are left out of the list of
    known ones, rare events added, and the search is checked: does it find them? That checks the software and
    says nothing about the sky.

    Example: applecider-batch demo demo
    """
    result = run_demo(
        folder, objects=objects, nights=nights, seed=seed, executor=executor, progress=not quiet
    )
    found = result["check"]
    say("")
    say(
        f"Planted: {found['planted']} transients that the list of known ones lacks, {found['rare']} of them "
        f"rare. Found: {found['found']} (recall {_share(found['recall'])}), among the "
        f"{found['short_list']} of the short list (purity {_share(found['purity'])})."
    )
    say("This checks the software on simulated data; it is not a performance.")
    for line in found["not_found"]:
        say(f"  not found: {line}")
    then = f"open {result['report']} in a browser, or try:"
    answer(result, format, leave_out=("check",), next_command=then)
    if format is Format.human:
        for line in things_to_try(folder):
            say(f"  {line}")
        say("\nOn your own nights, where every command names the next one:")
        say(f"  {_program()} ingest ztf_public_YYYYMMDD.tar.gz --archive ARCHIVE")


def _program() -> str:
    """How this program is called here: by its name, or as it was called where no shell finds the name."""
    name, called = "applecider-batch", sys.argv[0]
    return called if Path(called).name == name and shutil.which(name) is None else name


def things_to_try(folder: Path) -> list[str]:
    """Three commands on what the demo made, as they are typed: what is odd, proof of the wall, the truth."""
    odd = "SELECT objectId, horizon_days, class_top1, prob_top1 FROM catalogue WHERE anomaly_flag > 0"
    catalog, run, archive, truth, page = (
        shlex.quote(str(folder / name))
        for name in ("catalog", "run", "archive", "survey/truth.parquet", "truth.html")
    )
    program = _program()
    return [
        f'{program} catalog query {catalog} "{odd}"',
        f"{program} catalog audit {run}",
        f"{program} report {catalog} --archive {archive} --truth {truth} --out {page}",
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


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
    from applecider_batch.catalog.candidates import find_candidates
    from applecider_batch.catalog.known import read_known
    from applecider_batch.catalog.verify import verify_catalog
    from applecider_batch.engine import api
    from applecider_batch.logs import Progress
    from applecider_batch.report.page import write_report
    from applecider_batch.simulate import simulate

    api.check_executor(executor, None, None, None)
    start = time.monotonic()
    _claim(folder, {"objects": objects, "nights": nights, "seed": seed})
    places = {name: folder / name for name in ("survey", "archive", "run", "catalog")}
    with Progress("simulate", objects + RARE_EVENTS, unit="objects", enabled=progress) as bar:
        survey = simulate(
            places["survey"],
            n_objects=objects,
            n_nights=nights,
            seed=seed,
            n_rare=RARE_EVENTS,
            progress=lambda *_: bar.update(),
        )
    with Progress("ingest", unit="packets", enabled=progress) as bar:
        ingested = ingest(
            [str(night) for night in survey["nights"]],
            str(places["archive"]),
            spectra=[str(places["survey"] / "spectra.parquet")],
            progress=bar,
        )
    classified = api.classify(
        str(places["archive"]),
        MODELS,
        str(places["run"]),
        horizons=DEMO_HORIZONS,
        executor=executor,
        objects_per_shard=max(1, objects // 4),
        progress=progress,
    )
    known = read_known(str(places["survey"] / "known_transients.csv"))
    built = build_catalog(str(places["run"]), str(places["catalog"]), known=[known])
    verified = verify_catalog(str(places["catalog"]))
    candidates, page = folder / "candidates.parquet", folder / "report.html"
    find_candidates(str(places["catalog"]), str(candidates))
    write_report(str(places["catalog"]), str(places["archive"]), page, candidates=str(candidates))
    return {
        "packets_in": ingested["packets_in"],
        "stored": ingested["stored"],
        "duplicates": ingested["duplicates"],
        "quarantined": ingested["quarantined"],
        "objects": classified["objects"],
        "rows": built["rows"],
        "models": MODELS,
        "simulated": True,
        "check": check_search(places["survey"] / "truth.parquet", candidates),
        "content_sha256": verified["content_sha256"],
        "problems": verified["problems"],
        "seconds": round(time.monotonic() - start, 1),
        "report": str(page),
    }


def check_search(truth: Path, candidates: Path) -> dict[str, Any]:
    """How much of what was planted the search found.

    Planted are the simulated transients that the list of known ones lacks and that have at least
    :data:`FEWEST_ALERTS` positive alerts. The short list are the candidates that were more likely a transient
    than not at some horizon, or are among the :data:`FIRST` best.

    Returns
    -------
    dict
        ``planted, rare, found, recall, short_list, purity`` and a line for each one ``not_found``.
    """
    import pyarrow.parquet as pq

    from applecider_batch.simulate.transients import RARE

    rows = pq.read_table(truth, columns=["objectId", "class", "type", "in_known_list", "n_alerts_positive"])
    planted = {
        row["objectId"]: row
        for row in rows.to_pylist()
        if (row["class"] in TRANSIENTS or row["type"] == RARE)
        and not row["in_known_list"]
        and row["n_alerts_positive"] >= FEWEST_ALERTS
    }
    ranked = pq.read_table(candidates, columns=["objectId", "rank", "first_horizon"]).to_pylist()
    short = {r["objectId"] for r in ranked if r["first_horizon"] is not None or r["rank"] <= FIRST}
    found = short & planted.keys()
    return {
        "planted": len(planted),
        "rare": sum(row["type"] == RARE for row in planted.values()),
        "found": len(found),
        "recall": len(found) / len(planted) if planted else None,
        "short_list": len(short),
        "purity": len(found) / len(short) if short else None,
        "not_found": [
            f"{name}, {planted[name]['type']}, {planted[name]['n_alerts_positive']} alerts"
            for name in sorted(planted.keys() - short)
        ],
    }
