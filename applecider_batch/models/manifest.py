"""The files of a model set: reading the manifest, checking digests, writing networks and the manifest.

The folder is drawn in `models.model_set`, which is what other rooms use.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from applecider_batch.errors import UserError
from applecider_batch.models.card import ModelCard
from applecider_batch.storage import Store, json_bytes

if TYPE_CHECKING:
    from torch import Tensor

SET_FORMAT = "applecider-batch model set 1"
MANIFEST = "model_set.toml"
CALIBRATION = "calibration.json"
GATE = "gate.safetensors"
#: Where model sets that come with the package lie.
PACKAGED = Path(__file__).resolve().parent / "sets"
IDENTITY_CALIBRATION: dict[str, Any] = {
    "format": "applecider-batch calibration 1",
    "calibrated": False,
    "temperature": {"photometry": 1.0, "image": 1.0, "spectra": 1.0, "fused": 1.0},
}


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 in hex, as ``sha256sum`` prints it."""
    return hashlib.sha256(data).hexdigest()


def read_manifest(store: Store) -> dict[str, Any]:
    """``model_set.toml`` as a dictionary, its format and fields checked."""
    where = f"{store.url}/{MANIFEST}"
    try:
        manifest = tomllib.loads(store.read_bytes(MANIFEST).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{where}' is not TOML: {error}.") from error
    if manifest.get("format") != SET_FORMAT:
        raise UserError(
            f"'{where}' has the format {manifest.get('format')!r}; this version reads '{SET_FORMAT}'."
        )
    wanted: list[tuple[Mapping[str, Any], tuple[str, ...], str]] = [
        (manifest, ("name", "profile", "calibration"), ""),
        (manifest.get("calibration", {}), ("file", "sha256"), "calibration."),
    ]
    manifest.setdefault("network", [])
    keys = ("name", "card", "card_sha256", "weights", "weights_sha256")
    wanted += [(item, keys, f"network[{i}].") for i, item in enumerate(manifest["network"])]
    lacking = [prefix + key for item, keys, prefix in wanted for key in keys if key not in item]
    if lacking:
        raise UserError(f"'{where}' lacks {', '.join(lacking)}.")
    return manifest


def refuse_packaged(url: str | Path) -> None:
    """UserError for the name or the folder of a set that comes with the package: it is not changed.

    A folder of that name in which a set lies goes before the packaged one, as in reading.
    """
    text = str(url)
    if "://" in text:
        return
    named = (PACKAGED / text / MANIFEST).exists() and not Path(text, MANIFEST).exists()
    if named or PACKAGED in Path(text).resolve().parents:
        name = Path(text).name
        raise UserError(
            f"The model set '{name}' comes with the package and is not changed.",
            hint=f"Make a copy of your own first: 'applecider-batch models init MODELS --from {name}'.",
        )


def checked_bytes(store: Store, rel: str, expected: str) -> bytes:
    """A file's bytes if they have the expected SHA-256."""
    try:
        data = store.read_bytes(rel)
    except FileNotFoundError as error:
        raise UserError(
            f"The model set '{store.url}' lacks the file '{rel}' that its manifest names."
        ) from error
    found = sha256(data)
    if found != expected:
        raise UserError(
            f"The file '{store.url}/{rel}' was changed: its SHA-256 is {found},"
            f" the manifest says {expected}.",
            hint="Restore the file, or import the network again.",
        )
    return data


def save_set(
    store: Store,
    *,
    name: str,
    profile: str,
    entries: Iterable[Mapping[str, Any]],
    calibration: bytes | None = None,
    anomaly: Mapping[str, str] | None = None,
    gate: bytes | None = None,
) -> None:
    """Write the manifest, last of all files.

    ``entries`` are manifest items as :func:`write_network` returns them; ``calibration`` the document's
    bytes, None to keep what is there; ``anomaly`` a mapping with ``file`` and ``sha256``; ``gate`` the
    learned gate's bytes, None to keep what is there: it knows nothing of the networks. A set that comes
    with the package is not changed.
    """
    refuse_packaged(store.url)
    kept = read_manifest(store).get("gate") if store.exists(MANIFEST) else None
    if gate is not None:
        store.write_atomic(GATE, gate)
        kept = {"file": GATE, "sha256": sha256(gate)}
    if calibration is not None:
        store.write_atomic(CALIBRATION, calibration)
    else:
        calibration = store.read_bytes(CALIBRATION)
    lines = [f"format = {_toml(SET_FORMAT)}", f"name = {_toml(name)}", f"profile = {_toml(profile)}"]
    lines += ["", "[calibration]", f"file = {_toml(CALIBRATION)}", f"sha256 = {_toml(sha256(calibration))}"]
    if anomaly:
        lines += ["", "[anomaly]", f"file = {_toml(anomaly['file'])}", f"sha256 = {_toml(anomaly['sha256'])}"]
    if kept:
        lines += ["", "[gate]", f"file = {_toml(kept['file'])}", f"sha256 = {_toml(kept['sha256'])}"]
    for item in sorted(entries, key=lambda e: e["name"]):
        lines += ["", "[[network]]", *(f"{key} = {_toml(value)}" for key, value in item.items())]
    store.write_atomic(MANIFEST, ("\n".join(lines) + "\n").encode())


def _toml(value: Any) -> str:
    """A TOML string or boolean; JSON's escapes are TOML's."""
    return json.dumps(value)


def write_network(
    store: Store,
    card: ModelCard,
    state: Mapping[str, Tensor],
    *,
    default: bool,
    training_ids: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Write weights, card and, where known, the names of the objects that trained the network.

    Returns the manifest's item. The manifest itself is :func:`save_set`'s.
    """
    import safetensors.torch

    if training_ids is not None:
        names = "".join(f"{name}\n" for name in sorted(set(training_ids))).encode()
        file = f"{card.name}.training_ids.txt"
        store.write_atomic(file, names)
        card = replace(card, training_ids=file, training_ids_sha256=sha256(names))
    weights = f"{card.name}.safetensors"
    # Copies: tensors that share memory (one classifier under two names) are refused by safetensors.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(state.items())}
    data = safetensors.torch.save(plain)
    card = replace(card, weights=weights, weights_sha256=sha256(data))
    card_bytes = json_bytes(card.as_json())
    store.write_atomic(weights, data)
    store.write_atomic(f"{card.name}.card.json", card_bytes)
    return {
        "name": card.name,
        "modality": card.modality,
        "profile": card.profile,
        "network": card.network,
        "default": default,
        "card": f"{card.name}.card.json",
        "card_sha256": sha256(card_bytes),
        "weights": weights,
        "weights_sha256": card.weights_sha256,
    }
