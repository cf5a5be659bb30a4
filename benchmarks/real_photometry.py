"""Light curves of the real data: all networks, forests and boosting on the same split and the same curves.

    python -m benchmarks.real_photometry DATA WORK [--page docs/photometry_real.md] [--folds 6] [--epochs 40]

DATA is the folder of the real data, WORK a folder for the archive, the trainings (resumed) and every
method's answers (used again); ``WORK/photometry.json`` holds all figures, the page their tables. Test objects
are those with int(sha256(object_key)[8:16], 16) % 4 == 0. Everything is fitted on the rest: networks on five
sixths of it, stopped on the sixth that is the fold's, forests and boosting on all of it, one for every
horizon. Every curve is truncated by the same as-of wall. TDE come from one collection of forced photometry
and SN from alerts, so figures that involve TDE may rest on the source; CV and AGN are 30-day histories of a
few objects.

With its defaults it takes about an hour on one free core (added up from parts).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from applecider_batch.archive.ingest import ingest
from applecider_batch.features.curve_summary import BANDS, SUMMARY_NAMES, curve_summary
from applecider_batch.inference.batches import cut_by_length
from applecider_batch.models import build_network
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES
from applecider_batch.training.dataset import Dataset
from applecider_batch.training.evaluate import horizon_name
from applecider_batch.training.labels import read_labels
from applecider_batch.training.metrics import measures, report
from applecider_batch.training.photometry import (
    PROFILE,
    TABULAR,
    curves_of,
    fit_photometry,
    load_curves,
    network_config,
    preset_of,
)
from applecider_batch.training.photometry_task import predict_curves
from applecider_batch.training.probe import source_probe
from applecider_batch.training.splits import SplitRule
from benchmarks.light_curve_features import light_curve_features
from benchmarks.real_photometry_page import write_page

DRAWS = 100
SHOWN = ("SN I", "SN II", "TDE")
#: When and in which band there was anything to see, and nothing of how bright it was.
CADENCE = (
    "n", "last_dt", "n_limits_before", "limit_gap", "n_limits_between", "gr_n", "gr_first_dt", "gr_last_dt",
    *(f"{band}_{name}" for band in BANDS for name in ("n", "first_dt")),
)  # fmt: skip
Answer = np.ndarray  # probabilities of the five classes, (n_test, n_horizons, 5)


def _forest() -> RandomForestClassifier:
    return RandomForestClassifier(300, min_samples_leaf=3, class_weight="balanced_subsample", random_state=0)


class Experiment:
    """The data set, and how each method answers for its test objects.

    Parameters
    ----------
    dataset : Dataset
        Ten classes, with summary numbers.
    work : Path
    """

    def __init__(self, dataset: Dataset, work: Path) -> None:
        self.dataset, self.work = dataset.split(SplitRule("hash")), work
        self.test = self.dataset.members("test")
        self.rest = np.flatnonzero((self.dataset.part >= 0) & (self.dataset.part < 2))
        self.items = dataset.items("photometry")
        self.label = curves_of(self.dataset, summary=True).to_five[dataset.label]
        self.seconds: dict[str, float] = {}

    def kept(self, name: str, make: Callable[[], Answer]) -> Answer:
        """A method's answers: made, or read where they are already."""
        file = self.work / f"answers-{name}.npy"
        if not file.exists():
            began = time.monotonic()
            np.save(file, make())
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        made: Answer = np.load(file)
        return made

    def fitted(self, make: Callable[[], Any], features: Callable[[np.ndarray], np.ndarray]) -> Answer:
        """A scikit-learn classifier at every horizon."""
        out = np.zeros((len(self.test), len(self.dataset.horizons), len(CLASSES)))
        for column in range(len(self.dataset.horizons)):
            train, test = (features(self.items[rows, column]) for rows in (self.rest, self.test))
            used = np.nanmax(train, 0, initial=-np.inf) > np.nanmin(train, 0, initial=np.inf)
            model = make().fit(train[:, used], self.label[self.rest])
            out[:, column, model.classes_] = model.predict_proba(test[:, used])
        return out

    def forest(self) -> Answer:
        """A random forest on the features of the light-curve package."""
        return self.fitted(_forest, self.light_curve)

    def cadence(self) -> Answer:
        """The same forest on :data:`CADENCE`: what a class can be guessed from without any brightness."""
        columns = [SUMMARY_NAMES.index(name) for name in CADENCE]
        return self.fitted(_forest, lambda items: np.nan_to_num(self.summary(items)[:, columns], nan=-1.0))

    def boosting(self) -> Answer:
        """Gradient boosting on the summary numbers."""
        return self.fitted(
            lambda: HistGradientBoostingClassifier(
                learning_rate=0.06,
                max_iter=150,
                max_leaf_nodes=15,
                min_samples_leaf=15,
                l2_regularization=1.0,
                max_features=0.3,
                early_stopping=False,
                random_state=0,
            ),
            self.summary,
        )

    def summary(self, items: np.ndarray) -> np.ndarray:
        """Summary numbers."""
        numbers = self.dataset.prepared.photometry.curve_summary
        assert numbers is not None
        return numbers.values[items]

    def light_curve(self, items: np.ndarray) -> np.ndarray:
        """Features of the light-curve package."""
        inputs = self.dataset.prepared.photometry
        return light_curve_features(inputs.values, inputs.offsets, items)

    def network(
        self, name: str, *, epochs: int | None = None, pretrain: int = 0, fold: int = 0, seed: int = 0
    ) -> Answer:
        """A network of the compact preset, trained on a fold."""
        dataset = self.dataset.split(SplitRule("hash", seed=fold))
        preset = preset_of("compact", name)
        options = replace(preset.options, seed=seed)
        if epochs is not None:
            options = replace(options, epochs=epochs, patience=epochs)
        if name == "informer":  # no more positions than nearly every curve has
            preset = replace(preset, config=preset.config | {"seq_len": 64})
        folder = f"{name}-{options.epochs}-{pretrain}-{fold}-{seed}"
        preset = replace(preset, options=options)
        trained, curves = fit_photometry(
            dataset, Store(self.work / folder), preset, pretrain_epochs=pretrain, progress=True
        )
        network = build_network(PROFILE, name, **network_config(preset, curves)).eval()
        network.load_state_dict(trained.state)
        with torch.inference_mode():
            found = [
                predict_curves(network, curves, self.items[self.test, i])
                for i in range(len(dataset.horizons))
            ]
        return np.exp(np.stack(found, axis=1))

    def ensemble(self, folds: int) -> Answer:
        """Mean probability of the tabular ensembles of so many folds."""
        answers = [
            self.kept(f"{TABULAR}-fold{k}", lambda k=k: self.network(TABULAR, fold=k, seed=k))
            for k in range(folds)
        ]
        mean: Answer = np.mean(answers, axis=0)
        return mean

    def judge(self, prob: np.ndarray, draws: int = DRAWS) -> dict[str, Any]:
        """Measures on all test objects, and with intervals on SN I, SN II and TDE alone."""
        label = self.label[self.test]
        chosen = np.isin(label, [CLASSES.index(c) for c in SHOWN])
        three = prob[chosen].copy()
        three[:, [c for c, name in enumerate(CLASSES) if name not in SHOWN]] = 0.0
        three /= np.maximum(three.sum(1, keepdims=True), 1e-12)
        group = self.dataset.group[self.test][chosen]
        return {
            "five": measures(label, prob, CLASSES),
            "supernovae_tde": report(label[chosen], three, CLASSES, group, draws=draws),
        }

    def speed(self) -> dict[str, float]:
        """Objects a second at batch 256 on one thread: networks alone, and making the summary numbers."""
        torch.set_num_threads(1)
        inputs = self.dataset.prepared.photometry
        items = self.items[self.rest[:2048], self.dataset.column(30.0)]
        out = {}
        for name in ("cls_transformer", TABULAR):
            curves = curves_of(self.dataset, summary=name == TABULAR)
            network = build_network(PROFILE, name, **preset_of("compact", name).config).eval()
            lengths = curves.curves.lengths(items)
            batches = [
                curves.batch(curves.curves, items[rows], n).values()
                for n, rows in cut_by_length(lengths, 256)
            ]
            tensors = [tuple(torch.as_tensor(v) for v in batch) for batch in batches]
            with torch.inference_mode():
                network(*tensors[0])
                began = time.perf_counter()
                for batch in tensors:
                    network(*batch)
            out[name] = len(items) / (time.perf_counter() - began)
        summary = inputs.curve_summary
        assert summary is not None
        end = int(np.searchsorted(inputs.offsets, 40_000)) - 1
        began = time.perf_counter()
        curve_summary(
            inputs.values[: inputs.offsets[end]],
            inputs.offsets[: end + 1],
            summary.limits[: summary.offsets[end]],
            summary.offsets[: end + 1],
        )
        out["summary numbers"] = end / (time.perf_counter() - began)
        return out


