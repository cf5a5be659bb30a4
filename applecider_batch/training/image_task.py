"""Image examples and the task of training AstroMiNN.

An example is a packet as inference would draw it: the latest eligible one with three decodable stamps at the
moment that it was sent, with the metadata known then. All packets of an object up to the horizon are
examples; an epoch takes a few of each object, so that an object with many alerts does not outweigh the rest.

A stamp is turned and mirrored at random. This changes neither the metadata (ra, dec and distances do not know
how a stamp lies) nor the radial channel, which is the same in all eight positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from applecider_batch.archive.read import Archive
from applecider_batch.features.prepared import ImageInputs
from applecider_batch.features.profiles import Profile
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.models.card import ModelCard, Statistics
from applecider_batch.models.seeding import METADATA_CLIP
from applecider_batch.training.dataset import Dataset, load_alerts
from applecider_batch.training.losses import EXPERT_WEIGHT, expert_focal_loss, inverse_sqrt_weights
from applecider_batch.training.metrics import measures
from applecider_batch.training.photometry_task import class_repeats, stopping_score
from applecider_batch.training.splits import PARTS
from applecider_batch.training.stamp_cache import StampCache, build_cache
from applecider_batch.training.trainer import Batch, RowBatches

PREDICT_BATCH = 256
VALIDATION_DAYS = (10.0, 30.0, 100.0)
ANGLES = ("ra", "dec")
#: Age by a history of 30 days, of an object that was seen every few nights before.
OWN_HISTORY_DAYS = (26.0, 30.0)


@dataclass(frozen=True)
class ImageAugmentation:
    """How an epoch's images are drawn and varied.

    Attributes
    ----------
    turn : bool
        Mirror and turn by multiples of 90 degrees.
    hide : float
        Share of metadata values that are shown as missing.
    cut : float
        Share of packets whose age is shown as their own history of 30 days would say it: an archive of some
        nights knows no more.
    sky : bool
        Give a packet the place (ra, dec) of another one of its batch: places name the training objects, and
        say nothing else that another survey's would.
    per_object : int
        At most so many packets of an object in an epoch.
    repeat : int
        A rare class is drawn at most so often in an epoch.
    """

    turn: bool = True
    hide: float = 0.02
    cut: float = 0.5
    sky: bool = True
    per_object: int = 8
    repeat: int = 4


@dataclass(frozen=True)
class ImageExamples:
    """Packets of the training and validation objects.

    Attributes
    ----------
    classes, feature_names : tuple of str
    candid, label : ndarray of int64, shape (n,)
    object_id : ndarray of str, shape (n,)
    part : ndarray of int8, shape (n,)
    days : ndarray of float64, shape (n,)
        Since t0.
    metadata : ndarray of float32, shape (n, F)
        Raw; missing is the profile's value.
    missing_value : float
    stamps : StampCache
        Of the n packets.
    """

    classes: tuple[str, ...]
    feature_names: tuple[str, ...]
    candid: np.ndarray
    label: np.ndarray
    object_id: np.ndarray
    part: np.ndarray
    days: np.ndarray
    metadata: np.ndarray
    missing_value: float
    stamps: StampCache

    def members(self, part: str) -> np.ndarray:
        """Usable packets of a part; int64."""
        return np.flatnonzero((self.part == PARTS.index(part)) & self.stamps.usable)

    def latest(self, part: str, days: float) -> np.ndarray:
        """The packet that inference draws of each object of a part at a horizon; int64, objects without one
        left out."""
        rows = self.members(part)
        rows = rows[self.days[rows] <= days]
        order = rows[np.lexsort((self.days[rows], self.object_id[rows].astype(str)))]
        last = np.append(self.object_id[order][1:] != self.object_id[order][:-1], True)[: len(order)]
        return order[last]


def load_examples(
    archive: Archive, dataset: Dataset, profile: Profile, folder: Path, max_days: float
) -> ImageExamples:
    """The packets of a split data set's training and validation objects, their stamps cached in a folder."""
    alerts = load_alerts(archive, dataset, profile, max_days=max_days, modalities=("image",))
    items = alerts.items("image")[:, 0]
    rows = np.flatnonzero(
        (items >= 0) & np.isin(alerts.part, [PARTS.index("train"), PARTS.index("validation")])
    )
    # One example a packet: an alert without stamps would show the one before it again.
    item, first = np.unique(items[rows], return_index=True)
    rows = rows[first]
    source = alerts.prepared.image
    image = ImageInputs(
        source.candid[item], source.hash64[item], source.metadata[item], np.empty(0, np.int32)
    )
    return ImageExamples(
        classes=dataset.classes,
        feature_names=profile.metadata_names,
        candid=image.candid,
        label=alerts.label[rows],
        object_id=alerts.object_id[rows],
        part=alerts.part[rows],
        days=alerts.days()[rows, 0],
        metadata=image.metadata,
        missing_value=profile.missing_value,
        stamps=build_cache(folder, archive, image, profile),
    )


