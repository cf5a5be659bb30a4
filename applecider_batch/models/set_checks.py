"""Model sets from outside: which there are, and whether every file of one is what its manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.models.manifest import MANIFEST, PACKAGED, checked_bytes, read_manifest
from applecider_batch.models.model_set import ModelSet, find_set, read_entry
from applecider_batch.storage import Store


def list_model_sets(
    folder: str | Path | None = None, storage_options: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Sets directly below a folder, and the packaged ones: a summary each, or the error, sorted by name."""
    bases = [Store(folder, storage_options)] if folder is not None else []
    found: list[dict[str, Any]] = []
    for base in (*bases, Store(PACKAGED)):
        for rel in base.ls():
            below = base.join(rel)
            if not below.exists(MANIFEST):
                continue
            try:
                loaded = ModelSet.load(below.url, storage_options=storage_options, check_weights=False)
            except UserError as error:
                found.append({"name": rel, "url": below.url, "error": str(error)})
                continue
            kept = ("name", "url", "profile", "digest", "trained", "calibrated")
            networks = {m: [e.name for e in es] for m, es in sorted(loaded.networks.items())}
            found.append({k: v for k, v in loaded.summary().items() if k in kept} | {"networks": networks})
    return found


def verify_model_set(path: str | Path, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Check every digest and card of a set, and build every network.

    Returns
    -------
    dict
        ``name``, ``url``, ``digest``, ``verified`` bool, ``problems`` (a sentence each) and ``parameters``
        (network -> number).

    Raises
    ------
    UserError
        If there is no set, or its manifest cannot be read.
    """
    store = find_set(path, storage_options)
    manifest = read_manifest(store)
    problems: list[str] = []
    parameters: dict[str, int] = {}
    for item in manifest["network"]:
        try:
            entry = read_entry(store, item, check_weights=False)
            entry.training_ids()
            network = entry.build()
            parameters[item["name"]] = sum(p.numel() for p in network.parameters())
        except UserError as error:
            problems.append(str(error))
    for part in ("calibration", "anomaly", "gate"):
        try:
            if part in manifest:
                checked_bytes(store, manifest[part]["file"], manifest[part]["sha256"])
        except UserError as error:
            problems.append(str(error))
    return {
        "name": manifest["name"],
        "url": store.url,
        "digest": json_digest(manifest),
        "verified": not problems,
        "problems": problems,
        "parameters": parameters,
    }
