"""Stamps and fusion: AstroMiNN on real triplets and on simulated ones, fusion by hand on real objects.

    python -m benchmarks.real_images DATA WORK [--presets compact,paper] [--objects 1600]

DATA is the folder of the real data, WORK a folder for archives, trainings and ``images.json`` (what is there
is used again). Four things are shown, none of them an accuracy on real data, for which there are too few:

1. overfit: trained on all labelled real triplets and judged on the same, a network must reach 0.99;
2. simulated: trained, calibrated and evaluated on a simulated survey, split by object;
3. joint: on the same survey all three modalities, apart and then trained together;
4. fusion: on the real objects with a light curve and a spectrum, the fused probabilities of a run and of
   joint training against the mean of the modalities' probabilities computed here one object at a time.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.calibration import FUSED, Calibration
from applecider_batch.models import build_network
from applecider_batch.models.card import ModelCard
from applecider_batch.models.model_set import ModelSet, init_model_set
from applecider_batch.simulate import simulate
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES
from applecider_batch.training.answers import ask
from applecider_batch.training.calibrate import calibrate
from applecider_batch.training.dataset import load_dataset
from applecider_batch.training.evaluate import evaluate_models
from applecider_batch.training.image import PRESETS, PROFILE, train_image
from applecider_batch.training.image_task import (
    ImageAugmentation,
    ImageTask,
    load_examples,
    metadata_statistics,
    predict_images,
)
from applecider_batch.training.joint import joint_examples, train_joint
from applecider_batch.training.joint_task import JointNetwork, predict_joint
from applecider_batch.training.labels import read_labels
from applecider_batch.training.metrics import measures
from applecider_batch.training.photometry import train_photometry
from applecider_batch.training.setup import TrainingRequest
from applecider_batch.training.spectra import train_spectra
from applecider_batch.training.splits import SplitRule
from applecider_batch.training.trainer import train

RULE = SplitRule("object", validation=0.2, test=0.25)
SMALL = {
    "cls_transformer": {"d_model": 32, "n_heads": 2, "n_layers": 1, "d_ff": 64},
    "astrominn": {"depths": [1, 1], "dims": [8, 16]},
    "spectranet": {"widths": [4, 8, 8, 8, 8], "hidden": [32, 16], "kernels": [[3, 5, 7]] * 5},
}


@dataclass
class Overfit(ImageTask):
    """Judged on what it was trained on."""

    score: str = "accuracy"

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Measures of the training packets."""
        rows = self.examples.members("train")
        log_prob, _ = predict_images(network, self.card, self.examples, rows)
        found = measures(self.examples.label[rows], np.exp(log_prob), self.examples.classes)
        return {name: found[name] for name in ("accuracy", "balanced_accuracy", "nll")}


def real_archive(data: Path, work: Path) -> Archive:
    """All real packets, light curves and spectra."""
    if not (work / "archive").exists():
        ingest(
            [str(data / "alerts" / name) for name in ("archive", "variants", "avro", "fink_parquet")],
            str(work / "archive"),
            photometry=[str(data / "lightcurves/ztf_lightcurves.parquet")],
            spectra=[str(data / "spectra/spectra.parquet")],
        )
    return Archive.open(str(work / "archive"))


def alert_labels(data: Path, work: Path) -> str:
    """Label table of the objects of the alert index, an object whose alerts disagree left out."""
    rows = pq.read_table(data / "alerts/alert_index.parquet", columns=["objectId", "class5", "object_key"])
    classes: dict[str, set[str]] = {}
    keys: dict[str, str] = {}
    for name, kind, key in zip(*(rows.column(c).to_pylist() for c in rows.column_names), strict=True):
        if name is not None and kind in CLASSES:
            classes.setdefault(name, set()).add(kind)
            keys[name] = key or name
    kept = sorted(name for name, kinds in classes.items() if len(kinds) == 1)
    columns = {"class5": [classes[n].copy().pop() for n in kept], "object_key": [keys[n] for n in kept]}
    file = work / "alert_labels.parquet"
    pq.write_table(pa.table({"objectId": kept, **columns}), file)
    return str(file)


