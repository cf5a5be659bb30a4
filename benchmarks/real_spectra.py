"""Spectra of the real data: SpectraNet and a forest on principal components, on the same split.

    python -m benchmarks.real_spectra DATA WORK [--preset compact] [--epochs 40]

Scored on the seven supernova classes (TDE, CV and AGN have too few objects): with the redshift given, with
the redshift unknown, at SEDM's resolution, and by the broad class (SN I against SN II), since IIP within II
is depth of labelling. Spectra with the continuum removed are left out. Intervals by object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.features.profiles import get_profile
from applecider_batch.models import build_network
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASS10_TO_CLASS5
from applecider_batch.training.labels import label_table
from applecider_batch.training.metrics import bootstrap, measures, report
from applecider_batch.training.spectra import PRESETS, PROFILE, fit_spectra, predict_spectra
from applecider_batch.training.spectra_data import SpectraSet, at_resolution, load_spectra
from applecider_batch.training.splits import SplitRule

SEVEN = 7


def load(data: Path, work: Path) -> SpectraSet:
    """The spectra, labelled by their own source, split by object_key."""
    file = data / "spectra/spectra.parquet"
    archive = str(work / "archive")
    ingest([], archive, spectra=[str(file)])
    table = pl.read_parquet(file, columns=["object", "object_key", "class10"])
    table = table.filter(pl.col("class10").is_not_null() & (pl.col("class10") != "OTHER"))
    labels = table.unique(["object", "class10"]).unique("object", keep="none").sort("object")
    return load_spectra(
        Archive.open(archive), label_table(labels.to_arrow(), class_set="ten"), get_profile(PROFILE)
    ).split(SplitRule("hash"))


def forest(data: SpectraSet, inputs: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Probabilities from a forest on 60 principal components of the rest-frame spectra."""
    rows = data.members("train")
    pca = PCA(60, random_state=seed).fit(data.flux[rows])
    model = RandomForestClassifier(
        400, min_samples_leaf=2, class_weight="balanced_subsample", random_state=seed
    )
    model.fit(pca.transform(data.flux[rows]), data.label[rows])
    out = {}
    for name, flux in inputs.items():
        out[name] = np.zeros((len(flux), len(data.classes)))
        out[name][:, model.classes_] = model.predict_proba(pca.transform(flux))
    return out


def judge(data: SpectraSet, rows: np.ndarray, prob: np.ndarray) -> dict[str, Any]:
    """Seven classes and the broad class, by object."""
    own = prob[:, :SEVEN] / np.maximum(prob[:, :SEVEN].sum(1, keepdims=True), 1e-12)
    group, label = data.group[rows], data.label[rows]
    broad_of = np.array([CLASS10_TO_CLASS5[c] == "SN II" for c in data.classes[:SEVEN]])
    broad = np.stack([own[:, ~broad_of].sum(1), own[:, broad_of].sum(1)], 1)
    truth = broad_of[label].astype(np.int64)
    names = ("SN I", "SN II")
    return {
        "seven": report(label, own, data.classes[:SEVEN], group, draws=100),
        "broad": {
            "measures": measures(truth, broad, names),
            "intervals": bootstrap(group, lambda i: measures(truth[i], broad[i], names), draws=100),
        },
    }


def main() -> None:
    """Run the comparison and write ``spectra.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset", default="compact", choices=list(PRESETS))
    parser.add_argument("--epochs", type=int, default=40)
    asked = parser.parse_args()
    profile = get_profile(PROFILE)
    data = load(asked.data, asked.work)
    test = data.members("test")
    test = test[data.label[test] < SEVEN]
    inputs = {
        "redshift given": data.flux[test],
        "redshift unknown": data.flux_unknown[test],
        "R = 100": at_resolution(data.flux[test], profile),
    }
    answers = {"forest on PCA": forest(data, inputs)}
    preset = PRESETS[asked.preset]
    preset = replace(preset, options=replace(preset.options, epochs=asked.epochs))
    trained = fit_spectra(data, Store(asked.work / f"{asked.preset}-{asked.epochs}"), preset, progress=True)
    network = build_network(PROFILE, preset.network, **preset.config, n_classes=len(data.classes)).eval()
    network.load_state_dict(trained.state)
    answers["SpectraNet"] = {n: np.exp(predict_spectra(network, x)) for n, x in inputs.items()}
    both = zip(*answers.values(), strict=True)
    answers["mean of both"] = {
        n: (answers["forest on PCA"][n] + answers["SpectraNet"][n]) / 2 for n, _ in both
    }
    document: dict[str, Any] = {}
    for name, by_input in answers.items():
        for kind, prob in by_input.items():
            found = judge(data, test, prob)
            document.setdefault(name, {})[kind] = found
            seven, broad = found["seven"], found["broad"]
            low, high = seven["intervals"]["macro_auc"]
            print(
                f"{name:>14} {kind:>17}: accuracy {seven['measures']['accuracy']:.3f}"
                f"  macro-AUC {seven['measures']['macro_auc']:.3f} [{low:.3f}, {high:.3f}]"
                f"  SN I/SN II accuracy {broad['measures']['accuracy']:.3f}",
                flush=True,
            )
    (asked.work / "spectra.json").write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
