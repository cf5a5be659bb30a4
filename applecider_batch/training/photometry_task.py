"""Light curves for training: batches, and the tasks of classification and pre-training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from applecider_batch.inference.batches import cut_by_length, pad_sequences
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.models.card import ModelCard
from applecider_batch.taxonomy import CLASSES
from applecider_batch.training.augment import Augmentation, RaggedCurves, augment
from applecider_batch.training.losses import focal_loss, inverse_sqrt_weights, masked_event_loss
from applecider_batch.training.metrics import average_precision, counting_classes, macro, measures
from applecider_batch.training.trainer import Batch
from applecider_batch.training.trees import TreeOptions, fit_trees

PREDICT_BATCH = 256
_WINDOW = 16  # batches that are sorted by length together
_MIN_COUNT = 20
_TREE_VERSIONS = 6  # of the variants of a curve: more of them teach trees little


def curve_statistics(
    values: np.ndarray, offsets: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the first four channels over these curves' events, float64 (4,)."""
    rows = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in items])
    used = values[rows, :4].astype(np.float64)
    return used.mean(0), np.maximum(used.std(0), 1e-6)


def summary_statistics(summary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and clipped standard deviation (1 % left out at either end) of each number; float64 (F,)."""
    x = summary.astype(np.float64)
    x[:, np.isnan(x).all(axis=0)] = 0.0
    low, middle, high = np.nanquantile(x, [0.01, 0.5, 0.99], axis=0)
    std = np.nanstd(np.clip(x, low, high), axis=0)
    return middle, np.where(std > 1e-6, std, 1.0)


@dataclass
class Curves:
    """Curves with their labels: the training part and the validation part at several horizons.

    Attributes
    ----------
    curves : RaggedCurves
        With a summary where the network reads one.
    items, label : ndarray of int64, shape (n,)
        Full curves of the training objects, and the network's class of each.
    validation : list of (items, label)
        One entry a horizon; labels of the five classes.
    card : ModelCard
        For the standardisation and the classes.
    """

    curves: RaggedCurves
    items: np.ndarray
    label: np.ndarray
    validation: list[tuple[np.ndarray, np.ndarray]]
    card: ModelCard

    @property
    def to_five(self) -> np.ndarray:
        """Which of the five classes each class of the network counts for; int64 (C,)."""
        return np.array(self.card.class_map).argmax(axis=0)

    def repeats(self, most: int) -> np.ndarray:
        """How often each training object appears in an epoch: by the size of its class of the five."""
        return class_repeats(self.to_five[self.label], len(CLASSES), most)

    def batch(self, curves: RaggedCurves, items: np.ndarray, length: int) -> Batch:
        """Network input as the predictor makes it."""
        batch = pad_sequences(curves.values, curves.offsets, items, length)
        x = self.card.standardise_photometry(batch["x"])
        x[~batch["mask"]] = 0.0
        out = {"x": x, "mask": batch["mask"]}
        if curves.summary is not None:
            out["summary"] = self.card.standardise_summary(curves.summary.values[items])
        return out


def class_repeats(label: np.ndarray, n_classes: int, most: int) -> np.ndarray:
    """How often each object's class is repeated in an epoch: sqrt(largest / own count), 1 to ``most``."""
    counts = np.bincount(label, minlength=n_classes)
    times = np.sqrt(counts.max() / np.maximum(counts, 1))
    return np.clip(np.round(times), 1, most).astype(np.int64)[label]


def curve_batches(
    curves: Curves, a: Augmentation, rng: np.random.Generator, batch_size: int
) -> Iterator[Batch]:
    """An epoch of truncated, augmented, standardised curves with ``label`` int64 (b,)."""
    repeats = curves.repeats(a.repeat)
    index = rng.permutation(np.repeat(np.arange(len(repeats)), repeats))
    horizon = a.draw_horizons(len(index), rng)
    chosen = (rng.random(len(index)) < a.share) | (repeats[index] > 1)
    for start in range(0, len(index), batch_size * _WINDOW):
        window = slice(start, start + batch_size * _WINDOW)
        label = curves.label[index[window]]
        made = augment(curves.curves, curves.items[index[window]], horizon[window], chosen[window], a, rng)
        yield from _by_length(curves, made, np.arange(len(label)), label, rng, batch_size)


def _by_length(
    curves: Curves,
    made: RaggedCurves,
    items: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    batch_size: int,
) -> Iterator[Batch]:
    """Batches of curves of like length, in random order."""
    length = made.lengths(items)
    order = np.argsort(length, kind="stable")
    cuts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for number in rng.permutation(len(cuts)):
        here = cuts[number]
        yield curves.batch(made, items[here], int(length[here].max())) | {"label": label[here]}


def predict_curves(
    network: nn.Module, curves: Curves, items: np.ndarray, batch_size: int = PREDICT_BATCH
) -> np.ndarray:
    """Log probabilities of the five classes of curves as they are; float64 (n, 5)."""
    device = next(network.parameters()).device
    out = np.full((len(items), len(CLASSES)), np.nan)
    for length, rows in cut_by_length(curves.curves.lengths(items), batch_size):
        batch = curves.batch(curves.curves, items[rows], length)
        logits = network(*(torch.as_tensor(v).to(device) for v in batch.values()))
        out[rows] = log_softmax(curves.card.to_five(logits.float().cpu().numpy()))
    return out


def stopping_score(label: np.ndarray, prob: np.ndarray) -> float:
    """Macro-AUPRC over the classes with at least 20 objects (fewer make it a lottery), else over all."""
    classes = counting_classes(label, prob.shape[1])
    counts = np.bincount(label, minlength=prob.shape[1])
    enough = classes[counts[classes] >= _MIN_COUNT]
    return macro(average_precision, label, prob, enough if len(enough) > 1 else classes)


@dataclass
class ClassificationTask:
    """Focal loss on truncated curves; early stop on macro-AUPRC, averaged over the validation horizons.

    Attributes
    ----------
    curves : Curves
    augmentation : Augmentation
    gamma : float
        Of the focal loss.
    head_names : tuple of str
    versions : int
        So many variants of every curve are made once and drawn from in every epoch, because summary numbers
        cost more to make than to learn from; 0: new ones in every epoch.
    seed : int
        Of the variants.
    """

    curves: Curves
    augmentation: Augmentation
    gamma: float = 2.0
    head_names: tuple[str, ...] = ("fc.", "norm.")
    versions: int = 0
    seed: int = 0
    score: str = "macro_auprc"
    _alpha: Tensor = field(init=False)
    _repeats: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        # Weights are those of the five classes: sub-classes keep their own shares.
        to_five = self.curves.to_five
        self._repeats = self.curves.repeats(self.augmentation.repeat)
        seen = np.bincount(to_five[self.curves.label], self._repeats, len(CLASSES))
        self._alpha = inverse_sqrt_weights(torch.as_tensor(seen))[torch.as_tensor(to_five)]

    def batches(self, rng: np.random.Generator, batch_size: int) -> Iterator[Batch]:
        """See `trainer.Task`."""
        if not self.versions:
            yield from curve_batches(self.curves, self.augmentation, rng, batch_size)
            return
        n, label = len(self.curves.label), self.curves.label
        index = rng.permutation(np.repeat(np.arange(n), self._repeats))
        items = rng.integers(self.versions, size=len(index)) * n + index
        for start in range(0, len(index), batch_size * _WINDOW):
            window = items[start : start + batch_size * _WINDOW]
            yield from _by_length(self.curves, self._pool, window, label[window % n], rng, batch_size)

    def fit_trees(self, options: TreeOptions) -> dict[str, Tensor]:
        """Trees for the five classes on a part of the variants; state of a `models.boosted_trees`."""
        summary = self._pool.summary
        assert summary is not None
        n = min(_TREE_VERSIONS, self.versions) * len(self.curves.label)
        label = np.resize(self.curves.to_five[self.curves.label], n)
        weight = np.resize(self._alpha.numpy()[self.curves.label] * self._repeats, n)
        x = self.curves.card.standardise_summary(summary.values[:n])
        return fit_trees(x, label, weight, len(CLASSES), options, self.seed)

    @cached_property
    def _pool(self) -> RaggedCurves:
        rng, a = np.random.default_rng(self.seed), self.augmentation
        items = np.tile(self.curves.items, self.versions)
        chosen = (rng.random(len(items)) < a.share) | np.tile(self._repeats > 1, self.versions)
        horizon = a.draw_horizons(len(items), rng)
        return augment(self.curves.curves, items, horizon, chosen, a, rng)

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """See `trainer.Task`."""
        inputs = [v for k, v in batch.items() if k != "label"]
        target = batch["label"]
        if hasattr(network, "member_logits"):  # every member learns by itself
            members = network.member_logits(*inputs)  # (B, M, C)
            logits = members.flatten(0, 1)
            target = target.repeat_interleave(members.shape[1])
        else:
            logits = network(*inputs)
        alpha = self._alpha.to(logits.device)
        return focal_loss(logits.float(), target, gamma=self.gamma, alpha=alpha)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """See `trainer.Task`."""
        scores, values = [], []
        for items, label in self.curves.validation:  # of the five classes, whatever is learned
            prob = np.exp(predict_curves(network, self.curves, items))
            scores.append(stopping_score(label, prob))
            values.append(measures(label, prob, CLASSES))
        names = ("macro_auc", "balanced_accuracy", "nll", "auc SN I/SN II")
        means = {n: float(np.mean([v[n] for v in values])) for n in names if all(n in v for v in values)}
        return {self.score: float(np.mean(scores)), **means}

    def head(self) -> tuple[str, ...]:
        """See `trainer.Task`."""
        return self.head_names


@dataclass
class PretrainingTask:
    """Masked events: flux, band and time to the next event of 30 % of the events, without labels."""

    curves: Curves
    augmentation: Augmentation
    hidden: float = 0.3
    score: str = "minus_loss"

    def batches(self, rng: np.random.Generator, batch_size: int) -> Iterator[Batch]:
        """See `trainer.Task`."""
        for batch in curve_batches(self.curves, self.augmentation, rng, batch_size):
            yield self._hide(batch, rng)

    def _hide(self, batch: Batch, rng: np.random.Generator) -> Batch:
        x, mask = batch["x"], batch["mask"]
        hidden = mask & (rng.random(mask.shape) < self.hidden)
        # Targets are read before anything is hidden.
        following = np.zeros(mask.shape, np.float32)
        following[:, :-1] = np.where(mask[:, 1:], x[:, 1:, 1], 0.0)
        out = x.copy()
        out[hidden, 2:] = 0.0
        return {
            "x": out,
            "mask": mask,
            "hidden": hidden,
            "flux": x[:, :, 2].copy(),
            "band": x[:, :, 4:7].argmax(2),
            "following": following,
        }

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """See `trainer.Task`."""
        flux, band, following = (p.float() for p in network(batch["x"], batch["mask"]))
        targets = (batch["flux"], batch["band"], batch["following"])
        return masked_event_loss((flux, band, following), targets, batch["hidden"])[0]

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """See `trainer.Task`."""
        rng = np.random.default_rng(0)
        device = next(network.parameters()).device
        total, count = 0.0, 0
        items = self.curves.validation[-1][0]
        for length, rows in cut_by_length(self.curves.curves.lengths(items), PREDICT_BATCH):
            batch = self._hide(self.curves.batch(self.curves.curves, items[rows], length), rng)
            tensors = {k: torch.as_tensor(v).to(device) for k, v in batch.items()}
            total += float(self.loss(network, tensors)) * len(rows)
            count += len(rows)
        return {self.score: -total / max(count, 1)}

    def head(self) -> tuple[str, ...]:
        """See `trainer.Task`."""
        return ("head_",)
