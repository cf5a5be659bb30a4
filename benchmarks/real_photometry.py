"""Light curves of the real data: transformer, Informer and a forest on the same split and the same curves.

    python -m benchmarks.real_photometry DATA WORK [--epochs 60] [--networks cls_transformer,informer]

DATA is the folder of the real data, WORK a folder for the archive, the trainings (resumed) and
``photometry.json``. Test objects are those with int(sha256(object_key)[8:16], 16) % 4 == 0; everything is
fitted and stopped on the rest. TDE come from one collection of forced photometry and SN from alerts, so
figures that involve TDE may rest on the source; CV and AGN are 30-day histories of a few objects.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

from applecider_batch.archive.ingest import ingest
from applecider_batch.models import build_network
from applecider_batch.storage import Store
from applecider_batch.training.curve_features import curve_features
from applecider_batch.training.dataset import Dataset
from applecider_batch.training.evaluate import horizon_name
from applecider_batch.training.labels import read_labels
from applecider_batch.training.metrics import report
from applecider_batch.training.photometry import PRESETS, PROFILE, curves_of, fit_photometry, load_curves
from applecider_batch.training.photometry_task import predict_curves
from applecider_batch.training.splits import SplitRule

SHOWN = ("auc SN I/SN II", "macro_auc", "macro_auprc", "balanced_accuracy", "auc TDE", "ece")


def forest(dataset: Dataset, column: int, seed: int = 0) -> np.ndarray:
    """Probabilities of the test objects from a forest on simple features, fitted at the same horizon."""
    inputs, items = dataset.prepared.photometry, dataset.items("photometry")[:, column]
    train, test = dataset.members("train"), dataset.members("test")
    features = [curve_features(inputs.values, inputs.offsets, items[rows])[0] for rows in (train, test)]
    model = RandomForestClassifier(
        400, min_samples_leaf=3, class_weight="balanced_subsample", random_state=seed
    )
    model.fit(features[0], dataset.label[train])
    out = np.zeros((len(test), len(dataset.classes)))
    out[:, model.classes_] = model.predict_proba(features[1])
    return out


def networks(
    dataset: Dataset, work: Path, name: str, preset_name: str, epochs: int, pretrain: int, seeds: int
) -> list[np.ndarray]:
    """Mean probabilities over seeds of the test objects at every horizon."""
    preset = PRESETS[preset_name]
    config = preset.config
    if name == "informer":  # no more positions than nearly every curve has
        config = {k: v for k, v in config.items() if k != "classifier"} | {"seq_len": 64}
    total: list[np.ndarray] = []
    for seed in range(seeds):
        options = replace(preset.options, epochs=epochs, seed=seed)
        chosen = replace(preset, network=name, config=config, options=options)
        folder = f"{name}-{preset_name}-{epochs}-{pretrain}-{seed}"
        trained, card = fit_photometry(
            dataset, Store(work / folder), chosen, pretrain_epochs=pretrain, progress=True
        )
        network = build_network(PROFILE, name, **config, n_classes=len(dataset.classes)).eval()
        network.load_state_dict(trained.state)
        curves, _ = curves_of(dataset, card)
        items = dataset.items("photometry")[dataset.members("test")]
        with torch.inference_mode():
            found = [
                np.exp(predict_curves(network, curves, items[:, i])) for i in range(len(dataset.horizons))
            ]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return [p / seeds for p in total]


def main() -> None:
    """Run the comparison and write ``photometry.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset", default="compact", choices=list(PRESETS))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--networks", default="cls_transformer,informer")
    parser.add_argument("--pretrain", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    archive = str(asked.work / "archive")
    ingest([], archive, photometry=[str(asked.data / "lightcurves/ztf_lightcurves.parquet")])
    labels = read_labels(str(asked.data / "lightcurves/ztf_objects.parquet"))
    dataset, _ = load_curves(archive, labels, SplitRule("hash"))
    test = dataset.members("test")
    answers = {"forest": [forest(dataset, i) for i in range(len(dataset.horizons))]}
    for name in filter(None, asked.networks.split(",")):
        answers[name] = networks(
            dataset, asked.work, name, asked.preset, asked.epochs, asked.pretrain, asked.seeds
        )
        answers[f"forest+{name}"] = [
            (a + b) / 2 for a, b in zip(answers["forest"], answers[name], strict=True)
        ]
    document: dict[str, Any] = {"counts": dataset.counts(), "results": {}}
    for name, by_horizon in answers.items():
        for horizon, prob in zip(dataset.horizons, by_horizon, strict=True):
            found = report(dataset.label[test], prob, dataset.classes, dataset.group[test], draws=100)
            document["results"].setdefault(name, {})[horizon_name(horizon)] = found
            shown = []
            for key in SHOWN:
                low, high = found["intervals"].get(key, (np.nan, np.nan))
                shown.append(f"{key} {found['measures'].get(key) or np.nan:.3f} [{low:.3f}, {high:.3f}]")
            print(f"{name:>24} {horizon_name(horizon):>5}  {'  '.join(shown)}", flush=True)
    (asked.work / "photometry.json").write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
