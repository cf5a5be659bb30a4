"""A set of one's own: a copy of another one, and the network that it uses for a modality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from applecider_batch.errors import UserError
from applecider_batch.models.manifest import IDENTITY_CALIBRATION, MANIFEST, read_manifest, save_set
from applecider_batch.models.model_set import ModelSet
from applecider_batch.storage import Store, json_bytes


def copy_set(source: str | Path, path: str | Path) -> ModelSet:
    """Copy a model set, checked, to a folder or URL where there is none; returns the copy.

    Raises
    ------
    UserError
        If there is no such set, a file of it was changed, or there is a set at `path` already.
    """
    original, store = ModelSet.load(source).store, Store(path)
    if store.exists(MANIFEST):
        raise UserError(f"There is a model set at '{store.url}' already.", hint="Choose another path.")
    for name in sorted(original.walk(), key=lambda name: name == MANIFEST):  # the manifest last
        store.write_atomic(name, original.read_bytes(name))
    return ModelSet.load(path)


def use_network(
    path: str | Path, name: str, *, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Put a network of a set into use for its modality, in place of the one that was.

    Parameters
    ----------
    path : str or Path
        Folder or URL of the set.
    name : str
        A network of the set.
    storage_options : mapping, optional

    Returns
    -------
    dict
        ``model_set``, ``model_set_digest``, ``network``, ``modality``, ``instead_of`` (name or None),
        ``changed`` and ``calibration_reset``: temperatures and anomaly reference belong to the networks that
        they were fitted with, so a change of networks resets both.

    Raises
    ------
    UserError
        If there is no such network, it does not classify, or it reads inputs of another profile than the
        set's.
    """
    model_set = ModelSet.load(path, storage_options=storage_options, check_weights=False)
    entry = model_set.entry(name)
    before = model_set.defaults.get(entry.modality)
    if entry.profile != model_set.profile:
        raise UserError(
            f"The model set '{model_set.name}' prepares inputs of the profile '{model_set.profile}'; the"
            f" network '{name}' of '{entry.profile}' cannot be in use there.",
            hint="Import it into a set of its own.",
        )
    if entry.modality not in ("photometry", "image", "spectra") or not entry.card.class_order:
        raise UserError(
            f"The network '{name}' ({entry.card.network}) does not classify light curves, images or spectra,"
            " so it cannot be in use.",
            hint=f"See 'applecider-batch models info {path}'.",
        )
    if changed := not entry.default:
        manifest = read_manifest(model_set.store)
        save_set(
            model_set.store,
            name=manifest["name"],
            profile=manifest["profile"],
            entries=[
                dict(i) | {"default": i["name"] == name} if i["modality"] == entry.modality else i
                for i in manifest["network"]
            ],
            calibration=json_bytes(IDENTITY_CALIBRATION),
        )
        model_set = ModelSet.load(path, storage_options=storage_options, check_weights=False)
    return {
        "model_set": str(path),
        "model_set_digest": model_set.digest,
        "network": name,
        "modality": entry.modality,
        "instead_of": before.name if changed and before else None,
        "changed": changed,
        "calibration_reset": changed,
    }
