"""What the network of stamps and metadata sees: can a classifier tell real from simulated packets by it?

A part of ``benchmarks.realism``. Real packets are the latest of each labelled object, simulated ones one at
random of each object, drawn so that the classes have the real shares. A random forest is asked in five folds
which is which: an AUC of 0.5 means that nothing tells them apart, 1 that everything does. ra and dec are left
out, a simulated survey sees one season's sky.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from applecider_batch.archive.read import Archive
from applecider_batch.features.profiles import get_profile
from applecider_batch.taxonomy import CLASSES
from applecider_batch.training.dataset import load_dataset
from applecider_batch.training.image import PROFILE
from applecider_batch.training.image_task import ANGLES, load_examples
from applecider_batch.training.labels import read_labels

STAMPS = ("science", "template", "difference")
#: Simulated packets for a real one.
TIMES = 4
SHOWN = 16


@dataclass(frozen=True)
class Inputs:
    """Numbers of n packets: ``values`` float64 (n, F) with their ``names``, ``label`` int64 (n,)."""

    names: tuple[str, ...]
    n_metadata: int
    values: np.ndarray
    label: np.ndarray


def network_inputs(archive: Archive, labels: str, folder: Path, *, latest: bool) -> Inputs:
    """A packet of every labelled object as the network would see it, its stamps as some numbers.

    Parameters
    ----------
    archive : Archive
    labels : str
    folder : Path
        For the prepared stamps.
    latest : bool
        The latest packet, else one at random.
    """
    profile = get_profile(PROFILE)
    dataset = load_dataset(archive, read_labels(labels), profile, horizons=[None], modalities=("image",))
    dataset = replace(dataset, part=np.zeros(len(dataset), np.int8))
    folder.mkdir(parents=True, exist_ok=True)
    examples = load_examples(archive, dataset, profile, folder, np.inf)
    if latest:
        rows = examples.latest("train", np.inf)
    else:
        rows = np.random.default_rng(0).permutation(examples.members("train"))
        rows = rows[np.unique(examples.object_id[rows].astype(str), return_index=True)[1]]
    given = [i for i, name in enumerate(examples.feature_names) if name not in ANGLES]
    numbers = stamp_numbers(examples.stamps.take(rows))
    return Inputs(
        (*(examples.feature_names[i] for i in given), *numbers),
        len(given),
        np.column_stack([examples.metadata[rows][:, given], *numbers.values()]).astype(np.float64),
        examples.label[rows],
    )


def stamp_numbers(images: np.ndarray) -> dict[str, np.ndarray]:
    """What prepared stamps (n, C, S, S) are like: light by radius, extremes, noise and its smoothness."""
    half = images.shape[-1] // 2
    y, x = np.mgrid[: images.shape[-1], : images.shape[-1]] - half
    radius = np.hypot(x, y)
    out = {}
    for number, name in enumerate(STAMPS):
        image = images[:, number]
        for low, high in ((0, 2), (2, 5), (5, 10), (10, 20)):
            ring = (radius >= low) & (radius < high)
            out[f"{name}, {low} to {high} px"] = image[:, ring].mean(1)
        outer = image[:, radius >= 20]
        out[f"{name}, largest"], out[f"{name}, least"] = image.max((1, 2)), image.min((1, 2))
        out[f"{name}, outer scatter"] = outer.std(1)
        out[f"{name}, outer 99 %"] = np.quantile(outer, 0.99, axis=1)
        pair = np.clip(np.stack([image[:, :, 1:], image[:, :, :-1]]), -3, 3).reshape(2, len(image), -1)
        pair -= pair.mean(2, keepdims=True)
        power = np.sqrt((pair[0] ** 2).mean(1) * (pair[1] ** 2).mean(1))
        out[f"{name}, neighbours' correlation"] = (pair[0] * pair[1]).mean(1) / np.maximum(power, 1e-9)
    return out


def matched(real: Inputs, made: Inputs) -> np.ndarray:
    """Rows of the simulated ones, in the shares of the real classes; int64."""
    rng, rows = np.random.default_rng(0), []
    for number in range(len(CLASSES)):
        here = rng.permutation(np.flatnonzero(made.label == number))
        rows.append(here[: TIMES * int((real.label == number).sum())])
    return np.concatenate(rows)


def section(real: Inputs, made: Inputs) -> str:
    """Markdown: what the forest tells apart, by which numbers, and the farthest distributions."""
    other = made.values[matched(real, made)]
    values, side = np.concatenate([real.values, other]), np.repeat([1, 0], [len(real.values), len(other)])
    kinds = {
        "metadata": np.arange(real.n_metadata),
        "stamps": np.arange(real.n_metadata, len(real.names)),
        "both": np.arange(len(real.names)),
    }
    lines = [
        "",
        "### What the network sees",
        "",
        f"{len(real.values)} real and {len(other)} simulated packets, classes in the real shares.",
        "",
        "| a forest tells real from simulated by | AUC | most by |",
        "|---|---|---|",
    ]
    forest = RandomForestClassifier(400, min_samples_leaf=3, class_weight="balanced", random_state=0)
    for kind, columns in kinds.items():
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        told = cross_val_predict(forest, values[:, columns], side, cv=folds, method="predict_proba")[:, 1]
        weight = forest.fit(values[:, columns], side).feature_importances_
        most = "; ".join(real.names[columns[i]] for i in np.argsort(-weight)[:6])
        lines.append(f"| {kind} | {roc_auc_score(side, told):.2f} | {most} |")
    lines += ["", "| | distance | real | simulated |", "|---|---|---|---|"]
    rows = []
    for column, name in enumerate(real.names):
        x, y = real.values[:, column], other[:, column]
        deciles = [" / ".join(f"{v:.3g}" for v in np.quantile(z, [0.1, 0.5, 0.9])) for z in (x, y)]
        rows.append((float(ks_2samp(x, y).statistic), f"{name} | {{:.2f}} | {' | '.join(deciles)}"))
    lines += [f"| {text.format(ks)} |" for ks, text in sorted(rows, key=lambda r: -r[0])[:SHOWN]]
    return "\n".join(lines)
