"""``train spectra``: SpectraNet or ResNet-1D from the labelled spectra of an archive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from applecider_batch.archive.read import Archive
from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.models import build_network
from applecider_batch.models.manifest import refuse_packaged
from applecider_batch.models.model_set import ModelSet, NetworkEntry
from applecider_batch.models.resnet1d import ResNet1d
from applecider_batch.storage import Store
from applecider_batch.training.dataset import count_parts
from applecider_batch.training.finish import finish, write_split
from applecider_batch.training.labels import LabelTable
from applecider_batch.training.losses import class_balanced_weights, focal_loss
from applecider_batch.training.metrics import measures
from applecider_batch.training.setup import TrainingRequest, data_record
from applecider_batch.training.spectra_data import SpectraSet, load_spectra, log_step
from applecider_batch.training.spectra_vary import SpectraAugmentation, vary_spectra
from applecider_batch.training.splits import PARTS, SplitRule
from applecider_batch.training.trainer import Batch, Trained, TrainerOptions, train

PROFILE = "paper"
_PREDICT_BATCH = 64


@dataclass(frozen=True)
class SpectraPreset:
    """Network, its size, and how it is trained.

    Attributes
    ----------
    config : dict
        Of the network.
    options : TrainerOptions
    augmentation : SpectraAugmentation
    network : str
    profile : str
        Of the network; its spectra must be those of the paper's profile.
    gamma : float
        Of the focal loss; 0 is cross entropy.
    balance : float or None
        beta of the class-balanced weights; None: all classes weigh the same.
    smoothing : float
        Of the labels.
    """

    config: dict[str, Any] = field(default_factory=dict)
    options: TrainerOptions = field(default_factory=TrainerOptions)
    augmentation: SpectraAugmentation = field(default_factory=SpectraAugmentation)
    network: str = "spectranet"
    profile: str = PROFILE
    gamma: float = 2.0
    balance: float | None = 0.999
    smoothing: float = 0.0


_RESNET = SpectraPreset(
    config={"members": 3},
    options=TrainerOptions(
        epochs=32,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.05,
        warmup_epochs=2,
        cosine=True,
        ema=0.99,
        patience=32,
        clip=2.0,
    ),
    augmentation=SpectraAugmentation(unknown=0.0, wrong=0.25),
    network="resnet1d",
    gamma=0.0,
    balance=None,
    smoothing=0.05,
)

#: By network and size.
PRESETS: dict[tuple[str, str], SpectraPreset] = {
    ("spectranet", "paper"): SpectraPreset(
        options=TrainerOptions(
            epochs=80, batch_size=32, learning_rate=3e-4, warmup_epochs=3, cosine=True, ema=0.995, patience=20
        )
    ),
    # Small kernels and widths: for a CPU.
    ("spectranet", "compact"): SpectraPreset(
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
    ("resnet1d", "paper"): replace(_RESNET, config={"members": 6, "blocks": 2}),
    ("resnet1d", "compact"): _RESNET,
}


def composite(label: np.ndarray, prob: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """Measures with the score that training stops by: 0.4 accuracy + 0.3 top-3 + 0.3 macro-F1."""
    found = measures(label, prob, classes)
    score = 0.4 * found["accuracy"] + 0.3 * found["top3"] + 0.3 * found["macro_f1"]
    names = ("accuracy", "top3", "macro_f1", "macro_auc", "balanced_accuracy", "nll")
    return {"composite": score, **{n: found[n] for n in names}}


def predict_spectra(network: nn.Module, flux: np.ndarray, batch_size: int = _PREDICT_BATCH) -> np.ndarray:
    """Log probabilities of spectra (n, n_points); float64 (n, C)."""
    return _predicted(lambda x: network(x[:, None]), network, flux, batch_size)


def _predicted(
    forward: Callable[[Tensor], Tensor], network: nn.Module, inputs: np.ndarray, batch_size: int
) -> np.ndarray:
    device = next(network.parameters()).device
    out = []
    with torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            x = torch.as_tensor(inputs[start : start + batch_size]).to(device)
            out.append(log_softmax(forward(x).float().cpu().numpy()))
    return np.concatenate(out)


class SpectraTask:
    """Varied spectra, (focal) cross entropy with class weights; early stop on the composite score.

    A ResNet-1D is trained on its own logarithmic bins, made once: nothing before them is learned.
    """

    score = "composite"

    def __init__(self, data: SpectraSet, preset: SpectraPreset, network: nn.Module) -> None:
        self.data, self.preset = data, preset
        self._train, self._validation = data.members("train"), data.members("validation")
        if len(np.unique(data.label[self._train])) < 2 or not len(self._validation):
            raise UserError(
                "There is too little to train on: at least two classes must train, and some spectra validate."
            )
        self._flux, self._unknown = data.flux, data.flux_unknown
        self._log_step = log_step(get_profile(PROFILE))
        if isinstance(network, ResNet1d):
            self._flux, self._unknown = _binned(network, data.flux), _binned(network, data.flux_unknown)
            self._log_step = network.config.log_step
            self._train = self._train[np.isfinite(data.redshift[self._train])]
        # An object with many spectra must not outweigh one with a single one.
        _, inverse, counts = np.unique(data.group[self._train], return_inverse=True, return_counts=True)
        self._share = 1.0 / np.sqrt(counts[inverse])
        counted = torch.as_tensor(np.bincount(data.label[self._train], self._share, len(data.classes)))
        if preset.balance is None:
            self._alpha = torch.ones(len(counted))
        else:
            self._alpha = class_balanced_weights(counted.round(), preset.balance)

    def batches(self, rng: np.random.Generator, batch_size: int) -> Iterator[Batch]:
        """See `trainer.Task`."""
        n, augmentation = len(self._train), self.preset.augmentation
        order = self._train[rng.choice(n, n, p=self._share / self._share.sum())]
        for start in range(0, n - n % batch_size or n, batch_size):
            rows = order[start : start + batch_size]
            unknown = rng.random(len(rows)) < augmentation.unknown
            unknown &= (self._unknown[rows] != 0).any(1)
            flux = np.where(unknown[:, None], self._unknown[rows], self._flux[rows])
            x, wrong = vary_spectra(flux, augmentation, rng, self._log_step)
            yield {"x": x, "label": np.where(wrong, len(self.data.classes), self.data.label[rows])}

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """See `trainer.Task`; every member of an ensemble has its own."""
        x = batch["x"]
        members = network.member_outputs(x)[0] if isinstance(network, ResNet1d) else network(x[:, None])[None]
        if self.preset.augmentation.wrong:
            # A further class, the wrong redshift, whose logit is 0: the others become odds against it.
            members = F.pad(members, (0, 1))
        losses = [
            focal_loss(
                logits.float(),
                batch["label"],
                gamma=self.preset.gamma,
                alpha=F.pad(self._alpha, (0, logits.shape[1] - len(self._alpha)), value=1.0).to(
                    logits.device
                ),
                label_smoothing=self.preset.smoothing,
            )
            for logits in members
        ]
        return torch.stack(losses).sum()

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """See `trainer.Task`."""
        rows = self._validation
        if isinstance(network, ResNet1d):
            log_p = _predicted(lambda x: network.from_bins(x)[0], network, self._flux[rows], _PREDICT_BATCH)
        else:
            log_p = predict_spectra(network, self._flux[rows])
        return composite(self.data.label[rows], np.exp(log_p), self.data.classes)

    def head(self) -> tuple[str, ...]:
        """See `trainer.Task`."""
        return ()


def _binned(network: ResNet1d, flux: np.ndarray) -> np.ndarray:
    """Spectra in the network's bins; float32 (n, n_bins)."""
    with torch.inference_mode():
        pieces = [
            network.binned(torch.as_tensor(flux[start : start + 512, None]))
            for start in range(0, len(flux), 512)
        ]
    return torch.cat(pieces).numpy()


