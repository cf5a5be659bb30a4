"""Networks of spectra on the real data, on one split: what each is worth, and where.

    python -m benchmarks.real_spectra DATA WORK [--epochs 24,24,24] [--out docs/spectra_real.md]

DATA is the folder of the real data, WORK a folder for the archive and the trainings (resumed if they are
there). ``--epochs`` are those of the paper's SpectraNet, of upstream's main, which has a recipe of its own,
and of its tri-pool; an epoch of each takes a core half a minute; fewer numbers leave the last ones out.
Everything is trained on three quarters of the objects and scored once on those with
int(sha256(object_key)[8:16], 16) % 4 == 0. Writes ``WORK/spectra.json``, the page, and ``WORK/models``, a
model set with the ResNet-1D. With ``--epochs 12,12,12`` a core of a busy machine trained for 47 minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.features.profiles import get_profile
from applecider_batch.features.spectra import TRIAL_REDSHIFTS, preprocess_at
from applecider_batch.inference.marginal import marginalise
from applecider_batch.models import build_network
from applecider_batch.storage import Store
from applecider_batch.training.labels import LabelTable, label_table
from applecider_batch.training.spectra import (
    PRESETS,
    PROFILE,
    SpectraPreset,
    finish_spectra,
    fit_spectra,
    predict_spectra,
)
from applecider_batch.training.spectra_data import SpectraSet, at_resolution, load_spectra
from applecider_batch.training.spectra_vary import SpectraAugmentation
from applecider_batch.training.splits import SplitRule
from benchmarks.real_spectra_page import GIVEN, LOW, MARGINAL, WORST, ZERO, judge, page

SEVEN = 7
RULE = SplitRule("hash")
PAPER = get_profile(PROFILE)
_SMALL = PRESETS["spectranet", "compact"]
#: Upstream's two forms with widths and kernels for a CPU, as the compact SpectraNet has.
_UPSTREAM = {
    "widths": [8, 16, 24, 32, 48],
    "kernels": _SMALL.config["kernels"],
    "dropout": [0.1, 0.1],
}
CONTENDERS: dict[str, SpectraPreset] = {
    "ResNet-1D": PRESETS["resnet1d", "compact"],
    "SpectraNet": _SMALL,
    # By the recipe of the others it does not learn at all, see real_spectra_head.md: it has its own.
    "SpectraNet, main": replace(
        _SMALL,
        profile="upstream-archive",
        config=_UPSTREAM,
        options=replace(_SMALL.options, learning_rate=2e-3, warmup_epochs=0.5),
        augmentation=SpectraAugmentation(
            unknown=0.0, redshift=0.0, edge_share=0.0, noise=0.0, tilt=0.0, blur_share=0.0
        ),
        gamma=0.0,
        balance=None,
    ),
    "SpectraNet, tri-pool": replace(
        _SMALL,
        profile="upstream-archive",
        network="spectranet_tripool",
        config={"widths": [4, 8, 12, 16, 24], "kernels": _SMALL.config["kernels"], "hidden": [128, 64]},
    ),
}


#: Whose answers are averaged over trial redshifts for every spectrum, which takes 24 times as long.
WITHHELD = ("ResNet-1D",)


def load(data: Path, work: Path) -> tuple[Archive, LabelTable, SpectraSet]:
    """The archive, labels and spectra, labelled by their own source and split by object_key.

    Of the ``hash`` rule's validation objects two in three train: they were needed for the choices, which are
    made.
    """
    file = data / "spectra/spectra.parquet"
    ingest([], str(work / "archive"), spectra=[str(file)])
    table = pl.read_parquet(file, columns=["object", "object_key", "class10"])
    table = table.filter(pl.col("class10").is_not_null() & (pl.col("class10") != "OTHER"))
    labels = table.unique(["object", "class10"]).unique("object", keep="none").sort("object")
    archive = Archive.open(str(work / "archive"))
    known = label_table(labels.to_arrow(), class_set="ten")
    found = load_spectra(archive, known, PAPER).split(RULE)
    digits = [int(hashlib.sha256(key.encode()).hexdigest()[24:32], 16) for key in found.group.tolist()]
    joins = (found.part == 1) & (np.array(digits) % 3 != 0)
    return archive, known, replace(found, part=np.where(joins, 0, found.part).astype(np.int8))


def forest(
    train: np.ndarray, label: np.ndarray, inputs: dict[str, np.ndarray], classes: int
) -> dict[str, np.ndarray]:
    """Probabilities of a random forest for every set of inputs."""
    model = RandomForestClassifier(
        400, min_samples_leaf=2, class_weight="balanced_subsample", random_state=0
    ).fit(train, label)
    out = {}
    for name, x in inputs.items():
        out[name] = np.zeros((len(x), classes))
        out[name][:, model.classes_] = model.predict_proba(x)
    return out


def instruments(data: SpectraSet) -> np.ndarray:
    """What has nothing to do with the object: instrument (the 40 commonest), coverage; float (n, 43)."""
    names, counts = np.unique(data.instrument.astype(str), return_counts=True)
    common = names[np.argsort(-counts, kind="stable")][:40]
    covered = data.flux != 0
    first, last = covered.argmax(1), covered.shape[1] - covered[:, ::-1].argmax(1)
    one_hot = data.instrument[:, None].astype(str) == common
    return np.column_stack([one_hot, first, last, covered.mean(1)]).astype(np.float64)


def at_trials(archive: Archive, spec_id: np.ndarray) -> Iterator[dict[float, np.ndarray]]:
    """Each spectrum at the trial redshifts."""
    table = archive.read_spectra(0, 1 << 64)
    where = {name: i for i, name in enumerate(table.column("spec_id").to_pylist())}
    for name in spec_id.tolist():
        wavelength, flux = (
            np.asarray(table.column(column)[where[name]].values, np.float64)
            for column in ("wavelength", "flux")
        )
        yield preprocess_at(wavelength, flux, PAPER, TRIAL_REDSHIFTS)


def without_redshift(
    network: nn.Module, trials: Iterator[dict[float, np.ndarray]], *, low: bool = False
) -> np.ndarray:
    """Probabilities (n, C) by the mean over trial redshifts, as a run takes it; ``low``: at R = 100."""
    out = []
    for made in trials:
        flux = np.stack(list(made.values()))
        if low:
            flux = at_resolution(flux, PAPER)
        with torch.inference_mode():
            logits = network(torch.from_numpy(flux[:, None]))
        energy = -logits.logsumexp(-1).numpy()
        nothing = np.empty((len(made), 0), np.float32)
        redshift, offsets = np.array(list(made)), np.array([0, len(made)])
        log_p, _, _ = marginalise(logits.numpy(), nothing, energy, redshift, offsets)
        out.append(log_p[0])
    return np.exp(np.stack(out))


def answers_of(
    network: nn.Module, archive: Archive, data: SpectraSet, rows: np.ndarray, *, withheld: bool
) -> dict[str, np.ndarray]:
    """Probabilities (n, C) under each condition; trial redshifts for all spectra if ``withheld``."""

    def said(flux: np.ndarray) -> np.ndarray:
        return np.exp(predict_spectra(network, flux))

    out = {
        GIVEN: said(data.flux[rows]),
        LOW: said(at_resolution(data.flux[rows], PAPER)),
        ZERO: said(data.flux_unknown[rows]),
    }
    unknown = np.isnan(data.redshift[rows])
    tried = unknown | withheld
    if tried.any():
        found = without_redshift(network, at_trials(archive, data.spec_id[rows[tried]]))
        # What was given no redshift goes the way that it goes in a run.
        out[GIVEN][unknown] = found[unknown[tried]]
        if withheld:
            out[MARGINAL] = found
            out[WORST] = without_redshift(network, at_trials(archive, data.spec_id[rows]), low=True)
    return out


def spectra_per_s(network: nn.Module, flux: np.ndarray) -> float:
    """On one core, by CPU time: other work on the machine does not count."""
    began = time.process_time()
    predict_spectra(network, flux)
    return len(flux) / (time.process_time() - began)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--epochs", default="24,24,24")
    parser.add_argument("--out", type=Path, default=Path("docs/spectra_real.md"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    archive, labels, data = load(asked.data, asked.work)
    test, train = data.members("test"), data.members("train")
    n_classes = len(data.classes)
    given = {
        GIVEN: data.flux[test],
        LOW: at_resolution(data.flux[test], PAPER),
        ZERO: data.flux_unknown[test],
    }
    pca = PCA(60, random_state=0).fit(data.flux[train])
    answers = {
        "forest on PCA": forest(
            pca.transform(data.flux[train]),
            data.label[train],
            {name: pca.transform(flux) for name, flux in given.items()},
            n_classes,
        ),
        "instrument alone": forest(
            instruments(data)[train], data.label[train], {GIVEN: instruments(data)[test]}, n_classes
        ),
    }
    about: dict[str, dict[str, Any]] = {}
    epochs = [PRESETS["resnet1d", "compact"].options.epochs, *map(int, asked.epochs.split(","))]
    for (name, preset), number in zip(CONTENDERS.items(), epochs, strict=False):
        preset = replace(preset, options=replace(preset.options, epochs=number))
        folder = asked.work / name.replace(",", "").replace(" ", "-").lower()
        trained = fit_spectra(data, Store(folder), preset, progress=True)
        if preset.network == "resnet1d":
            models = str(asked.work / "models")
            finish_spectra(Store(folder), models, trained, preset, data, archive, labels, RULE)
        network = build_network(preset.profile, preset.network, **preset.config, n_classes=n_classes).eval()
        network.load_state_dict(trained.state)
        about[name] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "bytes": sum(t.nbytes for t in network.state_dict().values()),
            "epochs": len(trained.history),
            "best_epoch": trained.best_epoch,
            "curve": [r["composite"] for r in trained.history],
            "training_s": sum(r["seconds"] for r in trained.history),
            "spectra_per_s": spectra_per_s(network, data.flux[test][:256]),
        }
        key = hashlib.sha256(b"".join(t.numpy().tobytes() for t in trained.state.values())).hexdigest()[:12]
        kept = folder / f"answers-{key}.npz"
        if not kept.exists():
            made = answers_of(network, archive, data, test, withheld=name in WITHHELD)
            np.savez(kept, **made)  # type: ignore[arg-type]
        answers[name] = dict(np.load(kept))
        print(f"{name}: {about[name]}", flush=True)
    seven = data.label[test] < SEVEN
    document = {
        "counts": {
            p: np.bincount(data.label[data.members(p)], minlength=n_classes).tolist()
            for p in ("train", "test")
        },
        "objects": {p: len(np.unique(data.group[data.members(p)])) for p in ("train", "test")},
        "classes": list(data.classes),
        "redshift_unknown": int(np.isnan(data.redshift[test]).sum()),
        "networks": about,
        "results": {
            name: {
                condition: judge(data.label[test][seven], prob[seven], data.classes, data.group[test][seven])
                for condition, prob in by_condition.items()
            }
            for name, by_condition in answers.items()
        },
        "tde": {name: tde(data, test, by_condition[GIVEN]) for name, by_condition in answers.items()},
    }
    (asked.work / "spectra.json").write_text(json.dumps(document, indent=1))
    asked.out.write_text(page(document))


def tde(data: SpectraSet, rows: np.ndarray, prob: np.ndarray) -> dict[str, Any]:
    """How the few spectra of tidal disruption events fare among all classes."""
    number = data.classes.index("TDE")
    mine = data.label[rows] == number
    rank = (prob[~mine][:, number][None] >= prob[mine][:, number][:, None]).sum(1) + 1
    return {
        "spectra": int(mine.sum()),
        "objects": len(np.unique(data.group[rows][mine])),
        "called": int((prob[mine].argmax(1) == number).sum()),
        "false": int((prob[~mine].argmax(1) == number).sum()),
        "ranks": sorted(rank.tolist()),
    }


if __name__ == "__main__":
    main()
