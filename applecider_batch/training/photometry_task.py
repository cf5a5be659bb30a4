"""Light curves for training: truncation, augmentation, batches, and the two tasks.

Every curve, of whatever class and source, is truncated at a random horizon of its own, so that a network
learns to judge young events and cannot tell a class by how long its source followed it. Augmentations (drop
events, move fluxes within their errors, shift all of them, stretch time) keep the seven features consistent:
they are applied to days and log fluxes, and the time since the previous event is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from applecider_batch.inference.batches import cut_by_length, pad_sequences
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.models.card import ModelCard
from applecider_batch.training.losses import focal_loss, inverse_sqrt_weights, masked_event_loss
from applecider_batch.training.metrics import average_precision, counting_classes, macro, measures
from applecider_batch.training.trainer import Batch

PREDICT_BATCH = 256
_WINDOW = 16  # batches that are sorted by length together
_MIN_COUNT = 5


@dataclass(frozen=True)
class Augmentation:
    """How training curves are varied.

    Attributes
    ----------
    horizons : tuple of float, (2,)
        Range of the random horizon, days, drawn evenly in its logarithm.
    full : float
        Share of curves that are not truncated.
    drop : float
        Share of events that are left out of an augmented curve.
    jitter : float
        Log fluxes move by this many of their own errors (normal).
    shift : float
        All log fluxes of a curve move by so much, dex (normal): another distance.
    stretch : float
        Time scale, ln (normal): another redshift.
    share : float
        Share of curves that are augmented; of those of rare classes (repeated in an epoch) all are.
    repeat : int
        A rare class is repeated at most so often in an epoch.
    """

    horizons: tuple[float, float] = (2.0, 150.0)
    full: float = 0.25
    drop: float = 0.1
    jitter: float = 0.5
    shift: float = 0.05
    stretch: float = 0.03
    share: float = 0.5
    repeat: int = 4


def truncate(
    batch: Batch, horizon_days: np.ndarray, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Raw events with dt <= horizon (and ``keep``), moved to the front; times start at the first one kept.

    Parameters
    ----------
    batch : dict
        ``x`` float32 (b, L, 7) raw, ``mask`` bool (b, L).
    horizon_days : ndarray of float64, shape (b,)
        inf: all.
    keep : ndarray of bool, shape (b, L), optional

    Returns
    -------
    x : ndarray of float32, shape (b, L', 7)
    mask : ndarray of bool, shape (b, L')
        A curve keeps at least its first event.
    """
    x, mask = batch["x"], batch["mask"].copy()
    dt = np.expm1(x[:, :, 0].astype(np.float64))
    mask &= dt <= horizon_days[:, None]
    if keep is not None:
        thinned = mask & keep
        mask = np.where(thinned.any(1, keepdims=True), thinned, mask)
    order = np.argsort(~mask, axis=1, kind="stable")
    length = max(int(mask.sum(1).max(initial=0)), 1)
    order = order[:, :length]
    mask = np.take_along_axis(mask, order, 1)
    x = np.take_along_axis(x, order[:, :, None], 1)
    dt = np.take_along_axis(dt, order, 1)
    dt = dt - dt[:, :1]
    previous = np.diff(dt, axis=1, prepend=dt[:, :1])
    x = x.copy()
    x[:, :, 0] = np.log1p(np.where(mask, dt, 0.0))
    x[:, :, 1] = np.log1p(np.where(mask, previous, 0.0))
    x[~mask] = 0.0
    return x, mask


def vary(batch: Batch, a: Augmentation, rng: np.random.Generator, chosen: np.ndarray) -> Batch:
    """Shift, stretch and jitter the chosen curves (bool (b,)); raw features in, raw features out."""
    x = batch["x"].copy()
    n, length = x.shape[:2]
    stretch = np.where(chosen, np.exp(rng.normal(0, a.stretch, n)), 1.0)[:, None]
    x[:, :, 0] = np.log1p(np.expm1(x[:, :, 0]) * stretch)
    shift = np.where(chosen, rng.normal(0, a.shift, n), 0.0)[:, None]
    noise = rng.normal(0, a.jitter, (n, length)) * np.minimum(x[:, :, 3], 0.5)
    x[:, :, 2] += np.where(batch["mask"], shift + noise * chosen[:, None], 0.0)
    return {"x": x, "mask": batch["mask"]}


def curve_statistics(
    values: np.ndarray, offsets: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the first four channels over these curves' events, float64 (4,)."""
    rows = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in items])
    used = values[rows, :4].astype(np.float64)
    return used.mean(0), np.maximum(used.std(0), 1e-6)


