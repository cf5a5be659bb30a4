"""The training loop: epochs, early stop, checkpoints.

A training's folder::

    OUT/checkpoint-<stage>.pt    weights, averaged weights, optimiser, epoch, best weights, history
    OUT/metrics-<stage>.jsonl    a line an epoch
    OUT/curves-<stage>.png       loss and validation measures by epoch
    OUT/split.parquet            objectId, object_key, class, part
    OUT/training.json            what was asked for, the data's digest, the result

All random numbers of an epoch follow from the seed and the epoch's number, and checkpoints are written at the
end of an epoch, beside the old one and then renamed: a training that is killed at any moment and started
again ends with the same weights, bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

import copy
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from applecider_batch.digest import json_digest
from applecider_batch.errors import InternalError, UserError
from applecider_batch.logs import Progress, get_logger
from applecider_batch.storage import Store
from applecider_batch.training.curves import training_curves

Batch = dict[str, np.ndarray]
_log = get_logger(__name__)


@dataclass(frozen=True)
class TrainerOptions:
    """How to train.

    Attributes
    ----------
    epochs : int
        At most.
    batch_size : int
    learning_rate : float
        Peak.
    head_learning_rate : float or None
        Of the parameters that the task calls its head; None: as the rest.
    head_epochs : int
        First so many epochs train the head alone, at ten times its rate (gradual unfreezing).
    weight_decay : float
    warmup_epochs : float
        Linear from 0.
    cosine : bool
        Half a cosine from the peak to 1 % of it over all epochs; else constant.
    ema : float
        Decay of the averaged weights that are evaluated and kept; 0 keeps the weights themselves.
    patience : int
        Stop after so many epochs without a better score.
    clip : float
        Largest norm of the gradient.
    seed : int
    device : str
        ``cpu`` or ``cuda``; mixed precision (bfloat16) on the latter.
    threads : int
        CPU threads; part of the result, because it decides the order of sums.
    """

    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-4
    head_learning_rate: float | None = None
    head_epochs: int = 0
    weight_decay: float = 1e-2
    warmup_epochs: float = 0.0
    cosine: bool = False
    ema: float = 0.0
    patience: int = 12
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.threads < 1 or self.patience < 1:
            raise UserError("epochs, batch size, threads and patience must be at least 1.")
        if not 0 <= self.ema < 1:
            raise UserError(f"The decay of averaged weights must lie in [0, 1); given {self.ema}.")


class RowBatches:
    """The batches of an epoch, made when they are wanted; their number is known before.

    Parameters
    ----------
    rows : ndarray of int64, shape (n,)
        In the order of the epoch.
    batch_size : int
    make : callable, rows -> Batch
    """

    def __init__(self, rows: np.ndarray, batch_size: int, make: Callable[[np.ndarray], Batch]) -> None:
        self._rows, self._size, self._make = rows, batch_size, make

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._size):
            yield self._make(self._rows[start : start + self._size])


class Task(Protocol):
    """What is trained: batches, loss, evaluation."""

    score: str

    def batches(self, rng: np.random.Generator, batch_size: int) -> Iterable[Batch]:
        """The batches of an epoch; all randomness from ``rng``. One with a length is not held in memory."""

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar loss of a batch on the network's device."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Measures on the validation part, ``score`` (higher is better) among them."""

    def head(self) -> tuple[str, ...]:
        """Beginnings of the names of the head's parameters."""


@dataclass
class Trained:
    """Result of a stage.

    Attributes
    ----------
    state : dict of str to Tensor
        Weights of the best epoch.
    best_epoch : int
        From 1.
    best : dict
        Measures of that epoch.
    history : list of dict
        A record an epoch.
    """

    state: dict[str, Tensor]
    best_epoch: int
    best: dict[str, float]
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    network: nn.Module,
    task: Task,
    options: TrainerOptions,
    store: Store,
    *,
    stage: str = "train",
    identity: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Trained:
    """Train a network, or go on where a killed training stood.

    Parameters
    ----------
    network : nn.Module
        With its initial weights; changed.
    task : Task
    options : TrainerOptions
    store : Store
        Folder of the training.
    stage : str
        Name in the folder's files.
    identity : mapping, optional
        What else decides the result (data, network); a checkpoint of another identity is refused.
    progress : bool

    Returns
    -------
    Trained

    Raises
    ------
    UserError
        If the folder holds another training, or the loss is not finite.
    """
    return _Loop(network, task, options, store, stage, dict(identity or {})).run(progress)


def defined(measures: Mapping[str, float]) -> dict[str, float]:
    """Without those that are not a number, such as an AUC where one class alone validates."""
    return {name: value for name, value in measures.items() if math.isfinite(value)}


def checkpoint_name(stage: str = "train") -> str:
    """Name of a stage's checkpoint in the training's folder."""
    return f"checkpoint-{stage}.pt"


