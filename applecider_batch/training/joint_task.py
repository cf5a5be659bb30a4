"""The networks of a model set trained together: loss on the fused probabilities plus the modalities' own.

Paper section 6 (arXiv:2507.16088): the fused vector is the class-wise mean of the probabilities of the
modalities that an object has; one that it lacks takes no part. Probabilities of other classes than the five
are summed, as when the set is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.features.prepared import Prepared
from applecider_batch.features.segments import take_ranges
from applecider_batch.inference.batches import pad_sequences, spectra_input
from applecider_batch.inference.calibration import FUSED
from applecider_batch.inference.fusion import MODALITIES
from applecider_batch.inference.marginal import REDSHIFT_SCALE
from applecider_batch.models.card import ModelCard, is_permutation
from applecider_batch.taxonomy import CLASSES
from applecider_batch.training.image_task import turned
from applecider_batch.training.losses import EXPERT_WEIGHT, expert_term, focal_loss, inverse_sqrt_weights
from applecider_batch.training.metrics import measures
from applecider_batch.training.photometry_task import class_repeats, stopping_score
from applecider_batch.training.splits import PARTS
from applecider_batch.training.stamp_cache import StampCache
from applecider_batch.training.trainer import Batch, RowBatches

PREDICT_BATCH = 64


@dataclass(frozen=True)
class JointExamples:
    """Objects at one horizon with what each modality has of them.

    Attributes
    ----------
    label : ndarray of int64, shape (n,)
    part : ndarray of int8, shape (n,)
    items : dict of modality -> ndarray of int64, shape (n,)
        Item of ``prepared``; -1 where the object has none.
    prepared : Prepared
    stamps : StampCache or None
        Of the image items.
    """

    label: np.ndarray
    part: np.ndarray
    items: dict[str, np.ndarray]
    prepared: Prepared
    stamps: StampCache | None

    def members(self, part: str) -> np.ndarray:
        """Positions of the objects of a part; int64."""
        return np.flatnonzero(self.part == PARTS.index(part))


class JointNetwork(nn.Module):
    """The networks of a set side by side.

    Parameters
    ----------
    networks : mapping of modality -> nn.Module
    cards : mapping of modality -> ModelCard
    """

    def __init__(self, networks: Mapping[str, nn.Module], cards: Mapping[str, ModelCard]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        for modality, card in cards.items():
            matrix = torch.tensor(card.class_map, dtype=torch.float32)  # (5, C)
            self.register_buffer(f"_map_{modality}", matrix, persistent=False)

    def train(self, mode: bool = True) -> JointNetwork:
        """As usual, but batch norms keep the statistics that they were trained with: batches are small."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Log probabilities of the five classes and the experts' weights.

        Parameters
        ----------
        batch : mapping
            As :func:`joint_batch` makes it.

        Returns
        -------
        log_prob : dict of modality -> Tensor (b_m, 5)
            Of the objects that have the modality, in order.
        experts : dict of modality -> Tensor (b_m, K)
            Of networks with experts.
        """
        log_prob, experts = {}, {}
        for modality, network in self.networks.items():
            if not len(batch[f"{modality}.rows"]):
                continue
            if modality == "image":
                latent = network.embed(batch["image.x"], batch["image.metadata"])
                logits, experts[modality] = network.classify_with_weights(latent)
            elif modality == "photometry":
                names = ("photometry.x", "photometry.mask", "photometry.summary")
                logits = network(*(batch[n] for n in names if n in batch))
            else:
                logits = network(batch["spectra.x"])
            five = self._five(modality, logits.float())
            if modality == "spectra":
                evidence = batch["spectra.log_prior"] + torch.logsumexp(logits.float(), dim=1)
                five = mean_over_trials(five, evidence, batch["spectra.trial_of"])
            log_prob[modality] = five
        return log_prob, experts

    def _five(self, modality: str, logits: Tensor) -> Tensor:
        """Differentiable form of `models.card.ModelCard.to_five`, as log probabilities."""
        matrix: Tensor = getattr(self, f"_map_{modality}")
        log_p = F.log_softmax(logits, dim=-1)
        if is_permutation(matrix.cpu().numpy()):
            return log_p[:, matrix.argmax(dim=1)]
        groups = [torch.logsumexp(log_p[:, row > 0], dim=1) for row in matrix]
        return F.log_softmax(torch.stack(groups, dim=1), dim=-1)


def mean_over_trials(log_prob: Tensor, evidence: Tensor, trial_of: Tensor) -> Tensor:
    """Differentiable form of `inference.marginal.marginalise`: (m, C), (m,), (m,) to (n, C)."""
    weighted = torch.cat([log_prob + evidence[:, None], evidence[:, None]], dim=1)  # (m, C + 1)
    where = trial_of[:, None].expand_as(weighted)
    size = (int(trial_of[-1]) + 1, weighted.shape[1])
    peak = weighted.new_full(size, -torch.inf).scatter_reduce(0, where, weighted.detach(), "amax")
    total = weighted.new_zeros(size).index_add(0, trial_of, (weighted - peak[trial_of]).exp()).log() + peak
    return total[:, :-1] - total[:, -1:]


def fuse_log_prob(log_prob: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Log of the class-wise mean probability over each object's modalities, (b, 5); differentiable.

    The same as `inference.fusion.fuse`.
    """
    size = len(batch["label"])
    some = next(iter(log_prob.values()))
    total = some.new_zeros(size, some.shape[1])
    count = some.new_zeros(size, 1)
    for modality, values in log_prob.items():
        rows = batch[f"{modality}.rows"]
        total = total.index_add(0, rows, values.exp())
        count = count.index_add(0, rows, torch.ones_like(values[:, :1]))
    return (total.clamp(min=torch.finfo(total.dtype).tiny) / count).log()