@dataclass
class Curves:
    """Ragged curves with their labels: the training part and the validation part at several horizons.

    Attributes
    ----------
    values, offsets
        As `features.prepared.PhotometryInputs`.
    items, label : ndarray of int64, shape (n,)
        Full curves of the training objects.
    validation : list of (items, label)
        One entry a horizon.
    card : ModelCard
        For the standardisation.
    n_classes : int
    """

    values: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    label: np.ndarray
    validation: list[tuple[np.ndarray, np.ndarray]]
    card: ModelCard
    n_classes: int

    def standardised(self, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """As the predictor does it: (b, L, 7)."""
        out = self.card.standardise_photometry(x)
        out[~mask] = 0.0
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
    repeats = class_repeats(curves.label, curves.n_classes, a.repeat)
    index = rng.permutation(np.repeat(np.arange(len(repeats)), repeats))
    low, high = np.log(a.horizons)
    horizon = np.exp(rng.uniform(low, high, len(index)))
    horizon[rng.random(len(index)) < a.full] = np.inf
    chosen = (rng.random(len(index)) < a.share) | (repeats[index] > 1)
    length = _kept_lengths(curves, index, horizon)
    for start in range(0, len(index), batch_size * _WINDOW):
        window = np.arange(start, min(start + batch_size * _WINDOW, len(index)))
        window = window[np.argsort(length[window], kind="stable")]
        cuts = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        for number in rng.permutation(len(cuts)):
            here = cuts[number]
            items = curves.items[index[here]]
            batch = pad_sequences(
                curves.values, curves.offsets, items, int(_full_length(curves, items).max())
            )
            batch = vary(batch, a, rng, chosen[here])
            keep = rng.random(batch["mask"].shape) >= a.drop * chosen[here][:, None]
            x, mask = truncate(batch, horizon[here], keep)
            yield {"x": curves.standardised(x, mask), "mask": mask, "label": curves.label[index[here]]}


def _full_length(curves: Curves, items: np.ndarray) -> np.ndarray:
    return curves.offsets[items + 1] - curves.offsets[items]


def _kept_lengths(curves: Curves, index: np.ndarray, horizon: np.ndarray) -> np.ndarray:
    out = np.empty(len(index), np.int64)
    log_horizon = np.log1p(horizon)
    for i, (item, h) in enumerate(zip(curves.items[index].tolist(), log_horizon.tolist(), strict=True)):
        out[i] = np.searchsorted(
            curves.values[curves.offsets[item] : curves.offsets[item + 1], 0], h, "right"
        )
    return out


def predict_curves(
    network: nn.Module, curves: Curves, items: np.ndarray, batch_size: int = PREDICT_BATCH
) -> np.ndarray:
    """Log probabilities of curves as they are; float64 (n, C)."""
    device = next(network.parameters()).device
    lengths = _full_length(curves, items)
    out = np.full((len(items), curves.n_classes), np.nan)
    for length, rows in cut_by_length(lengths, batch_size):
        batch = pad_sequences(curves.values, curves.offsets, items[rows], length)
        x = torch.as_tensor(curves.standardised(batch["x"], batch["mask"])).to(device)
        logits = network(x, torch.as_tensor(batch["mask"]).to(device))
        out[rows] = log_softmax(logits.float().cpu().numpy())
    return out


def stopping_score(label: np.ndarray, prob: np.ndarray) -> float:
    """Macro-AUPRC over the classes with at least five objects (fewer make it a lottery), else over all."""
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
    classes : tuple of str
    head_names : tuple of str
    """

    curves: Curves
    augmentation: Augmentation
    classes: tuple[str, ...]
    gamma: float = 2.0
    head_names: tuple[str, ...] = ("fc.", "norm.")
    score: str = "macro_auprc"
    _alpha: Tensor = field(init=False)

    def __post_init__(self) -> None:
        label, a = self.curves.label, self.augmentation
        repeats = class_repeats(label, self.curves.n_classes, a.repeat)
        seen = np.bincount(label, repeats, self.curves.n_classes)
        self._alpha = inverse_sqrt_weights(torch.as_tensor(seen))

    def batches(self, rng: np.random.Generator, batch_size: int) -> Iterator[Batch]:
        """See `trainer.Task`."""
        return curve_batches(self.curves, self.augmentation, rng, batch_size)

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """See `trainer.Task`."""
        logits = network(batch["x"], batch["mask"])
        return focal_loss(
            logits.float(), batch["label"], gamma=self.gamma, alpha=self._alpha.to(logits.device)
        )

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """See `trainer.Task`."""
        scores, values = [], []
        for items, label in self.curves.validation:
            prob = np.exp(predict_curves(network, self.curves, items))
            scores.append(stopping_score(label, prob))
            values.append(measures(label, prob, self.classes))
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
        for length, rows in cut_by_length(_full_length(self.curves, items), PREDICT_BATCH):
            raw = pad_sequences(self.curves.values, self.curves.offsets, items[rows], length)
            batch = self._hide(
                {"x": self.curves.standardised(raw["x"], raw["mask"]), "mask": raw["mask"]}, rng
            )
            tensors = {k: torch.as_tensor(v).to(device) for k, v in batch.items()}
            total += float(self.loss(network, tensors)) * len(rows)
            count += len(rows)
        return {self.score: -total / max(count, 1)}

    def head(self) -> tuple[str, ...]:
        """See `trainer.Task`."""
        return ("head_",)
