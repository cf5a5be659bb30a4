"""A network on a device: from a raw batch to five-class logits and latents.

A predictor is the same object in the serial executor and inside a model actor; it knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.inference.batches import WHOLE, Batch, whole_rows
from applecider_batch.logs import get_logger

if TYPE_CHECKING:
    import torch

DTYPES: tuple[str, ...] = ("float32", "float16", "bfloat16")
DEVICES: tuple[str, ...] = ("cpu", "cuda")

_log = get_logger(__name__)


class Predictor:
    """A network on a device.

    Parameters
    ----------
    entry : models.model_set.NetworkEntry
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

    def __init__(self, entry: Any, *, device: str = "cpu", dtype: str = "float32", threads: int = 1) -> None:
        import torch

        if dtype not in DTYPES:
            raise UserError(f"Unknown dtype '{dtype}'; allowed are {', '.join(DTYPES)}.")
        if device.split(":")[0] not in DEVICES:
            raise UserError(f"Unknown device '{device}'; allowed are {', '.join(DEVICES)}.")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(
                f"The device '{device}' was asked for, but no CUDA device is here.", hint="Use cpu."
            )
        torch.set_num_threads(threads)
        if device.startswith("cuda"):
            # Equal inputs, equal rows: no autotuning between kernels, no TF32 in a float32 run.
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.device, self.dtype = torch.device(device), dtype
        # Where memory is the device's own, what once did not fit will not fit the next time either.
        self._learns_room = self.device.type == "cuda"
        self._room: int | None = None
        self._of_thread = threading.local()
        self.modality: str = entry.modality
        self._card = entry.card
        # Images lie with their channels last, in which CPU kernels take half the time or less.
        self._module = entry.build().to(self.device).to(memory_format=torch.channels_last).eval()
        if self.device.type == "cpu" and dtype == "float32":
            from applecider_batch.models.fused import fuse_blocks

            fuse_blocks(self._module)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the weights are there before another stream reads them

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
            ``energy`` float32 (b,), -logsumexp of the network's own logits; ``degraded`` bool, True if the
            batch had to be halved for lack of memory. On a GPU later batches are cut at once to what fitted.
        """
        size = len(next(iter(batch.values())))
        most = size if self._room is None else self._room
        return _joined(
            [
                self._run({name: values[at : at + most] for name, values in batch.items()}, filled_up=True)
                for at in range(0, size, most)
            ]
        )

    def _run(self, batch: Batch, *, filled_up: bool) -> dict[str, Any]:
        size = len(next(iter(batch.values())))
        rows = whole_rows(size) if filled_up else np.arange(size)
        try:
            answer = self._forward({name: values[rows] for name, values in batch.items()})
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or (size <= 1 and not filled_up):
                raise
        else:
            return {**{name: values[:size] for name, values in answer.items()}, "degraded": False}
        # Outside the except block, so that the failed attempt's tensors are free by now.
        _log.warning("A batch of %d items did not fit into memory; it is halved.", size)
        self._free()
        if self._learns_room:
            self._room = max(WHOLE, size // 2 // WHOLE * WHOLE)
        cuts = [part for part in (slice(0, size // 2), slice(size // 2, size)) if part.start < part.stop]
        parts = [
            self._run({name: values[part] for name, values in batch.items()}, filled_up=False)
            for part in cuts
        ]
        return {**_joined(parts), "degraded": True}

    def _forward(self, batch: Batch) -> dict[str, np.ndarray]:
        import torch

        with self._stream(), torch.inference_mode(), self._autocast():
            out, latent = self._module.forward_with_latent(*self._inputs(batch))
            energy = -torch.logsumexp(out.float(), dim=1)
        return {
            "logits": _nan_rows(self._card.to_five(out.float().cpu().numpy())),
            "latent": latent.float().cpu().numpy(),
            "energy": energy.cpu().numpy(),
        }

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The network's arguments, standardised as its card says."""
        if self.modality == "photometry":
            x = self._card.standardise_photometry(batch["x"])
            x[~batch["mask"]] = 0.0  # padding is 0 after standardising too
            inputs = self._tensor(x), self._tensor(batch["mask"])
            if not self._card.reads_summary:
                return inputs
            return *inputs, self._tensor(self._card.standardise_summary(batch["summary"]))
        if self.modality == "image":
            return self._tensor(batch["image"]), self._tensor(
                self._card.standardise_metadata(batch["metadata"])
            )
        return (self._tensor(batch["x"]),)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        """A copy on the device: torch's own allocation is aligned alike everywhere, shared memory is not."""
        import torch

        tensor = torch.tensor(values)
        if self.device.type != "cpu":
            # From memory that stays in its place the copy goes on while the processor and other streams do.
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor.float() if tensor.is_floating_point() else tensor

    def _stream(self) -> Any:
        """On a GPU each thread has a stream: the inputs of one's batch travel while another's is computed."""
        import torch

        if self.device.type != "cuda":
            return contextlib.nullcontext()
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self.device)
        return torch.cuda.stream(self._of_thread.stream)

    def _autocast(self) -> Any:
        import torch

        kind = torch.float32 if self.dtype == "float32" else getattr(torch, self.dtype)
        return torch.autocast(self.device.type, dtype=kind, enabled=self.dtype != "float32")

    def _free(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers of consecutive items as one."""
    if len(parts) == 1:
        return parts[0]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "degraded"}
    return {**joined, "degraded": any(part["degraded"] for part in parts)}


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
