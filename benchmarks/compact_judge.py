"""The set ``compact``: its temperatures, its anomaly reference, and what it is worth on held-back objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.anomaly_file import FILE, fitted_with, to_bytes
from applecider_batch.inference.calibration import DEFAULT, FUSED, Calibration
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.inference.shard import ShardOutputs
from applecider_batch.models import build_network
from applecider_batch.models.model_set import ModelSet, update_files
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASS10_TO_CLASS5, CLASSES
from applecider_batch.training.anomaly import fit_reference, scored_objects
from applecider_batch.training.answers import Answers, answers_of, ask, run_networks
from applecider_batch.training.calibrate import calibration_document, fit_temperature
from applecider_batch.training.dataset import Dataset, load_dataset
from applecider_batch.training.evaluate import horizon_name
from applecider_batch.training.image import PRESETS, PROFILE, fit_image
from applecider_batch.training.image_task import load_examples, predict_images
from applecider_batch.training.labels import read_labels
from applecider_batch.training.metrics import expected_calibration_error, report
from applecider_batch.training.spectra import predict_spectra
from applecider_batch.training.spectra_data import load_spectra
from applecider_batch.training.splits import SplitRule
from benchmarks.real_images import alert_labels
from benchmarks.real_spectra import SEVEN
from benchmarks.real_spectra_page import judge

HORIZONS: tuple[float | None, ...] = (3.0, 10.0, 30.0, 100.0, None)
RULE = SplitRule("hash")
DRAWS = 100
FOLDS = 4
#: Patterns of modalities with stamps.
STAMPED = "photometry+image"
ALSO_STAMPED = ("image+spectra", "photometry+image+spectra")
WHERE = {"device": "cpu", "threads": 1}
Alone = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Labelled:
    """All labelled objects, opened once for everything that looks at them."""

    work: Path
    archive: Archive
    dataset: Dataset
    outputs: ShardOutputs
    trained_on: np.ndarray

    @classmethod
    def open(cls, work: Path, model_set: ModelSet) -> Labelled:
        """Read the archive and ask the networks."""
        archive, labels = Archive.open(str(work / "archive")), read_labels(str(work / "labels.parquet"))
        profile = get_profile(PROFILE)
        dataset = load_dataset(archive, labels, profile, horizons=HORIZONS, modalities=model_set.inputs)
        dataset = dataset.split(RULE)
        outputs = run_networks(model_set, dataset, archive, **WHERE)
        return cls(work, archive, dataset, outputs, dataset.trained_on(model_set.training_ids()[0]))

    def members(self, part: str, kind: str) -> np.ndarray:
        """Objects of a part, real or simulated, that trained nothing."""
        rows = self.dataset.members(part)
        simulated = self.dataset.source[rows] == "simulated"
        return rows[(simulated == (kind == "simulated")) & ~self.trained_on[rows]]


def complete_and_judge(work: Path, data: Path | None, alone: Alone) -> dict[str, Any]:
    """Put temperatures and the anomaly reference into the set, and measure it.

    Kept in ``WORK/judged.json``, and made again only for another set.

    Parameters
    ----------
    work, data : Path
    alone : mapping of str to mapping of str to str
        By modality and kind of data: sets with a network that learned from that kind only.
    """
    models = str(work / "compact")
    model_set, file = ModelSet.load(models), work / "judged.json"
    if file.exists() and (kept := json.loads(file.read_text()))["model_set_id"] == model_set.model_set_id:
        return dict(kept)
    it = Labelled.open(work, model_set)
    answers = answers_of(it.dataset, it.outputs)
    document: dict[str, Any] = {"networks": {m: e.card.network for m, e in model_set.defaults.items()}}
    stamps = Triplets(it, data, model_set) if data else None
    spectra = RealSpectra(it, model_set) if data else None
    temperatures = calibrated(it, answers, stamps, spectra)
    model_set = update_files(models, calibration=temperatures)
    calibration = Calibration.from_document(temperatures)
    scored = scored_objects(it.dataset, replace(it.outputs, calibration=calibration))
    about = {"fitted_with": fitted_with(model_set), "counts": it.dataset.counts()}
    try:
        reference = fit_reference(scored, seed=0, document=about)
    except UserError as error:  # too few objects: the set is made without, and its card says so
        document["no_anomaly"] = str(error)
    else:
        model_set = update_files(models, anomaly=(FILE, to_bytes(reference)))
    document["model_set_id"] = model_set.model_set_id
    document["bytes"] = sum(p.stat().st_size for p in (work / "compact").iterdir())
    document["check"] = temperatures["check"]
    for kind in ("simulated", "real") if data else ("simulated",):
        rows = it.members("test", kind)
        document[kind] = {
            what: by_horizon(it.dataset, answers, what, rows, calibration)
            for what in (*answers.logits, FUSED)
        }
    if stamps and spectra:
        for name, url in alone["photometry"].items():
            own = ask(ModelSet.load(url), it.dataset, it.archive, **WHERE, modalities=("photometry",))
            rows = it.members("test", "real")
            found = by_horizon(it.dataset, own, "photometry", rows, Calibration())
            document[f"only-{name}"] = {"photometry": found}
        document["spectra"] = {"real": spectra.judged()}
        for name, url in alone["spectra"].items():
            document["spectra"][f"only-{name}"] = RealSpectra(it, ModelSet.load(url)).judged()
        document["triplets"] = stamps.judged(temperatures["temperature"]["image"][DEFAULT])
    file.write_text(json.dumps(document, indent=1))
    return document


def calibrated(
    it: Labelled, answers: Answers, stamps: Triplets | None, spectra: RealSpectra | None
) -> dict[str, Any]:
    """A calibration document: each modality on real objects where there are any, then the fused answers.

    A fused answer with stamps is fitted on simulated objects, which alone have them beside light curves.
    """
    simulated = it.members("validation", "simulated")
    if stamps is None or spectra is None:
        return calibration_document(it.dataset, answers, simulated)
    real = it.members("validation", "real")
    document = calibration_document(it.dataset, answers, real)
    temperature = {"photometry": {DEFAULT: document["temperature"]["photometry"][DEFAULT]}}
    temperature["spectra"], spectra_check = spectra.temperature()
    temperature["image"], image_check = stamps.temperature()
    log_prob = answers.log_prob(FUSED, Calibration(temperature))
    fused, check = {}, {}
    for name, rows, key in (("fused", real, DEFAULT), ("fused, with stamps (simulated)", simulated, STAMPED)):
        label = np.repeat(it.dataset.label[rows], len(it.dataset.horizons))
        flat = log_prob[rows].reshape(len(label), -1)
        good = np.flatnonzero(np.isfinite(flat).all(1))
        fused[key] = round(fit_temperature(flat[good], label[good]), 6)
        check[name] = checked(label[good], flat[good], fused[key], len(rows))
    temperature[FUSED] = {**fused, **dict.fromkeys(ALSO_STAMPED, fused[STAMPED])}
    photometry = {k: document["check"]["photometry"][k] for k in ("objects", "ece_before", "ece_after")}
    return {
        **document,
        "temperature": temperature,
        "check": {
            "photometry": photometry,
            "spectra (by spectrum)": spectra_check,
            "image (real triplets, by folds)": image_check,
            **check,
        },
    }


def checked(label: np.ndarray, log_prob: np.ndarray, temperature: float, objects: int) -> dict[str, Any]:
    """Calibration error before and after a temperature."""
    after = np.exp(log_softmax(log_prob / temperature))
    before = expected_calibration_error(label, np.exp(log_prob))
    return {
        "objects": objects,
        "ece_before": before,
        "ece_after": expected_calibration_error(label, after),
    }


def by_horizon(
    dataset: Dataset, answers: Answers, what: str, members: np.ndarray, calibration: Calibration
) -> dict[str, Any]:
    """A report at every horizon, with the calibration error before the temperatures beside it."""
    after, before = (answers.log_prob(what, c) for c in (calibration, Calibration()))
    out = {}
    for i, horizon in enumerate(dataset.horizons):
        rows = members[np.isfinite(after[members, i]).all(1)]
        if len(rows):
            found = of_rows(dataset, after[:, i], rows)
            found["ece_before"] = expected_calibration_error(dataset.label[rows], np.exp(before[rows, i]))
            out[horizon_name(horizon)] = found
    return out


def of_rows(dataset: Dataset, log_prob: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Measures, intervals, counts and confusion."""
    group = dataset.group[rows].astype(str)
    found = report(dataset.label[rows], np.exp(log_prob[rows]), CLASSES, group, draws=DRAWS, seed=0)
    return {k: found[k] for k in ("objects", "counts", "measures", "intervals", "confusion")}