def joint_batch(
    examples: JointExamples,
    cards: Mapping[str, ModelCard],
    rows: np.ndarray,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Inputs of some objects; stamps are turned at random where ``rng`` is given.

    Returns
    -------
    dict
        ``label`` int64 (b,) and per modality ``<m>.rows`` int64 (b_m,), the objects in the batch that have
        it, with their inputs: ``photometry.x``, ``photometry.mask`` and where read ``photometry.summary``,
        ``image.x``, ``image.metadata``, ``spectra.x`` with ``spectra.log_prior`` and ``spectra.trial_of`` (a
        spectrum without a redshift has several rows).
    """
    out: Batch = {"label": examples.label[rows]}
    for modality, card in cards.items():
        items = examples.items[modality][rows]
        here = np.flatnonzero(items >= 0)
        items = items[here]
        out[f"{modality}.rows"] = here
        if not len(here):
            continue
        if modality == "photometry":
            inputs = examples.prepared.photometry
            length = int((inputs.offsets[items + 1] - inputs.offsets[items]).max())
            padded = pad_sequences(inputs.values, inputs.offsets, items, length)
            x = card.standardise_photometry(padded["x"])
            x[~padded["mask"]] = 0.0
            out |= {"photometry.x": x, "photometry.mask": padded["mask"]}
            if card.reads_summary:
                assert inputs.curve_summary is not None
                out["photometry.summary"] = card.standardise_summary(inputs.curve_summary.values[items])
        elif modality == "image":
            assert examples.stamps is not None
            images = examples.stamps.take(items)
            if rng is not None:
                images = turned(images, rng.integers(8, size=len(items)))
            metadata = card.standardise_metadata(examples.prepared.image.metadata[items])
            out |= {"image.x": images, "image.metadata": metadata}
        else:
            spectra = examples.prepared.spectra
            trials, offsets = take_ranges(spectra.offsets, items)
            out["spectra.x"] = spectra_input(spectra.flux[trials], card.picture_size)
            out["spectra.log_prior"] = (-spectra.redshift[trials] / REDSHIFT_SCALE).astype(np.float32)
            out["spectra.trial_of"] = np.repeat(np.arange(len(items)), np.diff(offsets))
    return out


@dataclass
class JointTask:
    """Focal loss on the fused vector plus that of each modality, and eq. 3's term where there are experts.

    Attributes
    ----------
    examples : JointExamples
    cards : dict of modality -> ModelCard
    gamma : float
    repeat : int
        A rare class is drawn at most so often in an epoch.
    """

    examples: JointExamples
    cards: dict[str, ModelCard]
    gamma: float = 2.0
    repeat: int = 4
    score: str = "macro_auprc"
    _rows: np.ndarray = field(init=False)
    _alpha: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rows = self.examples.members("train")
        label = self.examples.label[rows]
        self._rows = np.repeat(rows, class_repeats(label, len(CLASSES), self.repeat))
        counts = np.bincount(self.examples.label[self._rows], minlength=len(CLASSES))
        self._alpha = inverse_sqrt_weights(torch.as_tensor(counts))

    def batches(self, rng: np.random.Generator, batch_size: int) -> RowBatches:
        """See `trainer.Task`."""
        rows = rng.permutation(self._rows)
        return RowBatches(rows, batch_size, lambda some: joint_batch(self.examples, self.cards, some, rng))

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """See `trainer.Task`."""
        log_prob, experts = network(batch)
        alpha = self._alpha.to(batch["label"].device)
        fused = fuse_log_prob(log_prob, batch)
        # Log probabilities are their own logits: their softmax is the probabilities.
        total = focal_loss(fused, batch["label"], gamma=self.gamma, alpha=alpha)
        for modality, values in log_prob.items():
            label = batch["label"][batch[f"{modality}.rows"]]
            total = total + focal_loss(values, label, gamma=self.gamma, alpha=alpha)
            if modality in experts:
                total = total + EXPERT_WEIGHT * expert_term(experts[modality].float(), label)
        return total

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """See `trainer.Task`."""
        rows = self.examples.members("validation")
        found = predict_joint(network, self.examples, self.cards, rows)
        out = {}
        for what, log_prob in found.items():
            there = np.isfinite(log_prob).all(1)
            if not there.any():
                continue
            label, prob = self.examples.label[rows[there]], np.exp(log_prob[there])
            values = measures(label, prob, CLASSES)
            names = ("macro_auc", "balanced_accuracy", "nll")
            suffix = "" if what == FUSED else f" {what}"
            out[f"{self.score}{suffix}"] = stopping_score(label, prob)
            out |= {f"{name}{suffix}": values[name] for name in names}
        return out

    def head(self) -> tuple[str, ...]:
        """See `trainer.Task`."""
        return ()


def predict_joint(
    network: nn.Module, examples: JointExamples, cards: Mapping[str, ModelCard], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Log probabilities float64 (n, 5) by modality and fused; NaN where an object lacks the modality."""
    device = next(network.parameters()).device
    out = {
        m: np.full((len(rows), len(CLASSES)), np.nan) for m in (*MODALITIES, FUSED) if m in (*cards, FUSED)
    }
    for start in range(0, len(rows), PREDICT_BATCH):
        batch = joint_batch(examples, cards, rows[start : start + PREDICT_BATCH])
        tensors = {k: torch.as_tensor(v).to(device) for k, v in batch.items()}
        log_prob, _ = network(tensors)
        out[FUSED][start : start + PREDICT_BATCH] = fuse_log_prob(log_prob, tensors).double().cpu().numpy()
        for modality, values in log_prob.items():
            out[modality][start + batch[f"{modality}.rows"]] = values.double().cpu().numpy()
    return out