def fit_spectra(
    data: SpectraSet,
    store: Store,
    preset: SpectraPreset,
    *,
    start: NetworkEntry | None = None,
    progress: bool = False,
) -> Trained:
    """Train on spectra that are split, from the weights of another network if one is given."""
    config = {**preset.config, "n_classes": len(data.classes)}
    identity: dict[str, Any] = {
        "config": config,
        "network": preset.network,
        "preset": {k: v for k, v in asdict(preset).items() if k not in ("config", "options", "network")},
        "data": json_digest([data.spec_id.tolist(), data.label.tolist(), data.part.tolist()]),
    }
    torch.manual_seed(preset.options.seed)
    network = build_network(preset.profile, preset.network, **config)
    if start is not None:
        _check_start(start, preset, config, data.classes)
        network.load_state_dict(start.state_dict())
        identity["start"] = start.card.weights_sha256
    task = SpectraTask(data, preset, network)
    return train(network, task, preset.options, store, identity=identity, progress=progress)


def _check_start(
    start: NetworkEntry, preset: SpectraPreset, config: Mapping[str, Any], classes: tuple[str, ...]
) -> None:
    """Raise UserError unless a network can go on from these weights."""
    card = start.card
    if (card.network, dict(card.config), card.class_order) != (preset.network, dict(config), classes):
        raise UserError(
            f"The training cannot start from '{card.name}' of '{start.store.url}', a {card.network} with "
            f"{dict(card.config)} and the classes {', '.join(card.class_order)}; asked for is a "
            f"{preset.network} with {dict(config)} and {', '.join(classes)}.",
            hint="Ask for the same --network, --preset and --classes.",
        )


