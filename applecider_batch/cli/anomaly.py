"""``models fit-anomaly``, ``evaluate anomaly``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from applecider_batch.cli.evaluation import evaluate_app
from applecider_batch.cli.labelled import LabelledData
from applecider_batch.cli.models import models_app
from applecider_batch.cli.option_groups import expand_groups
from applecider_batch.cli.output import Format, QuietOption, answer, say


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to the groups ``models`` and ``evaluate``."""
    models_app.command("fit-anomaly")(fit)
    evaluate_app.command("anomaly")(evaluate)


@expand_groups
def fit(
    given: LabelledData,
    horizons: Annotated[
        str, typer.Option("--horizons", metavar="DAYS,…", help="Days after t0, and 'full'.")
    ] = "3,5,10,20,30,50,100,full",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the forests.")] = 0,
) -> None:
    """Fit anomaly scores on the training objects, calibrate them on the validation objects.

    Give the split that the networks were trained with. Without this a run has no anomaly scores.

    Example: applecider-batch models fit-anomaly --archive ARCHIVE --labels labels.parquet --models MODELS
    """
    from applecider_batch.cli.runs import parse_horizons
    from applecider_batch.training.anomaly import fit_anomaly

    result = fit_anomaly(
        horizons=parse_horizons(horizons),
        seed=seed,
        **given.arguments(),
    )
    if not result["trained"]:
        say("Warning: the weights of this model set are untrained; what is anomalous to them means nothing.")
    if result["trained_on_left_out"]:
        say(
            f"{result['trained_on_left_out']} validation objects were left out because a network was trained "
            "on them: is this the split of the training?"
        )
    lowest = min((group["lowest_p"] for group in result["groups"]), default=1.0)
    if lowest > 0.001:
        say(f"The 0.1 % flag can never fire: the lowest p that this reference can give is {lowest:.2g}.")
    answer(
        result,
        given.format,
        next_command=f"applecider-batch classify --archive ARCHIVE --models {given.models} --run RUN",
    )


@expand_groups
def evaluate(
    given: LabelledData,
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder for numbers and trainings; resumed.")
    ],
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            "--leave-out",
            metavar="CLASS",
            help="Class to train without; may be repeated. All with enough objects, and OTHER, if not given.",
        ),
    ] = None,
    horizons: Annotated[
        str, typer.Option("--horizons", metavar="DAYS,…", help="Days after t0; 10, 30, 100 and full always.")
    ] = "3,5,10,20,30,50,100,full",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings for each class left out.")] = 3,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of each of these trainings.")] = 15,
    quiet: QuietOption = False,
) -> None:
    """Leave classes out of a small light-curve network and find them; count how often the flags fire.

    Trains a small network for each class left out and each seed, so it takes as long as that. The flags of
    the model set's own reference are counted on the split's test objects: give the split it was fitted with.

    Example: applecider-batch evaluate anomaly --archive ARCHIVE --labels labels.parquet --models MODELS
    --out ANOMALY
    """
    from applecider_batch.cli.runs import parse_horizons
    from applecider_batch.training.anomaly_evaluate import evaluate_anomaly

    result = evaluate_anomaly(
        out=out,
        leave_out=leave_out,
        horizons=parse_horizons(horizons),
        seeds=seeds,
        epochs=epochs,
        progress=not quiet,
        **given.arguments(),
    )
    if result["set_flags"] is None:
        say("The model set has no anomaly reference, so its flags were not checked.")
    if given.format is Format.json:
        answer(result, given.format)
    else:
        answer(_short(result), given.format, next_command=f"all numbers in {out}/anomaly.json")


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """AUROC of every score by class left out and horizon, for people."""
    rows = [
        {
            "left out": name,
            "horizon": horizon,
            "anomalies": found["anomalies"],
            "crowd": found["crowd"],
            **{method: values["auroc"]["mean"] for method, values in found.get("methods", {}).items()},
        }
        for name, by_horizon in result["left_out"].items()
        for horizon, found in by_horizon.items()
        if "methods" in found
    ]
    return {"model_set_id": result["model_set_id"], "objects": result["objects"], "auroc": rows}