class RealSpectra:
    """Real spectra with a redshift, and what the set's network says about each."""

    def __init__(self, it: Labelled, model_set: ModelSet) -> None:
        entry = model_set.defaults["spectra"]
        labels = read_labels(str(it.work / "labels.parquet"), class_set="ten")
        data = load_spectra(it.archive, labels, get_profile(PROFILE)).split(RULE)
        simulated = [
            name for name, kind in zip(labels.group, labels.source, strict=True) if kind == "simulated"
        ]
        trained = entry.training_ids() or frozenset()
        used = np.isfinite(data.redshift) & ~np.isin(data.group.astype(str), simulated)
        names = zip(data.object_id, data.group, strict=True)
        new = np.array([o not in trained and g not in trained for o, g in names])
        rows = np.flatnonzero(used & ((data.part == 2) | ((data.part == 1) & new)))
        self.part, self.label, self.group = data.part[rows], data.label[rows], data.group[rows].astype(str)
        self.classes = data.classes
        self.log_prob = predict_spectra(entry.build(), data.flux[rows])
        self.to_five = np.array([CLASSES.index(CLASS10_TO_CLASS5[c]) for c in data.classes])
        prob = np.exp(self.log_prob) @ np.eye(len(CLASSES))[self.to_five]
        self.five = np.log(prob.clip(1e-30))

    def temperature(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Fitted on validation spectra, an object's together weighing as one; checked on the test spectra."""
        rows, test = np.flatnonzero(self.part == 1), np.flatnonzero(self.part == 2)
        label = self.to_five[self.label]
        _, inverse, count = np.unique(self.group[rows], return_inverse=True, return_counts=True)
        value = round(fit_temperature(self.five[rows], label[rows], 1.0 / count[inverse]), 6)
        return {DEFAULT: value}, checked(
            label[test], self.five[test], value, len(np.unique(self.group[test]))
        )

    def judged(self) -> dict[str, Any]:
        """As ``benchmarks.real_spectra`` judges, test spectra of the seven classes."""
        rows = np.flatnonzero((self.part == 2) & (self.label < SEVEN))
        return judge(self.label[rows], np.exp(self.log_prob[rows]), self.classes, self.group[rows])


class Triplets:
    """Real labelled stamps, none of which trained the set."""

    def __init__(self, it: Labelled, data: Path, model_set: ModelSet) -> None:
        self.it, self.work = it, it.work
        labels, profile = read_labels(alert_labels(data, self.work)), get_profile(PROFILE)
        dataset = load_dataset(it.archive, labels, profile, horizons=[None], modalities=("image",))
        dataset = dataset.take(np.flatnonzero(dataset.items("image")[:, 0] >= 0))
        answers = ask(model_set, dataset, it.archive, **WHERE, modalities=("image",))
        raw = answers.log_prob("image", Calibration())[:, 0]
        kept = np.flatnonzero(np.isfinite(raw).all(1))
        self.dataset, self.raw = dataset.take(kept), raw[kept]
        self.fold = stratified_folds(self.dataset.label, self.dataset.object_id.tolist())

    def temperature(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Of all; the error after it is that of objects whose fold did not fit it."""
        label, out = self.dataset.label, self.raw.copy()
        for k in range(FOLDS):
            value = fit_temperature(self.raw[self.fold != k], label[self.fold != k])
            out[self.fold == k] = log_softmax(self.raw[self.fold == k] / value)
        check = checked(label, self.raw, 1.0, len(label))
        check["ece_after"] = expected_calibration_error(label, np.exp(out))
        return {DEFAULT: round(fit_temperature(self.raw, label), 6)}, check

    def judged(self, temperature: float) -> dict[str, Any]:
        """The set, which saw simulated stamps alone, and the same network trained on real ones in folds."""
        rows = np.arange(len(self.dataset))
        return {
            "simulated stamps (this set)": of_rows(self.dataset, log_softmax(self.raw / temperature), rows),
            "real ones, by folds": of_rows(self.dataset, self.by_folds(), rows),
        }

    def by_folds(self) -> np.ndarray:
        """Log probabilities of each object by a network that was trained on the other folds."""
        preset, dataset = PRESETS["compact"], self.dataset
        preset = replace(preset, options=replace(preset.options, epochs=25, batch_size=16, patience=25))
        where = {name: i for i, name in enumerate(dataset.object_id.tolist())}
        out = np.full((len(dataset), len(CLASSES)), np.nan)
        for k in range(FOLDS):
            split = replace(dataset, part=np.where(self.fold == k, 1, 0).astype(np.int8))
            store = Store(self.work / f"triplets-{k}")
            profile, folder = get_profile(PROFILE), Path(store.path())
            examples = load_examples(self.it.archive, split, profile, folder, np.inf)
            trained, card = fit_image(examples, store, preset)
            network = build_network(PROFILE, preset.network, n_classes=len(CLASSES))
            network.load_state_dict(trained.state)
            latest = examples.latest("validation", np.inf)
            found, _ = predict_images(network.eval().requires_grad_(False), card, examples, latest)
            out[[where[name] for name in examples.object_id[latest].tolist()]] = found
        return out


def stratified_folds(label: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Fold of every object: class by class in turn, in the order of the names; int64 (n,)."""
    out = np.zeros(len(label), np.int64)
    for number in np.unique(label):
        rows = sorted(np.flatnonzero(label == number), key=lambda i: names[i])
        out[rows] = np.arange(len(rows)) % FOLDS
    return out
