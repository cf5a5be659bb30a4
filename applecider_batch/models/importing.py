"""Bring a checkpoint into a model set: strict names and shapes, named remaps, a complete card, or a refusal.

Nothing is guessed. What a network's outputs mean (``class_order``) and what its inputs were standardised with
(``normalisation``) are not in a checkpoint, so the card must say them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.models import build_network, list_networks, network_spec
from applecider_batch.models.card import ModelCard
from applecider_batch.models.card_completion import complete_card, read_card, read_training_ids
from applecider_batch.models.checkpoints import read_checkpoint
from applecider_batch.models.manifest import (
    IDENTITY_CALIBRATION,
    MANIFEST,
    read_manifest,
    save_set,
    write_network,
)
from applecider_batch.models.remaps import State, remap
from applecider_batch.storage import Store, json_bytes
from applecider_batch.taxonomy import CLASSES

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 12


@dataclass(frozen=True)
class KeyReport:
    """Strict comparison of a checkpoint with a network; sentences a line each."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shape_mismatches: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether names and shapes agree exactly."""
        return not (self.missing or self.unexpected or self.shape_mismatches)

    def sentence(self) -> str:
        """What does not fit."""
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.shape_mismatches),
        )
        return "; ".join(
            f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"
            for what, names in parts
            if names
        )


