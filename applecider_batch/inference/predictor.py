"""A network (or several of one modality) on a device, from a raw batch to five-class logits and latents.

A predictor is the same object in the serial executor and inside a model actor; it knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.inference.batches import Batch
from applecider_batch.inference.fusion import fuse, log_softmax
from applecider_batch.logs import get_logger

if TYPE_CHECKING:
    import torch

DTYPES: tuple[str, ...] = ("float32", "float16", "bfloat16")
DEVICES: tuple[str, ...] = ("cpu", "cuda")
STANDARDISED_CHANNELS = 4
N_CLASSES = 5

_log = get_logger(__name__)


class Predictor:
    """All networks of one modality, on one device.

    Parameters
    ----------
    entries : NetworkEntry or sequence of NetworkEntry
        Several networks of a modality are an ensemble: probabilities averaged, latent of the first.
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    dtype : str
        ``float32``, ``float16`` or ``bfloat16`` (the latter two through autocast).
    threads : int
        Threads of this process's CPU kernels; part of a run's identity, because it decides the order of sums.

    Raises
    ------
    UserError
        If the device or the dtype is not one of the above, or the device is not there.
    """

    def __init__(self, entries: Any, *, device: str = "cpu", dtype: str = "float32", threads: int = 1) -> None:
        import torch

        if dtype not in DTYPES:
            raise UserError(f"Unknown dtype '{dtype}'; allowed are {', '.join(DTYPES)}.")
        if device.split(":")[0] not in DEVICES:
            raise UserError(f"Unknown device '{device}'; allowed are {', '.join(DEVICES)}.")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"The device '{device}' was asked for, but no CUDA device is here.", hint="Use cpu.")
        torch.set_num_threads(threads)
        if device.startswith("cuda"):
            # Equal inputs, equal rows: no autotuning between kernels, no TF32 in a float32 run.
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.device, self.dtype = torch.device(device), dtype
        listed: Sequence[Any] = entries if isinstance(entries, list | tuple) else [entries]
        if not listed:
            raise UserError("A predictor needs at least one network; none was given.")
        self._networks = [_Network(entry, self.device) for entry in listed]

    def run(self, batch: Batch) -> dict[str, Any]:
        """Logits and latents of a batch; an item never spoils another one.

        Parameters
        ----------
        batch : dict of ndarray
            As :mod:`applecider_batch.inference.batches` describes.

        Returns
        -------
        dict
            ``logits`` float32 (b, 5), NaN where the network gave no finite answer; ``latent`` float32 (b, D);
            ``degraded`` bool, True if the batch had to be halved for lack of memory.
        """
        size = len(next(iter(batch.values())))
        try:
            logits, latent = self._forward(batch)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or size <= 1:
                raise
        else:
            return {"logits": logits, "latent": latent, "degraded": False}
        # Outside the except block, so that the failed attempt's tensors are free by now.
        _log.warning("A batch of %d items did not fit into memory; it is halved.", size)
        self._free()
        half = size // 2
        parts = [self.run({k: v[s] for k, v in batch.items()}) for s in (slice(0, half), slice(half, size))]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("logits", "latent")}
        return {**joined, "degraded": True}

    def _forward(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        import torch

        answers = []
        with torch.inference_mode(), self._autocast():
            # Copies: torch's own allocation has one alignment everywhere, shared memory of an executor has not.
            tensors = {k: torch.tensor(v, device=self.device) for k, v in batch.items()}
            tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
            for network in self._networks:
                answers.append(network(tensors))
        logits = answers[0][0] if len(answers) == 1 else _mean_logits([a[0] for a in answers])
        return _nan_rows(logits), answers[0][1]

    def _autocast(self) -> Any:
        import torch

        kind = torch.float32 if self.dtype == "float32" else getattr(torch, self.dtype)
        return torch.autocast(self.device.type, dtype=kind, enabled=self.dtype != "float32")

    def _free(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class _Network:
    """One network with what its card says of inputs and classes."""

    def __init__(self, entry: Any, device: torch.device) -> None:
        import torch

        self.modality: str = entry.modality
        self.module = entry.build().to(device).eval()
        card = entry.card
        self.class_matrix = five_class_matrix(card)
        norm = card.normalisation or {}

        def tensor(name: str) -> torch.Tensor | None:
            value = norm.get(name)
            return None if value is None else torch.tensor(value, dtype=torch.float32, device=device)

        self.mean, self.std = tensor("mean"), tensor("std")
        self.metadata_mean, self.metadata_std = tensor("metadata_mean"), tensor("metadata_std")

    def __call__(self, batch: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Five-class logits (b, 5) and latent (b, D), float32."""
        if self.modality == "photometry":
            out, latent = self.module.forward_with_latent(self._standardise(batch["x"], batch["mask"]), batch["mask"])
        elif self.modality == "image":
            out, latent = self.module.forward_with_latent(batch["image"], self._scale(batch["metadata"]))
        else:
            out, latent = self.module.forward_with_latent(batch["x"])
        logits = to_five_classes(out.float().cpu().numpy(), self.class_matrix)
        return logits, latent.float().cpu().numpy()

    def _standardise(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """First four channels to zero mean and unit spread of the training set; padding stays 0."""
        if self.mean is None or self.std is None:
            return x
        x = x.clone()
        x[..., :STANDARDISED_CHANNELS] = (x[..., :STANDARDISED_CHANNELS] - self.mean) / (self.std + 1e-8)
        return x * mask[..., None]

    def _scale(self, metadata: torch.Tensor) -> torch.Tensor:
        if self.metadata_mean is None or self.metadata_std is None:
            return metadata
        return (metadata - self.metadata_mean) / (self.metadata_std + 1e-8)


def five_class_matrix(card: Any) -> np.ndarray | None:
    """The card's map from its own classes to the five, or None where it is the identity.

    Returns
    -------
    ndarray of float64, shape (K, 5), or None
    """
    if card.class_map is None:
        return None
    matrix = np.asarray(card.class_map, np.float64)
    return None if matrix.shape == (N_CLASSES, N_CLASSES) and np.array_equal(matrix, np.eye(N_CLASSES)) else matrix


def to_five_classes(logits: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Logits over a network's own classes to logits over the five, by summing probabilities.

    Parameters
    ----------
    logits : ndarray, float32, shape (b, K)
    matrix : ndarray, shape (K, 5), or None
        None: the classes are the five already.

    Returns
    -------
    ndarray, float32, shape (b, 5)
        Logarithms of the summed probabilities where a matrix is given; a class without any source is at the
        smallest positive number, so that a later softmax stays finite.
    """
    if matrix is None:
        return np.ascontiguousarray(logits, np.float32)
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)


def _mean_logits(members: list[np.ndarray]) -> np.ndarray:
    """Logarithm of the mean probability of an ensemble; a NaN member makes the item NaN."""
    stacked = np.stack([log_softmax(member) for member in members], axis=1)  # (b, members, 5)
    return fuse(stacked, np.ones(stacked.shape[:2], bool)).astype(np.float32)


def _nan_rows(logits: np.ndarray) -> np.ndarray:
    """A row with any number that is not finite becomes NaN as a whole."""
    out = logits.copy()
    out[~np.isfinite(logits).all(axis=1)] = np.nan
    return out


def _out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return "not enough memory" in str(error) or "can't allocate memory" in str(error)
