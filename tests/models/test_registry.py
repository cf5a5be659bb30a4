"""The registry: every network is listed, built under its profile, and unknown names list the choices."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from applecider_batch.errors import UserError
from applecider_batch.models import CLASSIFYING, PROFILES, build_network, list_networks, network_spec

# Names of the issue and of UPSTREAM, by profile.
EXPECTED = {
    "paper": {"cls_transformer", "cls_transformer_mpt", "informer", "astrominn", "astrominn_compact",
              "convnext", "spectranet", "resnet1d", "spectra_image", "tabular_ensemble"},
    "upstream-main": {"cls_transformer", "cls_transformer_mpt", "baseline_cls", "astrominn", "convnext",
                      "spectranet", "spectranet_redshift"},
    "upstream-archive": {"baseline_cls", "informer", "xastrominn", "convnext", "spectranet",
                         "spectranet_redshift", "spectranet_tripool", "fusion_brew"},
}  # fmt: skip


def test_all_networks_are_listed() -> None:
    found: dict[str, set[str]] = {}
    for profile, name, modality in list_networks():
        found.setdefault(profile, set()).add(name)
        assert network_spec(profile, name).modality == modality
    assert found == EXPECTED
    assert tuple(found) == PROFILES


@pytest.mark.parametrize(("profile", "name", "modality"), list_networks())
def test_every_network_builds_and_keeps_the_common_interface(profile: str, name: str, modality: str) -> None:
    with torch.device("meta"):
        network = build_network(profile, name)
    assert network.training
    if modality in CLASSIFYING:
        assert callable(network.forward_with_latent)
        assert callable(network.embed)


def test_profiles_decide_what_callers_do_not() -> None:
    with torch.device("meta"):
        assert build_network("upstream-main", "convnext").backbone.stem[0].in_channels == 3
        assert build_network("upstream-archive", "convnext").backbone.stem[0].in_channels == 4
        assert build_network("upstream-archive", "convnext", in_chans=3).backbone.stem[0].in_channels == 3
        assert hasattr(build_network("upstream-main", "cls_transformer"), "head")
        assert not hasattr(build_network("paper", "cls_transformer"), "head")
        assert build_network("paper", "astrominn").config.router == "softmax"
        assert build_network("upstream-main", "astrominn").config.router == "sigmoid"
        assert build_network("upstream-archive", "informer").config.upstream_form


@pytest.mark.parametrize(
    ("profile", "name", "match"),
    [
        ("papers", "astrominn", "Unknown profile 'papers'; allowed: paper, upstream-main, upstream-archive"),
        ("paper", "resnet", "has no network 'resnet'; it has cls_transformer, .*spectra_image"),
        ("paper", "xastrominn", "'xastrominn' belongs to upstream-archive"),
    ],
)
def test_unknown_names_list_the_choices(profile: str, name: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        build_network(profile, name)


@pytest.mark.parametrize("cfg", [{"d_modell": 3}, {"d_model": 30}])
def test_unusable_options_are_a_users_error(cfg: dict[str, int]) -> None:
    with pytest.raises(UserError, match="d_model"):
        build_network("paper", "cls_transformer", **cfg)


def test_registry_does_not_import_torch() -> None:
    code = (
        "import sys; from applecider_batch.models import list_networks; list_networks();"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
