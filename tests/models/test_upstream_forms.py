"""Every upstream form, imported, gives its golden outputs from the set."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from applecider_batch.models.importing import import_checkpoint
from applecider_batch.models.model_set import ModelSet
from tests.models.checkpoints import (
    FIVE,
    NINE,
    PHOTOMETRY,
    RAW,
    classes,
)
from tests.models.golden import (
    RTOL_F32,
    RTOL_F32_RAW_METADATA,
    SEED,
    excess,
    golden_checkpoint,
)

pytestmark = pytest.mark.usefixtures("one_thread")


ROWS = 2  # enough to see the function; the whole batches are in the networks' own tests

Arrays = Mapping[str, np.ndarray]


def seeded_images(step: int, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(SEED + step).standard_normal(shape).astype(np.float32))[
        :ROWS
    ]


def tensors(arrays: Arrays, *names: str) -> list[Tensor]:
    return [torch.from_numpy(arrays[n][:ROWS].copy()) for n in names]


def events(network: nn.Module, arrays: Arrays) -> Tensor:
    return network(*tensors(arrays, "x"), torch.from_numpy(~arrays["pad_mask"][:ROWS]))


def masked_events(network: nn.Module, arrays: Arrays) -> Tensor:
    """Predicted flux of the real events; padded rows have no meaning and are taken as recorded."""
    real = torch.from_numpy(~arrays["pad_mask"][:ROWS])
    return torch.where(
        real[..., None], network(*tensors(arrays, "x"), real)[0], torch.from_numpy(arrays["flux_hat"][:ROWS])
    )


def informer(network: nn.Module, arrays: Arrays) -> Tensor:
    return network(*tensors(arrays, "x"), torch.from_numpy(arrays["mask"][:ROWS]) > 0.5)


def stamps(network: nn.Module, arrays: Arrays) -> Tensor:
    return network(*tensors(arrays, "images", "metadata"))


def four_channels(network: nn.Module, arrays: Arrays) -> Tensor:
    return network(seeded_images(41, (10, 4, 63, 63)), *tensors(arrays, "metadata"))


def tower(channels: int) -> Callable[[nn.Module, Arrays], Tensor]:
    return lambda network, _: network(seeded_images(30 + 100 * channels + 49, (8, channels, 49, 49)))


def spectra(network: nn.Module, arrays: Arrays) -> Tensor:
    return network(*tensors(arrays, "L4096_x"))


def everything(network: nn.Module, arrays: Arrays) -> Tensor:
    real = torch.from_numpy(~arrays["pad_mask"][:ROWS])
    x, metadata, spectrum = tensors(arrays, "photometry", "metadata", "spectra")
    return network(x, real, seeded_images(72, (4, 4, 49, 49)), metadata, spectrum)


@dataclass(frozen=True)
class Form:
    """A checkpoint as upstream would have written it, and what it must give."""

    spec: str
    profile: str
    network: str
    arrays: str
    output: str
    run: Callable[[nn.Module, Arrays], Tensor]
    card: dict[str, Any] = field(default_factory=dict)
    rtol: float = RTOL_F32


MPT = {"normalisation": PHOTOMETRY}
ALL = PHOTOMETRY | RAW
FORMS = {
    "photo_cls": Form(
        "photo_cls",
        "upstream-main",
        "cls_transformer",
        "photo_cls",
        "logits",
        events,
        classes(FIVE, PHOTOMETRY),
    ),
    "photo_cls newer file, paper": Form(
        "photo_cls", "paper", "cls_transformer", "photo_cls", "head_logits", events, classes(FIVE, PHOTOMETRY)
    ),
    "photo_baselinecls, paper-era": Form(
        "photo_baselinecls",
        "paper",
        "cls_transformer",
        "photo_cls",
        "head_logits",
        events,
        classes(FIVE, PHOTOMETRY),
    ),
    "photo_baselinecls": Form(
        "photo_baselinecls",
        "upstream-main",
        "baseline_cls",
        "photo_cls",
        "head_logits",
        events,
        classes(FIVE, PHOTOMETRY),
    ),
    "photo_mpt": Form(
        "photo_mpt", "upstream-main", "cls_transformer_mpt", "photo_mpt", "flux_hat", masked_events, MPT
    ),
    "informer": Form(
        "informer",
        "upstream-archive",
        "informer",
        "informer",
        "full_logits",
        informer,
        classes(FIVE, PHOTOMETRY, seq_len=96),
    ),
    "astrominn": Form(
        "astrominn",
        "upstream-main",
        "astrominn",
        "astrominn",
        "a63_logits",
        stamps,
        classes(FIVE, RAW),
        RTOL_F32_RAW_METADATA,
    ),
    "xastrominn_d32": Form(
        "xastrominn_d32",
        "upstream-archive",
        "xastrominn",
        "xastrominn",
        "d32_px63_logits",
        four_channels,
        classes(FIVE, RAW),
        RTOL_F32_RAW_METADATA,
    ),
    "xastrominn_d4": Form(
        "xastrominn_d4",
        "upstream-archive",
        "xastrominn",
        "xastrominn",
        "d4_px63_logits",
        four_channels,
        classes(FIVE, RAW, towers_outdims=4, fusion_outdims=4),
        RTOL_F32_RAW_METADATA,
    ),
    "convnext_c3": Form("convnext_c3", "upstream-main", "convnext", "convnext_c3", "px49_out", tower(3)),
    "convnext_c4": Form("convnext_c4", "upstream-archive", "convnext", "convnext_c4", "px49_out", tower(4)),
    "spectranet": Form(
        "spectranet", "upstream-main", "spectranet", "spectranet", "L4096_logits", spectra, classes(NINE)
    ),
    "spectranet, archive's names": Form(
        "spectranet_archive",
        "upstream-main",
        "spectranet",
        "spectranet",
        "L4096_archive_logits",
        spectra,
        classes(NINE),
    ),
    "spectranet_archive": Form(
        "spectranet_archive",
        "upstream-archive",
        "spectranet",
        "spectranet",
        "L4096_archive_logits",
        spectra,
        classes(NINE),
    ),
    "spectranet, main's names": Form(
        "spectranet", "upstream-archive", "spectranet", "spectranet", "L4096_logits", spectra, classes(NINE)
    ),
    "spectranet_redshift": Form(
        "spectranet_redshift", "upstream-main", "spectranet_redshift", "spectranet", "L4096_redshift", spectra
    ),
    "spectranet_archive_redshift": Form(
        "spectranet_archive_redshift",
        "upstream-archive",
        "spectranet_redshift",
        "spectranet",
        "L4096_archive_redshift_softplus",
        spectra,
    ),
    "spectranet_tripool": Form(
        "spectranet_tripool",
        "upstream-archive",
        "spectranet_tripool",
        "spectranet",
        "tripool_logits",
        spectra,
        classes(FIVE),
    ),
    "fusion_brew_avg": Form(
        "fusion_brew_avg",
        "upstream-archive",
        "fusion_brew",
        "fusion_brew",
        "avg_logits",
        everything,
        classes(FIVE, ALL),
    ),
    "fusion_brew_concat": Form(
        "fusion_brew_concat",
        "upstream-archive",
        "fusion_brew",
        "fusion_brew",
        "concat_logits",
        everything,
        classes(FIVE, ALL, fusion="concat"),
    ),
}
# How checkpoints are wrapped in the wild, dealt out over the forms.
WRAPPERS: list[Callable[[dict[str, Tensor]], Any]] = [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {
        "epoch": 1,
        "model_state_dict": OrderedDict(state),
        "optimizer_state_dict": {"lr": [1e-3]},
    },
    lambda state: {"model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}},
]


@pytest.mark.parametrize(("name", "form"), FORMS.items(), ids=list(FORMS))
def test_every_upstream_form_gives_its_golden_outputs_from_the_set(
    shared_golden: Path, tmp_path: Path, name: str, form: Form
) -> None:
    state = golden_checkpoint(shared_golden, form.spec)
    number = list(FORMS).index(name)
    if number % 3 == 2:
        file = tmp_path / "model.safetensors"
        safetensors.torch.save_file(state, file)
    else:
        file = tmp_path / ("model.pt" if number % 3 else "model.pth")
        torch.save(WRAPPERS[number % 4](state), file)
    report = import_checkpoint(
        file, form.profile, tmp_path / "set", network=form.network, card=form.card, name="it"
    )
    assert report["missing"] == report["unexpected"] == report["shape_mismatches"] == []
    loaded = ModelSet.load(tmp_path / "set")
    entry = loaded.entry("it")
    assert entry.card.trained
    assert entry.default == (entry.modality in ("photometry", "image", "spectra")) == report["default"]
    assert report["model_set_digest"] == loaded.digest
    with np.load(shared_golden / f"{form.arrays}.npz") as data:
        arrays = dict(data)
    assert excess(form.run(entry.build(), arrays), arrays[form.output][:ROWS], form.rtol) <= 1


@pytest.mark.parametrize("spec", ["photo_cls", "photo_baselinecls", "spectranet_redshift", "convnext_c3"])
def test_the_network_is_found_by_its_names(shared_golden: Path, tmp_path: Path, spec: str) -> None:
    form = FORMS[spec]
    torch.save(golden_checkpoint(shared_golden, form.spec), tmp_path / "model.pt")
    report = import_checkpoint(tmp_path / "model.pt", form.profile, tmp_path / "set", card=form.card)
    assert report["network"] == report["name"] == form.network