def metadata_statistics(examples: ImageExamples) -> Statistics:
    """Mean and standard deviation of the training packets' metadata where they are given; angles are left."""
    values = examples.metadata[examples.members("train")].astype(np.float64)
    given = values != examples.missing_value
    mean: list[float | None] = []
    std: list[float | None] = []
    for column, name in enumerate(examples.feature_names):
        known = values[given[:, column], column]
        angle = name in ANGLES
        mean.append(None if angle else float(known.mean()) if len(known) else 0.0)
        spread = float(known.std()) if len(known) else 0.0
        std.append(None if angle else spread if spread > 1e-6 else 1.0)
    return Statistics(tuple(mean), tuple(std), clip=METADATA_CLIP)


def turned(images: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Images in one of the eight positions of a square.

    Parameters
    ----------
    images : ndarray, shape (b, C, S, S)
    position : ndarray of int, shape (b,)
        0 to 7: quarter turns, and from 4 on mirrored first.
    """
    out = np.empty_like(images)
    for number in np.unique(position):
        here = np.flatnonzero(position == number)
        part = images[here, :, :, ::-1] if number >= 4 else images[here]
        out[here] = np.rot90(part, int(number) % 4, axes=(2, 3))
    return out


def image_batch(
    examples: ImageExamples,
    card: ModelCard,
    a: ImageAugmentation,
    rows: np.ndarray,
    rng: np.random.Generator,
) -> Batch:
    """Inputs of some packets, varied: ``image`` (b, C, S, S), ``metadata`` (b, F) standardised, ``label``."""
    images = examples.stamps.take(rows)
    if a.turn:
        images = turned(images, rng.integers(8, size=len(rows)))
    metadata = examples.metadata[rows].copy()
    columns = {name: i for i, name in enumerate(examples.feature_names)}
    angles = [columns[name] for name in ANGLES if name in columns]
    hidden = rng.random(metadata.shape) < a.hide
    hidden[:, angles] = False
    metadata[hidden] = examples.missing_value
    if "age" in columns:
        shown = np.where(rng.random(len(rows)) < a.cut, rng.uniform(*OWN_HISTORY_DAYS, len(rows)), np.inf)
        metadata[:, columns["age"]] = np.minimum(metadata[:, columns["age"]], shown)
    if a.sky:
        metadata[:, angles] = metadata[rng.permutation(len(rows))][:, angles]
    return {
        "image": images,
        "metadata": card.standardise_metadata(metadata),
        "label": examples.label[rows],
    }


def draw(examples: ImageExamples, a: ImageAugmentation, rng: np.random.Generator) -> np.ndarray:
    """Training packets of an epoch: up to ``per_object`` of each object, rare classes several times."""
    rows = examples.members("train")
    objects, owner = np.unique(examples.object_id[rows].astype(str), return_inverse=True)
    label = np.empty(len(objects), np.int64)
    label[owner] = examples.label[rows]
    repeats = class_repeats(label, len(examples.classes), a.repeat)[owner]
    drawn = []
    for time in range(int(repeats.max(initial=0))):
        order = rng.permutation(len(rows))
        order = order[np.argsort(owner[order], kind="stable")]
        starts = np.searchsorted(owner[order], np.arange(len(objects)))
        rank = np.arange(len(order)) - starts[owner[order]]
        drawn.append(rows[order[(rank < a.per_object) & (repeats[order] > time)]])
    return np.concatenate([np.empty(0, np.int64), *drawn])


def predict_images(
    network: nn.Module, card: ModelCard, examples: ImageExamples, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities (n, C) and the experts' weights after the choice (n, K) of packets; float64."""
    device = next(network.parameters()).device
    log_prob, used = [], []
    for start in range(0, len(rows), PREDICT_BATCH):
        here = rows[start : start + PREDICT_BATCH]
        images = torch.as_tensor(examples.stamps.take(here)).to(device)
        metadata = torch.as_tensor(card.standardise_metadata(examples.metadata[here])).to(device)
        latent = network.embed(images, metadata)
        log_prob.append(log_softmax(network.classify(latent).float().cpu().numpy()))
        used.append(network.router_weights(latent)[1].double().cpu().numpy())
    return np.concatenate(log_prob), np.concatenate(used)


def load_report(used: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """How the work is shared: mean weight of each expert, their evenness (1: all alike), and the share of
    examples whose strongest expert is the one meant for their class."""
    n_experts = used.shape[1]
    share = used.mean(0) / max(float(used.mean(0).sum()), 1e-12)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum()
    meant = (used.argmax(1) == label % n_experts).mean()
    shares = {f"expert_{k}": float(value) for k, value in enumerate(share)}
    return {**shares, "expert_evenness": float(entropy / np.log(n_experts)), "expert_as_meant": float(meant)}


@dataclass
class ImageTask:
    """Focal loss and the experts' specialisation (arXiv:2507.16088, eq. 3); stop on macro-AUPRC.

    Attributes
    ----------
    examples : ImageExamples
    card : ModelCard
        For the standardisation of metadata.
    augmentation : ImageAugmentation
    gamma, expert_weight : float
        Of the focal loss; lambda of the experts' term.
    """

    examples: ImageExamples
    card: ModelCard
    augmentation: ImageAugmentation = field(default_factory=ImageAugmentation)
    gamma: float = 2.5
    expert_weight: float = EXPERT_WEIGHT
    score: str = "macro_auprc"
    _alpha: Tensor = field(init=False)

    def __post_init__(self) -> None:
        seen = draw(self.examples, self.augmentation, np.random.default_rng(0))
        counts = np.bincount(self.examples.label[seen], minlength=len(self.examples.classes))
        self._alpha = inverse_sqrt_weights(torch.as_tensor(counts))

    def batches(self, rng: np.random.Generator, batch_size: int) -> RowBatches:
        """See `trainer.Task`."""
        rows = rng.permutation(draw(self.examples, self.augmentation, rng))
        what = self.examples, self.card, self.augmentation
        return RowBatches(rows, batch_size, lambda chosen: image_batch(*what, chosen, rng))

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """See `trainer.Task`."""
        logits, weights = network.classify_with_weights(network.embed(batch["image"], batch["metadata"]))
        return expert_focal_loss(
            logits.float(),
            batch["label"],
            weights.float(),
            gamma=self.gamma,
            alpha=self._alpha.to(logits.device),
            expert_weight=self.expert_weight,
        )

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """See `trainer.Task`."""
        examples = self.examples
        drawn = [examples.latest("validation", days) for days in VALIDATION_DAYS]
        rows = np.unique(np.concatenate(drawn))
        log_prob, used = predict_images(network, self.card, examples, rows)
        scores, values = [], []
        for latest in drawn:
            if not len(latest):
                continue
            label, prob = examples.label[latest], np.exp(log_prob[np.searchsorted(rows, latest)])
            scores.append(stopping_score(label, prob))
            values.append(measures(label, prob, examples.classes))
        names = ("macro_auc", "balanced_accuracy", "nll")
        means = {n: float(np.mean([v[n] for v in values])) for n in names}
        return {self.score: float(np.mean(scores)), **means, **load_report(used, examples.label[rows])}

    def head(self) -> tuple[str, ...]:
        """See `trainer.Task`."""
        return ("fusion_experts.", "fusion_router.")