def compare(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> KeyReport:
    """Compare names and shapes of a state dict with a network's."""
    return KeyReport(
        missing=tuple(name for name in wanted if name not in state),
        unexpected=tuple(name for name in state if name not in wanted),
        shape_mismatches=tuple(
            f"{name} {tuple(state[name].shape)} instead of {shape}"
            for name, shape in wanted.items()
            if name in state and tuple(state[name].shape) != shape
        ),
    )


def shapes_of(profile: str, network: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's state dict, without allocating it."""
    import torch

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        built = build_network(profile, network, **config)
    return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}


def _choose_network(
    state: Mapping[str, Tensor], profile: str, document: Mapping[str, Any], asked: str | None
) -> str:
    """The network asked for, the card's, or the only one of the profile whose names the checkpoint has."""
    chosen = asked or document.get("network")
    if chosen is not None:
        network_spec(profile, chosen)
        return str(chosen)
    get_profile(profile)
    fitting: list[tuple[int, str]] = []
    config = dict(document.get("config", {}))
    for network in (n for p, n, _ in list_networks() if p == profile):
        try:
            wanted = shapes_of(profile, network, config)
        except UserError:
            continue  # the card's config is another network's
        renamed, done, _unused = remap(state, wanted, profile=profile, options={})
        if set(renamed) == set(wanted):
            fitting.append((sum("head -> fc" in line for line in done), network))
    best = [network for rank, network in fitting if rank == min(fitting)[0]]
    if len(best) == 1:
        return best[0]
    own = ", ".join(n for p, n, _ in list_networks() if p == profile)
    raise UserError(
        f"The checkpoint's names fit {'several networks' if best else 'no network'} of the profile"
        f" '{profile}'"
        f"{': ' + ', '.join(best) if best else ''}; its first names are {', '.join(list(state)[:4])}.",
        hint=f"Name one with --network to see what differs: {own}.",
    )


def import_checkpoint(
    file: str | Path,
    profile: str,
    set_path: str | Path,
    *,
    network: str | None = None,
    card: Mapping[str, Any] | str | Path | None = None,
    name: str | None = None,
    default: bool | None = None,
    replace: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Import a checkpoint into a model set, which is made if there is none.

    Parameters
    ----------
    file : str or Path
        ``.pt``, ``.pth`` (tensors and plain containers only) or ``.safetensors``.
    profile : str
        Profile that the checkpoint belongs to.
    set_path : str or Path
        Folder or URL of the set.
    network : str, optional
        Name in the registry; else the card's, else the only network with exactly these parameter names.
    card : mapping, str or Path, optional
        Fields of ``schemas/model_card.json``, or a TOML or JSON file with them.
    name : str, optional
        Name in the set; the card's, else the network's.
    default : bool, optional
        Whether to use this network for its modality; by default yes, if the set has the same profile. A
        network that comes into use resets the set's calibration and anomaly reference, which were fitted
        with others.
    replace : bool
        Whether a network of that name may be replaced.
    storage_options : mapping, optional
        For the set.

    Returns
    -------
    dict
        The report, JSON-ready: file, container, remaps, unused, ignored, cast, keys, card fields, digests.

    Raises
    ------
    UserError
        If the file holds code, names or shapes differ, the card cannot be completed, or the set refuses.
    """
    document = read_card(card)
    training_ids = read_training_ids(document, card)
    get_profile(profile)
    checkpoint = read_checkpoint(file)
    chosen = _choose_network(checkpoint.state, profile, document, network)
    name = name or document.get("name") or chosen
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"'{name}' is no name for a network: letters, digits, '.', '_' and '-' are allowed.")
    full, from_profile = complete_card(document, profile, chosen, name=name)
    wanted = shapes_of(profile, chosen, full.config)
    state, done, unused = remap(checkpoint.state, wanted, profile=profile, options=document.get("remap", {}))
    keys = compare(state, wanted)
    if not keys.fits:
        raise UserError(
            f"'{file}' does not fit the network '{chosen}' of '{profile}': {keys.sentence()}.",
            hint=f"Remaps tried: {'; '.join(done) or 'none'}. Sizes are set by 'config' in the card.",
        )
    state, cast = _to_float32(state, file)
    item, digest, in_use = put_network(
        Store(set_path, storage_options),
        full,
        state,
        profile,
        default=default,
        replace=replace,
        training_ids=training_ids,
    )
    return {
        "file": str(file),
        "file_sha256": checkpoint.sha256,
        "container": checkpoint.container,
        "ignored": list(checkpoint.ignored),
        "profile": profile,
        "network": chosen,
        "modality": full.modality,
        "name": name,
        "model_set": str(set_path),
        "model_set_digest": digest,
        "default": in_use,
        "trained": full.trained,
        "tensors": len(state),
        "parameters": sum(t.numel() for t in state.values()),
        "missing": list(keys.missing),
        "unexpected": list(keys.unexpected),
        "shape_mismatches": list(keys.shape_mismatches),
        "remaps": done,
        "unused": unused,
        "cast": cast,
        "from_profile": from_profile,
        "class_map": {
            c: next((five for five, row in zip(CLASSES, full.class_map, strict=True) if row[i]), "OTHER")
            for i, c in enumerate(full.class_order)
        },
        "weights": item["weights"],
        "weights_sha256": item["weights_sha256"],
    }


def _to_float32(state: State, file: str | Path) -> tuple[State, list[str]]:
    """Floating-point tensors in float32; a number that is not finite is refused."""
    import torch

    cast = sorted(n for n, t in state.items() if t.is_floating_point() and t.dtype != torch.float32)
    out = {n: t.to(torch.float32) if n in set(cast) else t for n, t in state.items()}
    if bad := [n for n, t in out.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]:
        raise UserError(f"'{file}' holds NaN or infinite weights in {', '.join(bad[:_SHOWN])}.")
    return out, cast


def put_network(
    store: Store,
    card: ModelCard,
    state: State,
    profile: str,
    *,
    default: bool | None,
    replace: bool,
    training_ids: Iterable[str] | None = None,
) -> tuple[dict[str, Any], str, bool]:
    """Write a network and the manifest of its set, which is made if absent.

    Returns the manifest's item, the set's digest and whether the network is in use.
    """
    manifest: dict[str, Any] = {"name": store.url.rsplit("/", 1)[-1], "profile": profile, "network": []}
    fresh = not store.exists(MANIFEST)
    if not fresh:
        manifest = read_manifest(store)
    if not replace and any(item["name"] == card.name for item in manifest["network"]):
        raise UserError(
            f"The model set '{store.url}' has a network '{card.name}' already.",
            hint="Give another --name, or --replace it.",
        )
    same = manifest["profile"] == profile
    if default and not same:
        raise UserError(
            f"The model set '{store.url}' prepares inputs of the profile '{manifest['profile']}'; a network"
            f" of '{profile}' cannot be in use there.",
            hint="Import it into a set of its own.",
        )
    usable = card.modality in ("photometry", "image", "spectra")
    in_use = bool(same and usable and (default is None or default))
    item = write_network(store, card, state, default=in_use, training_ids=training_ids)
    others = [dict(i) for i in manifest["network"] if i["name"] != card.name]
    if in_use:
        others = [i | {"default": False} if i["modality"] == card.modality else i for i in others]
    save_set(
        store,
        name=manifest["name"],
        profile=manifest["profile"],
        entries=[*others, item],
        # Temperatures and anomaly reference belong to the networks that they were fitted with.
        calibration=json_bytes(IDENTITY_CALIBRATION) if fresh or in_use else None,
        anomaly=None if in_use else manifest.get("anomaly"),
    )
    return item, json_digest(read_manifest(store)), in_use
