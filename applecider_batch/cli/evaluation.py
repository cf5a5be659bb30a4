"""``evaluate models`` and ``calibrate``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from applecider_batch.cli.labelled import LabelledData
from applecider_batch.cli.option_groups import expand_groups
from applecider_batch.cli.output import Format, answer, say

evaluate_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Say what networks are worth.")


class Part(StrEnum):
    """Sides of a split."""

    train = "train"
    validation = "validation"
    test = "test"
    all = "all"


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.add_typer(evaluate_app, name="evaluate")
    app.command()(calibrate)


@evaluate_app.command("models")
@expand_groups
def evaluate(
    given: LabelledData,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for numbers and figures.")],
    part: Annotated[Part, typer.Option("--part", help="Side of the split to judge on.")] = Part.test,
    horizons: Annotated[
        str, typer.Option("--horizons", metavar="DAYS,…", help="Days after t0, and 'full'.")
    ] = "3,5,10,20,30,50,100,full",
    alert_days: Annotated[
        float,
        typer.Option("--alert-days", min=0, help="Figures per alert up to so many days; 0: none."),
    ] = 100.0,
    include_trained: Annotated[
        bool, typer.Option("--include-trained", help="Judge objects that trained a network in use, too.")
    ] = False,
    draws: Annotated[int, typer.Option("--draws", min=0, help="Resamples for the intervals.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resamples.")] = 0,
) -> None:
    """Judge the networks in use by modality and fused: horizon sweep, intervals, figures, source probe.

    Give the split that the networks were trained with.

    Example: applecider-batch evaluate models --archive ARCHIVE --labels labels.parquet --models MODELS
    --out EVALUATION
    """
    from applecider_batch.cli.runs import parse_horizons
    from applecider_batch.training.evaluate import evaluate_models
    from applecider_batch.training.probe import probe_sentences

    result = evaluate_models(
        given.data(),
        out,
        part=part.value,
        horizons=parse_horizons(horizons),
        alert_days=alert_days,
        include_trained=include_trained,
        draws=draws,
        seed=seed,
    )
    for sentence in probe_sentences(result["source_probe"]):
        say(sentence)
    if result["left_out"]["in_training_set"]:
        say(f"{result['left_out']['in_training_set']} objects that trained a network in use are left out.")
    if not result["left_out"]["training_sets_known"]:
        say(
            "Warning: not every network in use says what trained it; figures may be on objects that it knows."
        )
    if not result["trained"]:
        say("Warning: the weights of this model set are untrained.")
    if given.format is Format.json:
        answer(result, given.format)
    else:
        next_command = f"tables.md, evaluation.json and the figures in {out}"
        answer(_short(result), given.format, next_command=next_command)


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """One line per modality and horizon, for people."""
    rows = [
        {
            "what": what,
            "horizon": horizon,
            "objects": found.get("objects", 0),
            **{
                name: found.get("measures", {}).get(name)
                for name in ("macro_auprc", "macro_auc", "balanced_accuracy", "auc SN I/SN II", "ece")
            },
        }
        for what, by_horizon in result["results"].items()
        for horizon, found in by_horizon.items()
    ]
    kept = ("model_set_id", "trained", "calibrated", "part")
    return {**{k: result[k] for k in kept}, "results": rows}


@expand_groups
def calibrate(given: LabelledData) -> None:
    """Fit temperatures on the validation objects and write them into the model set.

    Give the split that the networks were trained with. An anomaly reference was fitted with the old
    temperatures and leaves the set: run models fit-anomaly afterwards.

    Example: applecider-batch calibrate --archive ARCHIVE --labels labels.parquet --models MODELS
    """
    from applecider_batch.training.calibrate import calibrate as run

    result = run(given.data())
    if not result["calibrated"]:
        few = [name for name, count in result["counts"].items() if count < result["min_per_class"]]
        say(f"Not called calibrated: fewer than {result['min_per_class']} objects of {', '.join(few)}.")
    answer(
        result,
        given.format,
        leave_out=("format",),
        next_command=f"applecider-batch classify --archive {given.archive} --models {given.models} --run RUN",
    )
