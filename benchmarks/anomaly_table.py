"""Anomaly scores on real light curves and on a simulated survey: the tables of ``docs/anomaly.md``.

    python -m benchmarks.anomaly_table DATA WORK [--seeds 3] [--epochs 8] [--objects 2000] [--page FILE]

DATA is the folder of the real data, WORK a folder for archives, trainings (resumed) and ``anomaly.json`` of
every part. Parts: ``real`` (split by object), ``later`` (real, split by date of t0: the later ones test) and
``simulated``. In each of them light-curve networks are trained without SN I, SN II, TDE in turn, and with all
classes for the types outside them (``later``: only the last). A type outside the five classes is what the
source's own type string says (SLSN, SN Ibn, …). With ``--page`` the tables replace what stands between the
marks in that file; with ``--parts ""`` they are made of what WORK holds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl

from applecider_batch.archive.ingest import ingest
from applecider_batch.models.model_set import init_model_set
from applecider_batch.simulate.survey import simulate
from applecider_batch.taxonomy import CLASSES, OTHER
from applecider_batch.training.anomaly_evaluate import METHODS, evaluate_anomaly
from applecider_batch.training.anomaly_rates import DETECTIONS, MAGNITUDES
from applecider_batch.training.splits import SplitRule

LEFT_OUT = (OTHER, "TDE", "SN II", "SN I")
#: The simulated survey has about a tenth of the objects, so an epoch has a tenth of the steps.
FEWER_OBJECTS = 5
SHOWN = ("3d", "10d", "30d", "100d", "full")
NAMES = {"features_iforest": "plain forest, no network", "iforest": "plain forest, latents"}
MARKS = "<!-- tables: python -m benchmarks.anomaly_table -->", "<!-- end of tables -->"


def real_inputs(data: Path, work: Path) -> tuple[str, str]:
    """Archive of the real light curves, and their labels with the source's type where there is no class."""
    archive, labels = work / "archive", work / "labels.parquet"
    ingest([], str(archive), photometry=[str(data / "lightcurves/ztf_lightcurves.parquet")])
    table = pl.read_parquet(data / "lightcurves/ztf_objects.parquet")
    kept = table.select("objectId", "object_key", "source", type=pl.coalesce("class5", "type_folder"))
    kept.write_parquet(labels)
    return str(archive), str(labels)


def simulated_inputs(work: Path, objects: int) -> tuple[str, str]:
    """Archive and labels of a simulated survey; what is there is used again."""
    survey, archive, labels = work / "survey", work / "survey_archive", work / "survey_labels.parquet"
    if not (survey / "simulation.json").exists():
        simulate(survey, n_objects=objects, n_nights=60, seed=7)
    ingest([str(survey / "alerts")], str(archive))
    truth = pl.read_parquet(survey / "truth.parquet").filter(pl.col("class").is_not_null())
    truth.select("objectId", type="class").write_parquet(labels)
    return str(archive), str(labels)


def left_out_table(result: dict[str, Any]) -> list[str]:
    """AUROC (mean over seeds, interval), and what a ranked list of the best single score finds."""
    lines = [
        "| left out | horizon | anomalies / crowd | " + " | ".join(NAMES.get(m, m) for m in METHODS) + " |",
        "|---" * (3 + len(METHODS)) + "|",
    ]
    for name, by_horizon in result["left_out"].items():
        for horizon in SHOWN:
            found = by_horizon[horizon]
            if "methods" not in found:
                continue
            cells = []
            for method in METHODS:
                auroc = found["methods"][method]["auroc"]
                low, high = auroc["interval"]
                cells.append(f"{auroc['mean']:.2f} ({low:.2f}–{high:.2f})")
            lines.append(
                f"| {name} | {horizon} | {found['anomalies']} / {found['crowd']} | {' | '.join(cells)} |"
            )
    return lines


