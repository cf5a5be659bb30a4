"""``train spectra``: SpectraNet from the labelled spectra of an archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from applecider_batch.archive.read import Archive
from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.models import build_network
from applecider_batch.storage import Store
from applecider_batch.training.dataset import count_parts
from applecider_batch.training.finish import finish, write_split
from applecider_batch.training.labels import read_labels
from applecider_batch.training.losses import class_balanced_weights, focal_loss
from applecider_batch.training.metrics import measures
from applecider_batch.training.spectra_data import SpectraSet, load_spectra
from applecider_batch.training.splits import PARTS, SplitRule
from applecider_batch.training.trainer import Batch, Trained, TrainerOptions, train

PROFILE = "paper"
_PREDICT_BATCH = 64


@dataclass(frozen=True)
class SpectraAugmentation:
    """How training spectra are varied.

    Attributes
    ----------
    unknown : float
        Share of spectra shown as if the redshift were not known.
    edge : float
        At most this share of the grid is blanked at each end.
    edge_share : float
        Share of spectra with blanked edges.
    noise : float
        Largest standard deviation of white noise, in units of the spectrum's own spread.
    slope : float
        Standard deviation of a linear tilt over the grid: reddening, flux calibration.
    shift : int
        Grid points by which a spectrum is moved at most: an error of the redshift.
    """

    unknown: float = 0.2
    edge: float = 0.25
    edge_share: float = 0.5
    noise: float = 0.2
    slope: float = 0.3
    shift: int = 12


@dataclass(frozen=True)
class SpectraPreset:
    """Network, its size, and how it is trained."""

    config: dict[str, Any] = field(default_factory=dict)
    options: TrainerOptions = field(default_factory=TrainerOptions)
    augmentation: SpectraAugmentation = field(default_factory=SpectraAugmentation)
    network: str = "spectranet"
    gamma: float = 2.0


PRESETS: dict[str, SpectraPreset] = {
    "paper": SpectraPreset(
        options=TrainerOptions(
            epochs=80, batch_size=32, learning_rate=3e-4, warmup_epochs=3, cosine=True, ema=0.995, patience=20
        )
    ),
    # Small kernels and widths: for a CPU.
    "compact": SpectraPreset(
        config={
            "widths": [4, 12, 24, 32, 48],
            "kernels": [[5, 11, 21], [3, 9, 21], [3, 7, 15], [3, 5, 9], [3, 5, 7]],
            "hidden": [128, 64],
            "dropout": [0.4, 0.2],
        },
        options=TrainerOptions(
            epochs=40, batch_size=32, learning_rate=1e-3, warmup_epochs=2, cosine=True, ema=0.99, patience=15
        ),
        gamma=1.0,
    ),
}


def composite(label: np.ndarray, prob: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """Measures with the score that training stops by: 0.4 accuracy + 0.3 top-3 + 0.3 macro-F1."""
    found = measures(label, prob, classes)
    score = 0.4 * found["accuracy"] + 0.3 * found["top3"] + 0.3 * found["macro_f1"]
    names = ("accuracy", "top3", "macro_f1", "macro_auc", "balanced_accuracy", "nll")
    return {"composite": score, **{n: found[n] for n in names}}


def vary_spectra(flux: np.ndarray, a: SpectraAugmentation, rng: np.random.Generator) -> np.ndarray:
    """Shift, tilt, blur with noise and blank the edges of spectra; float32 (b, n_points), 0 = not covered."""
    points = flux.shape[1]
    out = np.zeros_like(flux)
    ramp = np.linspace(-1, 1, points, dtype=np.float32)
    for i, row in enumerate(flux):
        row = np.roll(row, int(rng.integers(-a.shift, a.shift + 1)))
        covered = row != 0
        edges = rng.uniform(0, a.edge, 2) * (rng.random() < a.edge_share) * points
        shown = covered.copy()
        shown[: int(edges[0])] = False
        shown[points - int(edges[1]) :] = False
        shown = shown if shown.sum() > points // 10 else covered
        noise = rng.standard_normal(points, np.float32) * np.float32(rng.uniform(0, a.noise))
        row = row + np.float32(rng.normal(0, a.slope)) * ramp + noise
        used = row[shown]
        if len(used):
            out[i, shown] = (used - used.mean()) / max(float(used.std()), 1e-6)
    return out


def predict_spectra(network: nn.Module, flux: np.ndarray, batch_size: int = _PREDICT_BATCH) -> np.ndarray:
    """Log probabilities of spectra (n, n_points); float64 (n, C)."""
    device = next(network.parameters()).device
    out = []
    with torch.inference_mode():
        for start in range(0, len(flux), batch_size):
            x = torch.as_tensor(flux[start : start + batch_size, None]).to(device)
            out.append(log_softmax(network(x).float().cpu().numpy()))
    return np.concatenate(out)


@dataclass
class SpectraTask:
    """Focal loss with class-balanced weights over augmented spectra; early stop on the composite score."""

    data: SpectraSet
    augmentation: SpectraAugmentation
    gamma: float = 2.0
    score: str = "composite"

    def __post_init__(self) -> None:
        self._train, self._validation = self.data.members("train"), self.data.members("validation")
        if len(np.unique(self.data.label[self._train])) < 2 or not len(self._validation):
            raise UserError(
                "There is too little to train on: at least two classes must train, and some spectra validate."
            )
        # An object with many spectra must not outweigh one with a single one.
        _, inverse, counts = np.unique(self.data.group[self._train], return_inverse=True, return_counts=True)
        self._share = 1.0 / np.sqrt(counts[inverse])
        counted = np.bincount(self.data.label[self._train], self._share, minlength=len(self.data.classes))
        self._alpha = class_balanced_weights(torch.as_tensor(np.round(counted)), 0.999)

    def batches(self, rng: np.random.Generator, batch_size: int) -> Iterator[Batch]:
        """See `trainer.Task`."""
        n = len(self._train)
        order = self._train[rng.choice(n, n, p=self._share / self._share.sum())]
        for start in range(0, n - n % batch_size or n, batch_size):
            rows = order[start : start + batch_size]
            unknown = rng.random(len(rows)) < self.augmentation.unknown
            unknown &= (self.data.flux_unknown[rows] != 0).any(1)
            flux = np.where(unknown[:, None], self.data.flux_unknown[rows], self.data.flux[rows])
            x = vary_spectra(flux, self.augmentation, rng)
            yield {"x": x[:, None], "label": self.data.label[rows]}

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """See `trainer.Task`."""
        logits = network(batch["x"]).float()
        return focal_loss(logits, batch["label"], gamma=self.gamma, alpha=self._alpha.to(logits.device))

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """See `trainer.Task`."""
        rows = self._validation
        prob = np.exp(predict_spectra(network, self.data.flux[rows]))
        return composite(self.data.label[rows], prob, self.data.classes)

    def head(self) -> tuple[str, ...]:
        """See `trainer.Task`."""
        return ()


def fit_spectra(data: SpectraSet, store: Store, preset: SpectraPreset, *, progress: bool = False) -> Trained:
    """Train on spectra that are split."""
    config = {**preset.config, "n_classes": len(data.classes)}
    identity = {
        "config": config,
        "network": preset.network,
        "augmentation": asdict(preset.augmentation),
        "gamma": preset.gamma,
        "data": json_digest([data.spec_id.tolist(), data.label.tolist(), data.part.tolist()]),
    }
    torch.manual_seed(preset.options.seed)
    network = build_network(PROFILE, preset.network, **config)
    task = SpectraTask(data, preset.augmentation, preset.gamma)
    return train(network, task, preset.options, store, identity=identity, progress=progress)


def train_spectra(
    archive: str,
    labels: str,
    out: str,
    models: str,
    *,
    preset: str = "paper",
    split: SplitRule | None = None,
    class_set: str = "ten",
    epochs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    label_column: str | None = None,
    name: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train a SpectraNet and put it into a model set.

    Parameters
    ----------
    archive, labels, out, models : str
        Archive, label table, the training's folder (resumed if it is there), model set (made if absent).
    preset : {"paper", "compact"}
    split : SplitRule, optional
    class_set : {"ten", "five"}
        Classes of the network's outputs; ten are summed to five when it is used.
    epochs, seed, device, threads
        As `trainer.TrainerOptions`.
    label_column, name, storage_options, progress
        As `photometry.train_photometry`.

    Returns
    -------
    dict
        Summary, JSON-ready.

    Raises
    ------
    UserError
        For options or data that cannot be used.
    """
    if preset not in PRESETS:
        raise UserError(f"Unknown preset '{preset}'; allowed are {', '.join(PRESETS)}.")
    chosen = PRESETS[preset]
    options = replace(chosen.options, seed=seed, device=device, threads=threads)
    chosen = replace(chosen, options=replace(options, epochs=epochs) if epochs is not None else options)
    rule = split or SplitRule()
    opened = Archive.open(archive, storage_options)
    table = read_labels(labels, class_set=class_set, column=label_column, storage_options=storage_options)
    data = load_spectra(opened, table, get_profile(PROFILE)).split(rule)
    store = Store(out)
    digest = write_split(store, spectra_split_table(data))
    trained = fit_spectra(data, store, chosen, progress=progress)
    return finish(
        store,
        models,
        trained,
        name=name or chosen.network,
        profile=PROFILE,
        network=chosen.network,
        modality="spectra",
        config={**chosen.config, "n_classes": len(data.classes)},
        classes=data.classes,
        feature_names=(),
        normalisation={},
        data={
            "archive": opened.snapshot.logical_digest,
            "snapshot": opened.snapshot.id,
            "counts": count_parts(data.part, data.label, data.classes),
            "split": asdict(rule),
            "split_digest": digest,
            "spectra_left_out": data.left_out,
            "labels_left_out": table.left_out,
        },
        asked={"preset": preset, "class_set": class_set, **asdict(chosen.options)},
        metrics=trained.best,
    )


def spectra_split_table(data: SpectraSet) -> pa.Table:
    """objectId, object_key, class and part of every object that has a spectrum."""
    _, first = np.unique(data.object_id.astype(str), return_index=True)
    return pa.table(
        {
            "objectId": data.object_id[first].astype(str),
            "object_key": data.group[first].astype(str),
            "class": np.array(data.classes)[data.label[first]],
            "part": np.array([*PARTS, "none"])[data.part[first]],
        }
    )
