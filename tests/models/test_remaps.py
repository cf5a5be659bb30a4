"""The named remaps: prefixes, head or fc, other names of ConvNeXt, image channels, metadata columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from applecider_batch.errors import UserError
from applecider_batch.features.profiles import UPSTREAM_METADATA
from applecider_batch.models import build_network
from applecider_batch.models.model_set import ModelSet
from tests.models.checkpoints import (
    CARD,
    FIVE,
    RAW,
    TINY,
    classes,
    run,
    save,
    small_state,
    stored,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_prefixes_are_removed_and_reported(tmp_path: Path) -> None:
    state = small_state()
    file = save(tmp_path / "m.pt", {f"module._orig_mod.model.{k}": v for k, v in state.items()})
    report = run(file)
    assert [line.split(" removed")[0] for line in report["remaps"]] == [
        "prefix 'module.'",
        "prefix '_orig_mod.'",
        "prefix 'model.'",
    ]
    assert torch.equal(stored(file)["in_proj.weight"], state["in_proj.weight"])


@pytest.mark.parametrize(
    ("profile", "has_fc", "asked", "uses", "unused"),
    [
        ("paper", False, None, "head", []),
        ("paper", True, None, "head", ["fc.weight", "fc.bias"]),
        ("paper", True, "fc", "fc", ["head.weight", "head.bias"]),
        ("upstream-main", False, None, "head", []),
        ("upstream-main", True, None, "fc", []),
        ("upstream-main", True, "head", "head", ["fc.weight", "fc.bias"]),
    ],
)
def test_head_or_fc(
    tmp_path: Path, profile: str, has_fc: bool, asked: str | None, uses: str, unused: list[str]
) -> None:
    state = small_state()
    kept = {k: v for k, v in state.items() if has_fc or not k.startswith("fc.")}
    file = save(tmp_path / "m.pt", kept)
    remap = {"remap": {"classifier": asked}} if asked else {}
    report = run(file, profile, CARD | remap, network="cls_transformer")
    assert torch.equal(stored(file)["fc.weight"], state[f"{uses}.weight"])
    assert torch.equal(stored(file)["fc.bias"], state[f"{uses}.bias"])
    assert report["unused"] == unused
    assert any("head -> fc" in line for line in report["remaps"]) == (uses == "head")


def convnext_names(state: dict[str, Tensor], flavour: str) -> dict[str, Tensor]:
    """timm's names to the original's or torchvision's, written by hand for two stages of one block."""
    rename = {
        "facebook": {
            "stem.0": "downsample_layers.0.0",
            "stem.1": "downsample_layers.0.1",
            "stages.1.downsample.0": "downsample_layers.1.0",
            "stages.1.downsample.1": "downsample_layers.1.1",
            "stages.S.blocks.0.gamma": "stages.S.0.gamma",
            "stages.S.blocks.0.conv_dw": "stages.S.0.dwconv",
            "stages.S.blocks.0.norm": "stages.S.0.norm",
            "stages.S.blocks.0.mlp.fc1": "stages.S.0.pwconv1",
            "stages.S.blocks.0.mlp.fc2": "stages.S.0.pwconv2",
            "head.norm": "norm",
        },
        "torchvision": {
            "stem.0": "features.0.0",
            "stem.1": "features.0.1",
            "stages.1.downsample.0": "features.2.0",
            "stages.1.downsample.1": "features.2.1",
            "stages.S.blocks.0.gamma": "features.T.0.layer_scale",
            "stages.S.blocks.0.conv_dw": "features.T.0.block.0",
            "stages.S.blocks.0.norm": "features.T.0.block.2",
            "stages.S.blocks.0.mlp.fc1": "features.T.0.block.3",
            "stages.S.blocks.0.mlp.fc2": "features.T.0.block.5",
            "head.norm": "classifier.0",
        },
    }[flavour]
    out = {}
    for name, tensor in state.items():
        new = name
        for old, other in rename.items():
            for stage in "01":
                a = old.replace("S", stage)
                b = other.replace("S", stage).replace("T", "13"[int(stage)])
                if name.startswith((f"backbone.{a}.", f"backbone.{a}")) and name == new:
                    new = name.replace(f"backbone.{a}", f"backbone.{b}", 1)
        if flavour == "torchvision" and new.endswith("layer_scale"):
            tensor = tensor[:, None, None]
        out[new] = tensor
    assert set(out) != set(state)
    return out


