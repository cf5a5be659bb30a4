"""The networks, by profile and name.

>>> from applecider_batch.models import build_network, list_networks
>>> network = build_network("paper", "cls_transformer")        # doctest: +SKIP

A profile (``paper``, ``upstream-main``, ``upstream-archive``) fixes architecture and inputs; under the two
upstream profiles the state-dict names are upstream's. Modules are imported when a network is built, not
before.

Modalities: ``photometry`` forward(events (B, L, 7), mask (B, L) True = real), and summary numbers (B, F) for
``tabular_ensemble``; ``image`` forward(images (B, C, S, S), metadata (B, F)); ``spectra`` forward(spectrum
(B, 1, N)), a rendered spectrum (B, 3, 288, 288) for ``spectra_image``; ``fusion`` takes all of them. Networks
of these modalities return class logits (B, C) and offer ``forward_with_latent`` and ``embed``.
``pretraining``, ``redshift`` and ``image_tower`` networks do not classify.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from applecider_batch.errors import UserError

if TYPE_CHECKING:
    from torch import nn

PROFILES = ("paper", "upstream-main", "upstream-archive")
CLASSIFYING = ("photometry", "image", "spectra", "fusion")


@dataclass(frozen=True)
class NetworkSpec:
    """Where and with what a network is built; ``fixed``: what the profile decides, callers may change it.

    ``reads_summary``: it wants the summary numbers of light curves beside their events.
    ``reads_pictures``: it wants spectra drawn by `features.spectra_raster`, not their flux.
    """

    modality: str
    module: str
    builder: str = "build"
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    reads_pictures: bool = False
    reads_summary: bool = False


_BOTH_HEADS = {"classifier": "fc+head"}
_HEAD = {"classifier": "head"}
_MPT = NetworkSpec("pretraining", "photometry", "build_pretraining")
_NETWORKS: dict[tuple[str, str], NetworkSpec] = {
    ("paper", "cls_transformer"): NetworkSpec("photometry", "photometry"),
    ("paper", "cls_transformer_mpt"): _MPT,
    ("paper", "informer"): NetworkSpec("photometry", "informer"),
    ("paper", "tabular_ensemble"): NetworkSpec("photometry", "tabular_ensemble", reads_summary=True),
    ("paper", "astrominn"): NetworkSpec("image", "astrominn", "build_paper"),
    ("paper", "astrominn_compact"): NetworkSpec("image", "astrominn_compact"),
    ("paper", "convnext"): NetworkSpec("image_tower", "convnext", fixed={"in_chans": 4}),
    ("paper", "spectranet"): NetworkSpec("spectra", "spectranet", "build_paper"),
    ("paper", "resnet1d"): NetworkSpec("spectra", "resnet1d"),
    ("paper", "spectra_image"): NetworkSpec("spectra", "spectra_image", reads_pictures=True),
    ("upstream-main", "cls_transformer"): NetworkSpec("photometry", "photometry", fixed=_BOTH_HEADS),
    ("upstream-main", "cls_transformer_mpt"): _MPT,
    ("upstream-main", "baseline_cls"): NetworkSpec("photometry", "photometry", fixed=_HEAD),
    ("upstream-main", "astrominn"): NetworkSpec("image", "astrominn", "build_upstream"),
    ("upstream-main", "convnext"): NetworkSpec("image_tower", "convnext", fixed={"in_chans": 3}),
    ("upstream-main", "spectranet"): NetworkSpec("spectra", "spectranet"),
    ("upstream-main", "spectranet_redshift"): NetworkSpec("redshift", "spectranet", fixed={"redshift": True}),
    ("upstream-archive", "baseline_cls"): NetworkSpec("photometry", "photometry", fixed=_HEAD),
    ("upstream-archive", "informer"): NetworkSpec("photometry", "informer", fixed={"upstream_form": True}),
    ("upstream-archive", "xastrominn"): NetworkSpec("image", "astrominn", "build_upstream", {"in_chans": 4}),
    ("upstream-archive", "convnext"): NetworkSpec("image_tower", "convnext", fixed={"in_chans": 4}),
    ("upstream-archive", "spectranet"): NetworkSpec("spectra", "spectranet", "build_archive"),
    ("upstream-archive", "spectranet_redshift"): NetworkSpec(
        "redshift", "spectranet", "build_archive", {"redshift": True}
    ),
    ("upstream-archive", "spectranet_tripool"): NetworkSpec(
        "spectra", "spectranet", "build_tripool", {"n_classes": 5}
    ),
    ("upstream-archive", "fusion_brew"): NetworkSpec("fusion", "fusion_brew"),
}


def list_networks() -> list[tuple[str, str, str]]:
    """All networks as (profile, name, modality), in the order of the profiles."""
    return [(profile, name, spec.modality) for (profile, name), spec in _NETWORKS.items()]


def network_spec(profile: str, name: str) -> NetworkSpec:
    """What the registry knows about a network.

    Raises
    ------
    UserError
        If the profile or the name is unknown; lists the choices.
    """
    if profile not in PROFILES:
        raise UserError(f"Unknown profile '{profile}'; allowed: {', '.join(PROFILES)}.")
    if spec := _NETWORKS.get((profile, name)):
        return spec
    own = [n for p, n in _NETWORKS if p == profile]
    elsewhere = [p for p, n in _NETWORKS if n == name]
    raise UserError(
        f"The profile '{profile}' has no network '{name}'; it has {', '.join(own)}.",
        hint=f"'{name}' belongs to {', '.join(elsewhere)}." if elsewhere else None,
    )


def build_network(profile: str, name: str, **cfg: Any) -> nn.Module:
    """Build a network with fresh weights.

    Parameters
    ----------
    profile : str
        ``paper``, ``upstream-main`` or ``upstream-archive``.
    name : str
        A name of :func:`list_networks` under that profile.
    **cfg
        Fields of the network's config dataclass, over what the profile says.

    Returns
    -------
    torch.nn.Module
        In training mode; state-dict names are upstream's under the upstream profiles.

    Raises
    ------
    UserError
        For an unknown profile, network or option, or values that contradict each other.
    """
    spec = network_spec(profile, name)
    module = importlib.import_module(f"applecider_batch.models.{spec.module}")
    try:
        network: nn.Module = getattr(module, spec.builder)(**(dict(spec.fixed) | cfg))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The network '{name}' of '{profile}' cannot be built with {cfg}: {error}."
        ) from error
    return network
