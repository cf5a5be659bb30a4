"""Rendered-spectrum ConvNeXt: shapes, names, picture types, batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from applecider_batch.errors import UserError
from applecider_batch.models.spectra_image import SpectraImageNet, build
from tests.models.golden import seed_weights


def small(**cfg: Any) -> SpectraImageNet:
    torch.manual_seed(0)
    return seed_weights(build(**({"image_size": 64, "dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)} | cfg)))


def test_tiny_has_timms_names_and_288_pixels() -> None:
    network = build(depths=(1, 1, 1, 1)).eval()
    names = network.state_dict()
    assert tuple(names["backbone.stem.0.weight"].shape) == (96, 3, 4, 4)
    assert tuple(names["fc.weight"].shape) == (9, 768)
    assert not {"mean", "std"} & set(names)
    with torch.no_grad():
        logits, latent = network.forward_with_latent(torch.rand(1, 3, 288, 288))
    assert logits.shape == (1, 9)
    assert latent.shape == (1, 768)


def test_bytes_and_fractions_are_one_picture() -> None:
    network = small()
    picture = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.allclose(network(picture), network(picture.float() / 255), atol=1e-6)
    assert network.double()(picture).dtype == torch.float64


def test_imagenet_statistics_are_taken_off() -> None:
    network = small()
    average = network.mean.expand(1, 3, 64, 64)
    assert torch.allclose(network.embed(average), network.backbone(torch.zeros(1, 3, 64, 64)), atol=1e-6)


def test_batch_of_one_is_batch_of_many() -> None:
    network = small().double()
    pictures = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    together = network(pictures)
    assert torch.allclose(network(pictures[2:3]), together[2:3], atol=1e-12)
    assert not torch.allclose(together[0], together[1], atol=1e-6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="at least 32 pixels"):
        build(image_size=16)
    with pytest.raises(ValueError, match="pictures must be"):
        small()(torch.zeros(1, 1, 64, 64))