def together(*answers: Answer) -> Answer:
    """Normalised geometric mean, as the tabular ensemble takes it of its perceptrons and its trees."""
    mean: Answer = np.exp(np.mean([np.log(np.maximum(a, 1e-12)) for a in answers], axis=0))
    return mean / mean.sum(-1, keepdims=True)


def main() -> None:
    """Run the comparison, write ``photometry.json`` and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--folds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=40, help="of the transformer")
    parser.add_argument("--informer-epochs", type=int, default=20)
    parser.add_argument("--pretrain", type=int, default=8, help="epochs on masked events")
    parser.add_argument("--after", type=int, default=15, help="epochs with and without pre-training")
    parser.add_argument("--seeds", type=int, default=2, help="of these")
    asked = parser.parse_args()
    archive = str(asked.work / "archive")
    ingest([], archive, photometry=[str(asked.data / "lightcurves/ztf_lightcurves.parquet")])
    labels = read_labels(str(asked.data / "lightcurves/ztf_objects.parquet"), class_set="ten")
    dataset, _ = load_curves(archive, labels, SplitRule("hash"), summary=True)
    e = Experiment(dataset, asked.work)

    def transformer(epochs: int, pretrain: int = 0, seed: int = 0) -> Answer:
        return e.kept(
            f"cls_transformer-{epochs}-{pretrain}-{seed}",
            lambda: e.network("cls_transformer", epochs=epochs, pretrain=pretrain, seed=seed),
        )

    folds = e.ensemble(asked.folds)
    boosting = e.kept("boosting", e.boosting)
    answers = {
        "tabular ensemble": e.ensemble(1),
        f"tabular ensemble, mean of {asked.folds} folds": folds,
        "mean of folds, and boosting": together(folds, boosting),
        "boosting, summary numbers": boosting,
        "forest, light-curve features": e.kept("forest-light-curve", e.forest),
        "[CLS]-Transformer": transformer(asked.epochs),
        "Informer": e.kept(
            f"informer-{asked.informer_epochs}",
            lambda: e.network("informer", epochs=asked.informer_epochs),
        ),
        "cadence alone": e.kept("cadence", e.cadence),
    }
    pretraining = {
        name: [transformer(asked.after, epochs, seed) for seed in range(asked.seeds)]
        for name, epochs in (("without", 0), ("with", asked.pretrain))
    }
    horizons = [horizon_name(h) for h in dataset.horizons]

    def judged(prob: Answer, draws: int = DRAWS) -> dict[str, Any]:
        return {horizon: e.judge(prob[:, i], draws) for i, horizon in enumerate(horizons)}

    document: dict[str, Any] = {
        "counts": e.dataset.counts(),
        "test": dict(zip(CLASSES, np.bincount(e.label[e.test], minlength=5).tolist(), strict=True)),
        "horizons": horizons,
        "epochs": asked.epochs,
        "after_epochs": asked.after,
        "pretrain_epochs": asked.pretrain,
        "seeds": asked.seeds,
        "informer_epochs": asked.informer_epochs,
        "folds": asked.folds,
        "draws": DRAWS,
        "source_probe": source_probe(replace(e.dataset, classes=CLASSES, label=e.label)),
        "objects_per_s": e.speed(),
        "results": {name: judged(prob) for name, prob in answers.items()},
        "pretraining": {name: [judged(prob, 0) for prob in probs] for name, probs in pretraining.items()},
    }
    (asked.work / "photometry.json").write_text(json.dumps(document, indent=1))
    if asked.page:
        write_page(document, asked.page)


if __name__ == "__main__":
    main()
