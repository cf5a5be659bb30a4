"""Reading other people's checkpoint files without running what may be in them.

``.safetensors`` hold tensors only. ``.pt`` and ``.pth`` are pickles, which can run any code when they are
loaded; they are read by ``torch.load(weights_only=True)`` alone, and one that holds anything but tensors and
plain containers is refused.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from applecider_batch.errors import UserError
from applecider_batch.models.manifest import sha256
from applecider_batch.storage import store_of

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".safetensors")
CONTAINERS = ("state_dict", "model_state_dict", "model")
# What torch.load raises for damaged, foreign or refused files.
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError,
    UnicodeError, zipfile.BadZipFile, OSError, ImportError,
)  # fmt: skip
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint file.

    Attributes
    ----------
    file, sha256 : str
    state : dict of str to Tensor
        As named in the file.
    container : str
        Keys under which the state lay, for example ``model_state_dict``; empty for a bare state dict.
    ignored : tuple of str
        Other keys of the file (optimiser, epoch …).
    """

    file: str
    sha256: str
    state: dict[str, Tensor]
    container: str
    ignored: tuple[str, ...]


def read_checkpoint(file: str | Path, storage_options: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint file.

    Parameters
    ----------
    file : str or Path
        Path or URL of a ``.pt``, ``.pth`` or ``.safetensors`` file: a state dict, bare or (nested) under one
        of `CONTAINERS`.

    Returns
    -------
    Checkpoint

    Raises
    ------
    UserError
        If the file is absent, of another kind, damaged, holds code or objects, or no state dict.
    """
    store, name = store_of(str(file), storage_options)
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"'{file}' is not a checkpoint that can be imported; allowed: {', '.join(SUFFIXES)}.")
    try:
        data = store.read_bytes(name)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"There is no checkpoint file '{file}'.") from error
    loaded = _safetensors(data, file) if suffix == ".safetensors" else _pickle(data, file)
    state, container, ignored = _find_state(loaded, file)
    return Checkpoint(str(file), sha256(data), state, container, ignored)


def _safetensors(data: bytes, file: str | Path) -> Any:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"'{file}' is not a readable safetensors file: {error}.") from error


def _pickle(data: bytes, file: str | Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickle protocols: read or refused, both are said
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        text = str(error)
        if found := _GLOBAL.search(text):
            raise UserError(
                f"'{file}' was refused: it is a pickle that would run or rebuild '{found[1]}', and only"
                " tensors and plain containers are read.",
                hint="Nothing of it was run. If you trust its author, have them save model.state_dict().",
            ) from error
        if "weights_only" in text.lower() or "weightsunpickler" in text.lower():
            raise UserError(
                f"'{file}' was refused: it holds more than tensors and plain containers"
                f" ({text.splitlines()[0]}).",
                hint="Save model.state_dict() as safetensors or with torch.save, and import that.",
            ) from error
        raise UserError(
            f"'{file}' is not a readable torch checkpoint: {text.splitlines()[0] if text else repr(error)}."
        ) from error


def _find_state(loaded: Any, file: str | Path) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The state dict, the path to it, and the other keys on the way."""
    import torch

    path: list[str] = []
    ignored: list[str] = []
    while isinstance(loaded, Mapping):
        inner = next((key for key in CONTAINERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        ignored += [".".join([*path, str(key)]) for key in loaded if key != inner]
        path.append(inner)
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not any(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UserError(
            f"'{file}' holds no state dict: neither tensors by name nor one under {', '.join(CONTAINERS)}."
        )
    strange = [str(k) for k, v in loaded.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if strange:
        raise UserError(
            f"The state dict of '{file}' holds entries that are not tensors: {', '.join(strange[:8])}."
        )
    return dict(loaded), ".".join(path), tuple(ignored)
