"""A model set: the folder with everything that a classification needs of its networks.

::

    SET/model_set.toml              format, name, profile; of each network files, SHA-256, whether in use
    SET/<name>.safetensors          weights (never a pickle)
    SET/<name>.card.json            the card, see `models.card`
    SET/calibration.json            temperatures; ``calibrated = false`` and 1.0 where none was fitted
    SET/<anomaly reference>         optional
    SET/gate.safetensors            the learned gate, optional; without it the rules decide alone

Several networks of a modality may lie in a set; the one with ``default = true`` is used. Every file is
checked against its digest when the set is loaded, so a set is what its manifest says or it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import CURVE_SUMMARY
from applecider_batch.features.gate_model import LearnedGate
from applecider_batch.features.profiles import get_profile
from applecider_batch.models import build_network
from applecider_batch.models.card import ModelCard
from applecider_batch.models.manifest import (
    MANIFEST,
    PACKAGED,
    checked_bytes,
    read_manifest,
    save_set,
    sha256,
)
from applecider_batch.models.seeding import write_untrained
from applecider_batch.storage import Store, json_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkEntry:
    """A network of a set: its card and where its weights lie."""

    name: str
    modality: str
    profile: str
    card: ModelCard
    default: bool
    store: Store

    @property
    def weights_path(self) -> str:
        """Path or URL of the weights."""
        return f"{self.store.url}/{self.card.weights}"

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, checked against their digest; those stored in half precision in single."""
        import safetensors.torch
        import torch

        data = checked_bytes(self.store, self.card.weights, self.card.weights_sha256)
        found = safetensors.torch.load(data)
        return {name: t.float() if t.dtype == torch.float16 else t for name, t in found.items()}

    def training_ids(self) -> frozenset[str] | None:
        """Names of the objects that trained the network, None where its card names none."""
        if not self.card.training_ids:
            return None
        data = checked_bytes(self.store, self.card.training_ids, self.card.training_ids_sha256)
        return frozenset(data.decode().splitlines())

    def build(self) -> nn.Module:
        """The network with its weights, in eval mode and without gradients, on the CPU in float32."""
        from applecider_batch.models.unfilled import unfilled

        with unfilled():
            network = build_network(self.card.profile, self.card.network, **self.card.config)
        try:
            network.load_state_dict(self.state_dict(), strict=True, assign=True)
        except RuntimeError as error:
            raise UserError(
                f"The weights '{self.weights_path}' do not fit the network '{self.card.network}' of"
                f" '{self.card.profile}' that their card names: {error}"
            ) from error
        return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class ModelSet:
    """A model set, read and checked.

    Attributes
    ----------
    name, profile : str
    digest : str
        Digest of the manifest, which holds the digest of every file: 32 hex digits.
    entries : tuple of NetworkEntry
    calibration : dict
        The calibration document.
    calibration_id : str
        First 16 hex digits of its SHA-256.
    anomaly_file : str or None
        Name of the anomaly reference beside the manifest.
    anomaly_ref_id : str or None
    gate : dict or None
        ``file`` and ``sha256`` of the learned gate.
    store : Store
    """

    name: str
    profile: str
    digest: str
    entries: tuple[NetworkEntry, ...]
    calibration: dict[str, Any]
    calibration_id: str
    anomaly_file: str | None
    anomaly_ref_id: str | None
    gate: dict[str, str] | None
    store: Store

    @property
    def model_set_id(self) -> str:
        """Name and the first 12 digits of the digest, for catalogue rows."""
        return f"{self.name}-{self.digest[:12]}"

    @property
    def networks(self) -> dict[str, list[NetworkEntry]]:
        """Networks by modality, the default first."""
        found: dict[str, list[NetworkEntry]] = {}
        for entry in sorted(self.entries, key=lambda e: not e.default):
            found.setdefault(entry.modality, []).append(entry)
        return found

    @property
    def defaults(self) -> dict[str, NetworkEntry]:
        """The network in use for each of photometry, image, spectra (those that the set has)."""
        chosen = {e.modality: e for e in self.entries if e.default}
        return {m: chosen[m] for m in ("photometry", "image", "spectra") if m in chosen}

    @property
    def inputs(self) -> set[str]:
        """What `features.inputs.prepare_shard` is to make for the networks in use."""
        extra = {CURVE_SUMMARY} if any(e.card.reads_summary for e in self.defaults.values()) else set()
        return {*self.defaults, *extra}

    @property
    def picture_size(self) -> int | None:
        """Of the network of spectra in use, see :attr:`models.card.ModelCard.picture_size`."""
        return self.defaults["spectra"].card.picture_size if "spectra" in self.defaults else None

    @property
    def trained(self) -> bool:
        """Whether all networks in use are trained."""
        used = self.defaults.values()
        return bool(used) and all(entry.card.trained for entry in used)

    def training_ids(self) -> tuple[frozenset[str], bool]:
        """Names of the objects that trained any network in use, and whether all of them say theirs."""
        lists = [entry.training_ids() for entry in self.defaults.values()]
        known = [names for names in lists if names is not None]
        return frozenset().union(*known), bool(lists) and len(known) == len(lists)

    def entry(self, name: str) -> NetworkEntry:
        """The network of that name; a UserError lists the choices."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise UserError(
            f"The model set '{self.name}' has no network '{name}'; it has"
            f" {', '.join(e.name for e in self.entries)}."
        )

    def anomaly_bytes(self) -> bytes | None:
        """The anomaly reference's bytes, or None."""
        return self.store.read_bytes(self.anomaly_file) if self.anomaly_file else None

    @property
    def gate_id(self) -> str | None:
        """First 16 hex digits of the learned gate's SHA-256, or None."""
        return self.gate["sha256"][:16] if self.gate else None

    def learned_gate(self) -> LearnedGate | None:
        """The set's learned gate, or None."""
        if self.gate is None:
            return None
        data = checked_bytes(self.store, self.gate["file"], self.gate["sha256"])
        return LearnedGate.from_bytes(data, f"{self.store.url}/{self.gate['file']}")

    def _gate_card(self) -> dict[str, Any] | None:
        gate = self.learned_gate()
        left_out = ("features", "trees", "depth", "horizons")
        return None if gate is None else {k: v for k, v in gate.document.items() if k not in left_out}

    def summary(self) -> dict[str, Any]:
        """What the set holds, as one JSON document: names, digests, calibration and every card."""
        return {
            "name": self.name,
            "url": self.store.url,
            "profile": self.profile,
            "digest": self.digest,
            "model_set_id": self.model_set_id,
            "trained": self.trained,
            "calibrated": bool(self.calibration.get("calibrated", False)),
            "calibration_id": self.calibration_id,
            "anomaly_ref_id": self.anomaly_ref_id,
            "gate_id": self.gate_id,
            "gate": self._gate_card(),
            "networks": [
                {
                    "name": e.name,
                    "modality": e.modality,
                    "network": e.card.network,
                    "profile": e.profile,
                    "default": e.default,
                    "trained": e.card.trained,
                }
                for e in self.entries
            ],
            "cards": {e.name: e.card.as_json() for e in self.entries},
        }

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        storage_options: Mapping[str, Any] | None = None,
        check_weights: bool = True,
    ) -> ModelSet:
        """Read a model set and check every digest.

        Parameters
        ----------
        path : str or Path
            Folder or URL of the set, or the name of a packaged one.
        storage_options : mapping, optional
            For fsspec.
        check_weights : bool
            False leaves the weights to :meth:`NetworkEntry.build`, which checks what it reads in any case.

        Raises
        ------
        UserError
            If there is no set, a file is missing or differs from its digest, or a card cannot be read.
        """
        store = find_set(path, storage_options)
        manifest = read_manifest(store)
        entries = tuple(read_entry(store, item, check_weights) for item in manifest["network"])
        calibration = checked_bytes(store, manifest["calibration"]["file"], manifest["calibration"]["sha256"])
        anomaly = manifest.get("anomaly")
        for part in (anomaly, manifest.get("gate")):
            if part is not None:
                checked_bytes(store, part["file"], part["sha256"])
        return cls(
            name=manifest["name"],
            profile=manifest["profile"],
            digest=json_digest(manifest),
            entries=entries,
            calibration=json.loads(calibration),
            calibration_id=manifest["calibration"]["sha256"][:16],
            anomaly_file=anomaly["file"] if anomaly else None,
            anomaly_ref_id=anomaly["sha256"][:16] if anomaly else None,
            gate=manifest.get("gate"),
            store=store,
        )