def overfit(archive: Archive, labels: str, work: Path, preset_name: str, epochs: int) -> dict[str, Any]:
    """Train on every labelled real triplet and judge on the same."""
    profile, preset = get_profile(PROFILE), PRESETS[preset_name]
    dataset = load_dataset(archive, read_labels(labels), profile, modalities=("image",))
    dataset = replace(dataset, part=np.zeros(len(dataset), np.int8))
    examples = load_examples(archive, dataset, profile, work, np.inf)
    statistics = {"metadata": metadata_statistics(examples)}
    card = ModelCard("", PROFILE, "", "image", feature_names=examples.feature_names, normalisation=statistics)
    options = replace(preset.options, epochs=epochs, batch_size=16, patience=epochs, ema=0.0)
    torch.manual_seed(0)
    network = build_network(PROFILE, preset.network, n_classes=len(CLASSES))
    task = Overfit(examples, card, ImageAugmentation(turn=False, hide=0.0, per_object=1000), preset.gamma)
    identity = {"candid": examples.candid.tolist(), "label": examples.label.tolist()}
    folder = Store(work / f"overfit-{preset_name}")
    trained = train(network, task, options, folder, identity=identity, progress=True)
    rows = examples.members("train")
    counts = np.bincount(examples.label[rows], minlength=len(CLASSES))
    return {
        "triplets": len(rows),
        "objects": len(np.unique(examples.object_id[rows].astype(str))),
        "counts": dict(zip(CLASSES, counts.tolist(), strict=True)),
        "epoch": trained.best_epoch,
        **trained.best,
    }


def survey(work: Path, objects: int) -> TrainingRequest:
    """A simulated survey as an archive, and what all trainings on it have in common."""
    archive, folder = str(work / "simulated"), str(work / "survey")
    if not Path(archive).exists():
        made = simulate(folder, n_objects=objects, n_nights=60, seed=7)
        ingest([str(n) for n in made["nights"]], archive, spectra=[f"{folder}/spectra.parquet"])
    return TrainingRequest(
        archive=archive,
        labels=f"{folder}/truth.parquet",
        models=str(work / "models"),
        out=str(work / "training"),
        preset="compact",
        split=RULE,
        progress=True,
    )


def simulated(data: TrainingRequest, work: Path) -> dict[str, Any]:
    """Train, calibrate and evaluate the compact network on a simulated survey."""
    train_image(data)
    calibration = calibrate(data)
    document = evaluate_models(data, str(work / "evaluation"))
    found = document["results"]["image"]
    shown = ("macro_auc", "macro_auprc", "balanced_accuracy", "accuracy", "auc TDE", "ece")
    return {
        "counts": document["objects"],
        "by_horizon": {h: _shown(r, shown) for h, r in found.items() if r["rows"]},
        "per_alert": _shown(document["per_alert"]["results"]["image"], shown),
        "sky_shuffled": {
            h: _shown(r, ("macro_auc",)) for h, r in document["sky_shuffled"]["image"].items() if r["rows"]
        },
        "calibration": calibration["check"]["image"],
    }


def joint(data: TrainingRequest, work: Path) -> dict[str, Any]:
    """Light curves and spectra trained as well, then all three together: test figures before and after."""
    together = str(work / "joint-models")
    train_photometry(replace(data, out=str(work / "photometry"), epochs=30))
    train_spectra(replace(data, out=str(work / "spectra"), epochs=20))
    train_joint(replace(data, out=str(work / "joint"), epochs=10), result=together)
    out: dict[str, Any] = {}
    for name, models in (("apart", data.models), ("together", together)):
        request, folder = replace(data, models=models), str(work / f"evaluation-{name}")
        document = evaluate_models(request, folder, horizons=[10.0, 30.0, None], alert_days=0)
        out[name] = {
            what: {h: _shown(r, ("macro_auc", "balanced_accuracy", "nll")) for h, r in found.items()}
            for what, found in document["results"].items()
        }
    return out