@pytest.mark.parametrize("flavour", ["facebook", "torchvision"])
def test_convnext_under_other_names(tmp_path: Path, flavour: str) -> None:
    state = small_state("upstream-main", "convnext", **TINY)
    file = save(tmp_path / "m.pt", convnext_names(state, flavour))
    report = run(file, card={"config": TINY}, network="convnext")
    assert any("timm's" in line for line in report["remaps"])
    assert all(torch.equal(stored(file, "convnext")[k], v) for k, v in state.items())


def test_stem_channels_only_as_the_card_says(tmp_path: Path) -> None:
    three = small_state("upstream-main", "astrominn", **TINY)
    file = save(tmp_path / "m.pt", three)
    card = classes(FIVE, RAW, **TINY)
    with pytest.raises(UserError, match=r"stem\.0\.weight \(8, 3, 4, 4\) instead of \(8, 4, 4, 4\)"):
        run(file, "upstream-archive", card, network="xastrominn")
    for channels, match in (
        ([0, 1], "4 channel numbers"),
        ([0, 1, 2, 3], "0..2"),
        ("all", "4 channel numbers"),
    ):
        with pytest.raises(UserError, match=match):
            run(file, "upstream-archive", card | {"remap": {"stem_channels": channels}}, network="xastrominn")
    report = run(
        file, "upstream-archive", card | {"remap": {"stem_channels": [2, 0, 1, -1]}}, network="xastrominn"
    )
    assert any("channels [2, 0, 1, -1] of 3" in line for line in report["remaps"])
    images = torch.randn(2, 4, 49, 49, dtype=torch.float64)
    metadata = torch.randn(2, 24, dtype=torch.float64)
    plain = build_network("upstream-main", "astrominn", **TINY).eval()
    plain.load_state_dict(three)
    plain.double()
    ours = ModelSet.load(tmp_path / "set").entry("xastrominn").build().double()
    assert torch.allclose(ours(images, metadata), plain(images[:, [1, 2, 0]], metadata), rtol=1e-9)


def test_other_columns_by_name(tmp_path: Path) -> None:
    """A card that names the columns in another order makes the same network read the right features."""
    file = save(tmp_path / "m.pt", small_state("upstream-main", "astrominn", **TINY))
    shuffled = np.random.default_rng(3).permutation(24)
    names = [UPSTREAM_METADATA[i] for i in shuffled]
    mean = [float(i) for i in shuffled]
    card = classes(FIVE, {"metadata": {"mean": mean, "std": [2.0] * 24}}, **TINY)
    run(file, card=card | {"feature_names": names})
    entry = ModelSet.load(tmp_path / "set").entry("astrominn")
    assert entry.card.feature_names == UPSTREAM_METADATA
    assert entry.card.normalisation["metadata"].mean == tuple(map(float, range(24)))
    images = torch.randn(2, 3, 49, 49, dtype=torch.float64)
    metadata = torch.randn(2, 24, dtype=torch.float64)
    trained = build_network("upstream-main", "astrominn", **TINY).eval()
    trained.load_state_dict(entry.state_dict())
    trained.double()
    ours = entry.build().double()
    assert torch.allclose(ours(images, metadata), trained(images, metadata[:, shuffled.tolist()]), rtol=1e-9)


def test_columns_that_the_profile_does_not_deliver_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt", small_state("upstream-main", "astrominn", **TINY))
    names = [n.replace("nnondet", "rb") for n in UPSTREAM_METADATA]
    with pytest.raises(UserError, match="read rb, which the profile 'upstream-main' does not deliver"):
        run(file, card=classes(FIVE, RAW, **TINY) | {"feature_names": names})
    with pytest.raises(UserError, match="24 columns; the card names 2"):
        run(file, card=classes(FIVE, RAW, **TINY) | {"feature_names": ["ra", "dec"]})
