"""Small checkpoints and cards to import, and what every test of an import shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from applecider_batch.models import build_network
from applecider_batch.models.importing import import_checkpoint
from applecider_batch.models.model_set import ModelSet
from applecider_batch.taxonomy import CLASSES

NINE = ["AGN", "CV", "IIP", "IIb", "IIn", "Ia", "Ib", "Ic", "TDE"]
FIVE = list(CLASSES)
PHOTOMETRY = {"photometry": {"mean": [1.0, 2.0, 3.0, 4.0], "std": [1.0, 1.0, 2.0, 2.0]}}
RAW = {"metadata": None}


def classes(order: list[str], normalisation: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    card: dict[str, Any] = {"class_order": order}
    return (
        card
        | ({"normalisation": normalisation} if normalisation else {})
        | ({"config": config} if config else {})
    )


SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 32}
CARD = classes(FIVE, PHOTOMETRY, **SMALL)
TINY = {"depths": [1, 1], "dims": [8, 16]}


def small_state(
    profile: str = "upstream-main", name: str = "cls_transformer", **cfg: Any
) -> dict[str, Tensor]:
    network = build_network(profile, name, **(cfg or SMALL))
    gen = torch.Generator().manual_seed(1)
    return {
        k: torch.randn(v.shape, generator=gen) if v.is_floating_point() else v
        for k, v in network.state_dict().items()
    }


def save(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def run(file: Path, profile: str = "upstream-main", card: Any = CARD, **options: Any) -> dict[str, Any]:
    return import_checkpoint(file, profile, file.parent / "set", card=card, **options)


def stored(file: Path, name: str = "cls_transformer") -> dict[str, Tensor]:
    return ModelSet.load(file.parent / "set").entry(name).state_dict()