class _Loop:
    def __init__(
        self,
        network: nn.Module,
        task: Task,
        options: TrainerOptions,
        store: Store,
        stage: str,
        identity: dict[str, Any],
    ) -> None:
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"The device '{options.device}' was asked for, but no CUDA device is here.")
        torch.set_num_threads(options.threads)
        self.task, self.options, self.store, self.stage = task, options, store, stage
        self.identity = json_digest({**identity, "options": {**options.__dict__}})
        self.device = torch.device(options.device)
        self.network = network.to(self.device)
        self.average = copy.deepcopy(self.network).eval() if options.ema else None
        self.optimiser = torch.optim.AdamW(self._groups(), lr=0.0, weight_decay=options.weight_decay)
        self.epoch, self.steps = 0, 0
        self.best: dict[str, float] = {}
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []

    def _groups(self) -> list[dict[str, Any]]:
        heads = self.task.head()
        named = [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        head = [p for n, p in named if heads and n.startswith(heads)]
        body = [p for n, p in named if not (heads and n.startswith(heads))]
        return [{"params": ps, "name": n} for n, ps in (("body", body), ("head", head)) if ps]

    @property
    def _file(self) -> str:
        return checkpoint_name(self.stage)

    def run(self, progress: bool) -> Trained:
        self._resume()
        if self.epoch:
            _log.info("Going on with '%s' after epoch %d.", self.stage, self.epoch)
        with Progress(self.stage, self.options.epochs, unit="epochs", enabled=progress) as bar:
            bar.already(self.epoch)
            while self.epoch < self.options.epochs and not self._stopped():
                record = self._epoch()
                self._save()
                bar.update(
                    1, loss=f"{record['loss']:.4f}", **{self.task.score: f"{record[self.task.score]:.4f}"}
                )
        return Trained(self.best_state, self.best_epoch, self.best, self.history)

    def _stopped(self) -> bool:
        return self.epoch - self.best_epoch >= self.options.patience and self.epoch > self.options.head_epochs

    def _epoch(self) -> dict[str, Any]:
        began = time.monotonic()
        seed = int(json_digest([self.options.seed, self.stage, self.epoch])[:15], 16)
        torch.manual_seed(seed)
        self.network.train()
        batches = self.task.batches(np.random.default_rng(seed), self.options.batch_size)
        if not isinstance(batches, Sized):
            batches = list(batches)
        total, count = 0.0, 0
        for number, batch in enumerate(batches):
            size = len(next(iter(batch.values())))
            total += self._step(batch, self.epoch + number / len(batches)) * size
            count += size
        if not (count and math.isfinite(total)):
            raise UserError(
                f"The loss of epoch {self.epoch + 1} is not finite or there was nothing to train on.",
                hint="Lower the learning rate, or look at the data.",
            )
        self.epoch += 1
        judged = self.average if self.average is not None else self.network
        judged.eval()
        with torch.inference_mode():
            measures = defined(self.task.evaluate(judged))
        if self.task.score not in measures:
            name = self.task.score.replace("_", " ")
            raise UserError(
                f"Validation has no {name}: too few objects or classes validate.",
                hint="Give more objects, or a larger --validation.",
            )
        score = measures[self.task.score]
        if not self.best or score > self.best[self.task.score]:
            self.best, self.best_epoch = dict(measures), self.epoch
            self.best_state = {k: v.detach().cpu().clone() for k, v in judged.state_dict().items()}
        seconds = round(time.monotonic() - began, 3)
        rates = {f"learning_rate_{g['name']}": g["lr"] for g in self.optimiser.param_groups}
        record = {"epoch": self.epoch, "loss": total / count, **measures, **rates, "seconds": seconds}
        self.history.append(record)
        return record

    def _step(self, batch: Batch, epoch: float) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(group["name"], epoch)
        tensors = {k: torch.as_tensor(v).to(self.device) for k, v in batch.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.task.loss(self.network, tensors)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
        self.optimiser.step()
        self.steps += 1
        if self.average is not None:
            self._update_average()
        return float(loss.detach())

    def _rate(self, group: str, epoch: float) -> float:
        o = self.options
        peak = o.head_learning_rate if group == "head" and o.head_learning_rate else o.learning_rate
        if epoch < o.head_epochs:
            return 10 * peak if group == "head" else 0.0
        epoch -= o.head_epochs
        if epoch < o.warmup_epochs:
            return peak * max(epoch, 0.01) / o.warmup_epochs
        if not o.cosine:
            return peak
        share = (epoch - o.warmup_epochs) / max(o.epochs - o.head_epochs - o.warmup_epochs, 1e-9)
        return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))

    def _update_average(self) -> None:
        assert self.average is not None
        # Young averages follow quickly: the initial weights must not linger in a short training.
        decay = min(self.options.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
            for mean, now in zip(self.average.buffers(), self.network.buffers(), strict=True):
                mean.copy_(now)

    def _save(self) -> None:
        out = io.BytesIO()
        torch.save(
            {
                "identity": self.identity,
                "epoch": self.epoch,
                "steps": self.steps,
                "network": self.network.state_dict(),
                "average": self.average.state_dict() if self.average is not None else {},
                "optimiser": self.optimiser.state_dict(),
                "best": self.best,
                "best_epoch": self.best_epoch,
                "best_state": self.best_state,
                "history": json.dumps(self.history),
            },
            out,
        )
        self.store.write_atomic(self._file, out.getvalue())
        lines = "".join(json.dumps(r) + "\n" for r in self.history)
        self.store.write_atomic(f"metrics-{self.stage}.jsonl", lines.encode())
        self.store.write_atomic(f"curves-{self.stage}.png", training_curves(self.history, self.task.score))

    def _resume(self) -> None:
        if not self.store.exists(self._file):
            return
        data = io.BytesIO(self.store.read_bytes(self._file))
        saved = torch.load(data, map_location=self.device, weights_only=True)
        if saved["identity"] != self.identity:
            raise UserError(
                f"'{self.store.url}' holds a training with other data, network or options.",
                hint="Give another --out, or the options that it was started with.",
            )
        self.epoch, self.steps = saved["epoch"], saved["steps"]
        self.network.load_state_dict(saved["network"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.best, self.best_epoch = saved["best"], saved["best_epoch"]
        self.best_state = {k: v.cpu() for k, v in saved["best_state"].items()}
        self.history = json.loads(saved["history"])
        if len(self.history) != self.epoch:
            raise InternalError(f"'{self._file}' has {len(self.history)} records of {self.epoch} epochs.")