def _shown(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    values = {n: [found["measures"].get(n), *found["intervals"].get(n, [])] for n in names}
    return {"rows": found["rows"], "objects": found["objects"], **values}


def fusion(archive: Archive, labels: str, work: Path) -> dict[str, Any]:
    """Fused probabilities of a run and of joint training against a plain computation."""
    if not (work / "untrained").exists():
        init_model_set(work / "untrained", seed=5, configs=SMALL)
    model_set, profile = ModelSet.load(work / "untrained"), get_profile(PROFILE)
    entries = model_set.defaults
    dataset = load_dataset(
        archive, read_labels(labels), profile, horizons=[None], modalities=model_set.inputs
    )
    dataset = dataset.split(SplitRule())
    both = np.flatnonzero((dataset.items("photometry")[:, 0] >= 0) & (dataset.items("spectra")[:, 0] >= 0))
    dataset = dataset.take(both)
    answers = ask(model_set, dataset, archive, device="cpu", threads=1)
    temperatures = {"photometry": {"default": 1.7}, "spectra": {"default": 0.6}, "fused": {"default": 1.2}}
    calibration = Calibration(temperatures)
    fused = np.exp(answers.log_prob(FUSED, calibration))[:, 0]
    by_hand = np.array([_by_hand(answers.logits, i, temperatures) for i in range(len(dataset))])
    examples = joint_examples(archive, dataset, profile, Store(work), list(entries), 2)
    network = JointNetwork(
        {m: e.build() for m, e in entries.items()}, {m: e.card for m, e in entries.items()}
    )
    with torch.inference_mode():
        rows = np.arange(len(examples.label))
        joint = np.exp(
            predict_joint(network.eval(), examples, {m: e.card for m, e in entries.items()}, rows)[FUSED]
        )
    plain = np.array([_by_hand(answers.logits, i, {}) for i in range(len(dataset))])
    patterns, counts = np.unique(answers.mask, return_counts=True)
    return {
        "objects": len(dataset),
        "with_stamps": int((answers.mask[:, 0] & 2 > 0).sum()),
        "patterns": dict(zip(map(str, patterns.tolist()), counts.tolist(), strict=True)),
        "largest_difference_in_a_run": float(np.abs(fused - by_hand).max()),
        "largest_difference_in_joint_training": float(np.abs(joint - plain).max()),
    }


def _by_hand(logits: dict[str, np.ndarray], i: int, temperatures: dict[str, dict[str, float]]) -> np.ndarray:
    """Mean of the probabilities of what an object has, one number after the other."""

    def of(values: np.ndarray, what: str) -> np.ndarray:
        power = [float(v) / temperatures.get(what, {"default": 1.0})["default"] for v in values]
        whole = sum(np.exp(p) for p in power)
        return np.array([np.exp(p) / whole for p in power])

    there = [of(values[i, 0], what) for what, values in logits.items() if np.isfinite(values[i, 0]).all()]
    mean = [sum(p[c] for p in there) / len(there) for c in range(len(CLASSES))]
    return of(np.log(mean), "fused")


def main() -> None:
    """Run all four and write ``images.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--presets", default="compact,paper", help="networks to overfit")
    parser.add_argument("--overfit-epochs", type=int, default=20)
    parser.add_argument("--objects", type=int, default=1600, help="simulated")
    parser.add_argument("--epochs", type=int, default=40)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    archive = real_archive(asked.data, asked.work)
    labels = alert_labels(asked.data, asked.work)
    data = replace(survey(asked.work, asked.objects), epochs=asked.epochs)
    document: dict[str, Any] = {
        "fusion": fusion(archive, str(asked.data / "labels/labels.parquet"), asked.work),
        "overfit": {
            name: overfit(archive, labels, asked.work, name, asked.overfit_epochs)
            for name in asked.presets.split(",")
        },
        "simulated": simulated(data, asked.work),
        "joint": joint(data, asked.work),
    }
    (asked.work / "images.json").write_text(json.dumps(document, indent=1))
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