def list_table(result: dict[str, Any], horizon: str = "30d") -> list[str]:
    """What ranked lists hold at one horizon."""
    lines = [
        f"| left out ({horizon}) | score | share of the sample | AUPRC | recall@40 | recall@100 "
        "| recall@2000 | recall at 1 % false alarms | AUROC of the seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_horizon in result["left_out"].items():
        found = by_horizon[horizon]
        for method in METHODS if "methods" in found else ():
            values = found["methods"][method]
            mean = {key: v["mean"] for key, v in values.items()}
            spread = f"{values['auroc']['lowest']:.2f}–{values['auroc']['highest']:.2f}"
            lines.append(
                f"| {name} | {NAMES.get(method, method)} | {found['base_rate']:.3f} | {mean['auprc']:.2f} | "
                + " | ".join(f"{mean[key]:.2f}" for key in ("recall@40", "recall@100", "recall@2000"))
                + f" | {mean['recall@1%']:.2f} | {spread} |"
            )
    return lines


def rate_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Share of known objects that the 1 % flag takes, by horizon, detections and magnitude."""
    detections, magnitudes = ([name for name, _, _ in bins] for bins in (DETECTIONS, MAGNITUDES))
    heads = [*(f"{name} det." for name in detections), *(f"{name} mag" for name in magnitudes)]
    lines = [f"| sample | horizon | seed | all | {' | '.join(heads)} |", "|---" * (4 + len(heads)) + "|"]
    for sample, result in results.items():
        for seed, rates in enumerate(result["flags"]):
            for horizon in ("3d", "30d", "full"):
                found = rates[horizon]
                cells = [
                    found["levels"][0],
                    *(found["by_detections"][name] for name in detections),
                    *(found["by_magnitude"][name] for name in magnitudes),
                ]
                lines.append(f"| {sample} | {horizon} | {seed} | {' | '.join(map(_rate, cells))} |")
    return lines


def class_table(results: dict[str, dict[str, Any]], horizon: str = "30d") -> list[str]:
    """The same by predicted class at one horizon."""
    lines = [f"| sample, {horizon} | seed | " + " | ".join(CLASSES) + " |", "|---" * 7 + "|"]
    for sample, result in results.items():
        for seed, rates in enumerate(result["flags"]):
            cells = rates[horizon]["by_class"]
            lines.append(f"| {sample} | {seed} | {' | '.join(_rate(cells[name]) for name in CLASSES)} |")
    return lines


def _rate(cell: dict[str, Any]) -> str:
    if not cell["n"]:
        return "–"
    low, high = 100 * cell["low"], 100 * cell["high"]
    return f"{cell['flagged']}/{cell['n']}: {100 * cell['rate']:.1f} % ({low:.1f}–{high:.1f})"


def page(results: dict[str, dict[str, Any]]) -> str:
    """All tables."""
    parts: list[str] = []
    for sample, title in (("real", "Real light curves"), ("simulated", "Simulated survey")):
        if sample in results:
            parts += [f"### {title}: a class left out, AUROC", "", *left_out_table(results[sample]), ""]
            parts += [f"### {title}: ranked lists", "", *list_table(results[sample]), ""]
    parts += ["### How often the 1 % flag fires on known classes", "", *rate_table(results), ""]
    parts += ["### The same by predicted class", "", *class_table(results), ""]
    return "\n".join(parts)


def main() -> None:
    """Run all parts and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--parts", default="real,later,simulated")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    models = asked.work / "set"
    if not models.exists():
        init_model_set(models)
    rules = {"later": SplitRule("date", validation=0.2, test=0.25)}
    for part in filter(None, asked.parts.split(",")):
        simulated = part == "simulated"
        archive, labels = (
            simulated_inputs(asked.work, asked.objects) if simulated else real_inputs(asked.data, asked.work)
        )
        evaluate_anomaly(
            archive,
            labels,
            str(models),
            str(asked.work / part),
            horizons=(3.0, 10.0, 30.0, 100.0, None),
            leave_out=[OTHER] if part == "later" else LEFT_OUT,
            seeds=asked.seeds,
            epochs=asked.epochs * (FEWER_OBJECTS if simulated else 1),
            label_column="type",
            split=rules.get(part, SplitRule(validation=0.2, test=0.25)),
            progress=True,
        )
    files = {p: asked.work / p / "anomaly.json" for p in ("real", "later", "simulated")}
    text = page({p: json.loads(f.read_text()) for p, f in files.items() if f.exists()})
    print(text)
    if asked.page is not None:
        before, _, rest = asked.page.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        asked.page.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