def train_spectra(
    request: TrainingRequest,
    *,
    network: str = "spectranet",
    class_set: str = "ten",
    start: str | None = None,
) -> dict[str, Any]:
    """Train a network of spectra and put it into a model set.

    Parameters
    ----------
    request : TrainingRequest
    network : {"spectranet", "resnet1d"}
    class_set : {"ten", "five"}
        Classes of the network's outputs; ten are summed to five when it is used.
    start : str, optional
        Model set whose network of spectra in use gives the first weights; what trained it counts as what
        trains this one.

    Returns
    -------
    dict
        Summary, JSON-ready.

    Raises
    ------
    UserError
        For options or data that cannot be used.
    """
    refuse_packaged(request.models)
    if (network, request.preset) not in PRESETS:
        known = ", ".join(f"{n} {p}" for n, p in PRESETS)
        raise UserError(f"There is no preset '{request.preset}' of a network '{network}'; there are {known}.")
    chosen = PRESETS[network, request.preset]
    chosen = replace(chosen, options=request.options(chosen.options))
    store, (opened, table) = Store(request.out), request.open(class_set)
    data = load_spectra(opened, table, get_profile(PROFILE)).split(request.split)
    first = None if start is None else ModelSet.load(start, check_weights=False).defaults.get("spectra")
    if start is not None and first is None:
        raise UserError(f"The model set '{start}' has no network of spectra to start from.")
    trained = fit_spectra(data, store, chosen, start=first, progress=request.progress)
    return finish_spectra(
        store,
        request.models,
        trained,
        chosen,
        data,
        opened,
        table,
        request.split,
        name=request.name,
        asked={
            "preset": request.preset,
            "class_set": class_set,
            "start": first and first.card.weights_sha256,
        },
        known=(first.training_ids() if first else None) or (),
    )


def finish_spectra(
    store: Store,
    models: str,
    trained: Trained,
    preset: SpectraPreset,
    data: SpectraSet,
    archive: Archive,
    labels: LabelTable,
    rule: SplitRule,
    *,
    name: str | None = None,
    asked: Mapping[str, Any] | None = None,
    known: Iterable[str] = (),
) -> dict[str, Any]:
    """Put a trained network of spectra into a model set; see `finish.finish`."""
    digest = write_split(store, spectra_split_table(data))
    return finish(
        store,
        models,
        trained,
        name=name or preset.network,
        profile=PROFILE,
        network=preset.network,
        modality="spectra",
        config={**preset.config, "n_classes": len(data.classes)},
        classes=data.classes,
        feature_names=(),
        normalisation={},
        data=data_record(
            archive,
            labels,
            rule,
            count_parts(data.part, data.label, data.classes),
            digest,
            spectra_left_out=data.left_out,
        ),
        asked={**(asked or {}), **asdict(preset.options)},
        metrics=trained.best,
        known=known,
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