def find_set(path: str | Path, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The folder of a set: a path or URL, or the name of a packaged one; UserError if there is none."""
    for url in (path, PACKAGED / str(path)):
        store = Store(url, storage_options)
        if store.exists(MANIFEST):
            return store
        if "://" in str(path):
            break
    packaged = sorted(p.parent.name for p in PACKAGED.glob(f"*/{MANIFEST}"))
    raise UserError(
        f"There is no model set '{path}': no folder with a {MANIFEST} of that path, and the packaged sets"
        f" are: {', '.join(packaged) or 'none'}.",
        hint=f"Name a packaged one, or make an untrained one with 'applecider-batch models init {path}'.",
    )


def read_entry(store: Store, item: Mapping[str, Any], check_weights: bool) -> NetworkEntry:
    """A network by its item in the manifest; UserError where card, weights or profile do not fit together."""
    document = json.loads(checked_bytes(store, item["card"], item["card_sha256"]))
    card = ModelCard.from_json(document)
    if (card.weights, card.weights_sha256) != (item["weights"], item["weights_sha256"]):
        raise UserError(
            f"The card '{store.url}/{item['card']}' speaks of other weights ({card.weights},"
            f" {card.weights_sha256}) than the manifest ({item['weights']}, {item['weights_sha256']})."
        )
    current = get_profile(card.profile).digest()
    if card.profile_digest != current:
        raise UserError(
            f"The network '{card.name}' of '{store.url}' was made for another version of the profile"
            f" '{card.profile}': its card says {card.profile_digest}, this version has {current}.",
            hint="Use the version it was made with, or import the weights again after checking the profile.",
        )
    if check_weights:
        checked_bytes(store, card.weights, card.weights_sha256)
    return NetworkEntry(card.name, card.modality, card.profile, card, bool(item.get("default", False)), store)


def update_files(
    path: str | Path,
    *,
    calibration: Mapping[str, Any] | None = None,
    anomaly: tuple[str, bytes] | None = None,
    gate: bytes | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ModelSet:
    """Put a calibration document, an anomaly reference (file name, bytes) or a learned gate into a set.

    Another calibration takes the anomaly reference out of use: it was fitted with the old one.
    """
    store = find_set(path, storage_options)
    manifest = read_manifest(store)
    document = json_bytes(dict(calibration)) if calibration is not None else None
    same = document is None or sha256(document) == manifest["calibration"]["sha256"]
    reference = manifest.get("anomaly") if same else None
    if anomaly is not None:
        store.write_atomic(anomaly[0], anomaly[1])
        reference = {"file": anomaly[0], "sha256": sha256(anomaly[1])}
    save_set(
        store,
        name=manifest["name"],
        profile=manifest["profile"],
        entries=manifest["network"],
        calibration=document,
        anomaly=reference,
        gate=gate,
    )
    return ModelSet.load(store.url, storage_options=storage_options)


def init_model_set(
    path: str | Path,
    profile: str = "paper",
    seed: int = 0,
    *,
    name: str | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    networks: tuple[str, ...] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> ModelSet:
    """Write a seeded, **untrained** model set; its cards say ``trained = false``.

    Parameters
    ----------
    path : str or Path
        Folder or URL; there must be no set yet.
    profile : str
    seed : int
        Not negative. Equal seeds give equal bytes.
    name : str, optional
        Name of the set; ``untrained-<profile>-seed<seed>`` if not given.
    configs : mapping, optional
        Network name -> config over its defaults, for example smaller widths.
    networks : tuple of str
        Further networks of the profile, beside the main ones and not in use (``informer``,
        ``spectra_image``).
    storage_options : mapping, optional

    Returns
    -------
    ModelSet

    Raises
    ------
    UserError
        If there is a set already, or profile, network or seed are not allowed.
    """
    store = Store(path, storage_options)
    write_untrained(store, profile, seed, name=name, configs=configs or {}, extra=networks)
    return ModelSet.load(path, storage_options=storage_options, check_weights=False)
