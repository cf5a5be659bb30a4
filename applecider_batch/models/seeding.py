"""Seeded, untrained model sets: the same bytes for the same seed, on any machine and torch version."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import SUMMARY_NAMES
from applecider_batch.features.profiles import get_profile
from applecider_batch.features.spectra_raster import CHANNELS
from applecider_batch.models import build_network, network_spec
from applecider_batch.models.card import PHOTOMETRY_CHANNELS, ModelCard, Statistics
from applecider_batch.models.manifest import IDENTITY_CALIBRATION, MANIFEST, save_set, write_network
from applecider_batch.storage import Store, json_bytes
from applecider_batch.taxonomy import CLASSES

if TYPE_CHECKING:
    from torch import Tensor, nn

# The networks in use for a profile, by modality.
MAIN_NETWORKS: dict[str, dict[str, str]] = {
    "paper": {"photometry": "cls_transformer", "image": "astrominn", "spectra": "spectranet"},
    "upstream-main": {"photometry": "cls_transformer", "image": "astrominn", "spectra": "spectranet"},
    "upstream-archive": {
        "photometry": "baseline_cls",
        "image": "xastrominn",
        "spectra": "spectranet_tripool",
    },
}

# Order of the spectra data set's nine classes (UPSTREAM); they become five by summing probabilities.
SPECTRA_CLASSES = ("AGN", "CV", "IIP", "IIb", "IIn", "Ia", "Ib", "Ic", "TDE")

# The learned gate that comes with the package: it knows nothing of the networks.
PACKAGED_GATE = Path(__file__).with_name("gate.safetensors")

# Round numbers of the size that ZTF alerts have: scales for an untrained network, not statistics of a
# training set.
NOMINAL_PHOTOMETRY = Statistics(mean=(3.0, 1.0, 2.0, 0.05), std=(1.5, 1.0, 0.7, 0.05))
NOMINAL_METADATA: dict[str, tuple[float, float] | None] = {
    "sgscore1": (0.5, 0.4), "sgscore2": (0.5, 0.4), "distpsnr1": (5.0, 5.0), "distpsnr2": (12.0, 7.0),
    "ra": None, "dec": None, "magpsf": (19.0, 1.5), "sigmapsf": (0.12, 0.06), "chinr": (0.8, 0.5),
    "sharpnr": (0.0, 0.3), "sky": (0.0, 1.0), "classtar": (0.8, 0.3), "ndethist": (50.0, 100.0),
    "ncovhist": (600.0, 600.0), "scorr": (15.0, 15.0), "nmtchps": (8.0, 8.0), "diffmaglim": (20.0, 0.7),
    "age": (100.0, 300.0), "nnondet": (550.0, 600.0), "peakmag_so_far": (18.5, 1.5),
}  # fmt: skip
METADATA_CLIP = 10.0


def seeded_state(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Untrained weights that depend on the parameters' names and the seed only.

    Tensors of two or more dimensions are normal with variance 1 / fan_in, the Time2Vec frequencies normal
    with variance 1/4; norm weights are 1, biases 0; layer scales and buffers stay as the network makes them.
    """
    import torch

    state = {}
    for name, tensor in network.state_dict().items():
        leaf = name.rpartition(".")[2]
        kept = leaf in ("gamma", "pe", "num_batches_tracked", "running_mean", "running_var")
        if kept or not tensor.is_floating_point():
            state[name] = tensor
            continue
        if tensor.ndim >= 2 or leaf in ("w", "w0"):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            scale = 0.5 if tensor.ndim < 2 else 1 / np.sqrt(np.prod(tensor.shape[1:], dtype=np.float64))
            state[name] = torch.from_numpy(
                (rng.standard_normal(tuple(tensor.shape)) * scale).astype(np.float32)
            )
        else:
            state[name] = torch.full(tensor.shape, 1.0 if leaf.endswith("weight") else 0.0)
    return state


def untrained_card(
    profile: str, network: str, *, name: str | None = None, config: Mapping[str, Any] | None = None
) -> ModelCard:
    """The card of a network with random weights; its statistics are nominal scales and say so."""
    spec = network_spec(profile, network)
    modality = spec.modality
    cfg = dict(config or {})
    classes: tuple[str, ...] = CLASSES
    features: tuple[str, ...] = ()
    normalisation: dict[str, Statistics | None] = {}
    if modality == "photometry":
        features, normalisation = PHOTOMETRY_CHANNELS, {"photometry": NOMINAL_PHOTOMETRY}
        if spec.reads_summary:
            features, normalisation = features + SUMMARY_NAMES, {**normalisation, "summary": None}
    elif modality == "image":
        features = tuple(cfg.get("feature_names", get_profile(profile).metadata_names))
        normalisation = {"metadata": _nominal(features) if profile == "paper" else None}
    elif modality == "spectra":
        if network != "spectranet_tripool":
            cfg.setdefault("n_classes", len(SPECTRA_CLASSES))
        classes = SPECTRA_CLASSES if cfg.get("n_classes") == len(SPECTRA_CLASSES) else CLASSES
        features = CHANNELS if spec.reads_pictures else ()
    else:
        raise UserError(
            f"The network '{network}' of '{profile}' ({modality}) is not one to begin a model set with."
        )
    return ModelCard(
        name=name or network,
        profile=profile,
        profile_digest=get_profile(profile).digest(),
        network=network,
        modality=modality,
        config=cfg,
        class_order=classes,
        feature_names=features,
        normalisation=normalisation,
        trained=False,
        training_data="none: random weights, nothing that they say means anything",
        notes="Statistics are nominal scales, not those of a training set.",
    )


def _nominal(features: tuple[str, ...]) -> Statistics:
    if unknown := [name for name in features if name not in NOMINAL_METADATA]:
        raise UserError(f"No nominal scale for the metadata {', '.join(unknown)}.")
    pairs = [NOMINAL_METADATA[name] for name in features]
    return Statistics(
        mean=tuple(None if p is None else p[0] for p in pairs),
        std=tuple(None if p is None else p[1] for p in pairs),
        clip=METADATA_CLIP,
    )


#: What a set that was begun and not finished has left.
_OWN = (".safetensors", ".card.json", "calibration.json")


def write_untrained(
    store: Store,
    profile: str,
    seed: int,
    *,
    name: str | None,
    configs: Mapping[str, Mapping[str, Any]],
    extra: tuple[str, ...],
) -> None:
    """Write the files of `model_set.init_model_set`; ``extra`` networks are not in use."""
    if profile not in MAIN_NETWORKS:
        raise UserError(f"Unknown profile '{profile}'; allowed: {', '.join(MAIN_NETWORKS)}.")
    if seed < 0:
        raise UserError(f"The seed must not be negative; given {seed}.")
    if store.exists(MANIFEST):
        raise UserError(
            f"There is a model set at '{store.url}' already.",
            hint=f"Choose another path, or look at it with 'applecider-batch models info {store.url}'.",
        )
    others = [name for name in store.ls() if not name.startswith(".") and not name.endswith(_OWN)]
    if others:
        raise UserError(
            f"'{store.url}' is not empty and no model set: it holds {', '.join(others[:3])}.",
            hint="Choose a new or empty folder.",
        )
    main = tuple(MAIN_NETWORKS[profile].values())
    if unknown := sorted(set(configs) - {*main, *extra}):
        raise UserError(f"Config for {', '.join(unknown)}, but the set gets {', '.join((*main, *extra))}.")
    # All cards first: a wish that cannot be met must not leave half a set.
    cards = [untrained_card(profile, n, config=configs.get(n)) for n in dict.fromkeys((*main, *extra))]
    items = [_write_seeded(store, card, seed, default=card.network in main) for card in cards]
    save_set(
        store,
        name=name or f"untrained-{profile}-seed{seed}",
        profile=profile,
        entries=items,
        calibration=json_bytes(IDENTITY_CALIBRATION),
        gate=PACKAGED_GATE.read_bytes(),
    )


def _write_seeded(store: Store, card: ModelCard, seed: int, *, default: bool) -> dict[str, Any]:
    import torch

    with torch.random.fork_rng(devices=[]):
        network = build_network(card.profile, card.network, **card.config)
    return write_network(store, card, seeded_state(network, seed), default=default)
