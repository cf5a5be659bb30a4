"""Import of checkpoints: every upstream form gives its golden outputs from the set; the rest is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.features.profiles import UPSTREAM_METADATA
from applecider_batch.models import build_network
from applecider_batch.models.importing import import_checkpoint
from applecider_batch.models.model_set import ModelSet, init_model_set, update_files, verify_model_set
from applecider_batch.taxonomy import CLASSES
from tests.models.golden import (
    RTOL_F32,
    RTOL_F32_RAW_METADATA,
    SEED,
    excess,
    golden_values,
    load_spec,
)

NINE = ["AGN", "CV", "IIP", "IIb", "IIn", "Ia", "Ib", "Ic", "TDE"]
FIVE = list(CLASSES)
PHOTOMETRY = {"photometry": {"mean": [1.0, 2.0, 3.0, 4.0], "std": [1.0, 1.0, 2.0, 2.0]}}
RAW = {"metadata": None}
ROWS = 2  # enough to see the function; the whole batches are in the networks' own tests

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Emptied at once: the checkpoints are large, and pytest keeps its folders for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


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


def classes(order: list[str], normalisation: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    card: dict[str, Any] = {"class_order": order}
    return (
        card
        | ({"normalisation": normalisation} if normalisation else {})
        | ({"config": config} if config else {})
    )


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


def golden_checkpoint(golden: Path, spec: str) -> dict[str, Tensor]:
    """A state dict made from the rule and the recorded names, without any network of ours."""
    document = load_spec(golden, spec)
    state = {}
    for entry in document["entries"]:
        values = golden_values(entry["name"], tuple(entry["shape"]), document["salt"])
        if values is not None:
            state[entry["name"]] = torch.from_numpy(np.ascontiguousarray(values))
        elif entry["name"].endswith("num_batches_tracked"):
            state[entry["name"]] = torch.zeros((), dtype=torch.int64)
        else:  # fixed positions, as the model makes them
            state[entry["name"]] = build_network("upstream-archive", "informer").state_dict()[entry["name"]]
    return state


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


# --- small checkpoints from here on -------------------------------------------------------------------------

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


class Evil:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, command: Callable[..., Any], *arguments: Any) -> None:
        self.call = (command, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", ["alone", "beside weights", "nested"])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, suffix: str, legacy: bool, inside: str
) -> None:
    trace = tmp_path / "it ran"
    evil = Evil(os.mkdir, str(trace))
    state: dict[str, Any] = small_state()
    content = {
        "alone": evil,
        "beside weights": state | {"fc.bias": evil},
        "nested": {"state_dict": state, "hyper_parameters": {"f": [evil]}},
    }[inside]
    file = tmp_path / f"model{suffix}"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"was refused: it is a pickle .*mkdir") as caught:
        run(file)
    assert not trace.exists()
    assert not (tmp_path / "set").exists()
    assert caught.value.exit_code == 4
    torch.load(file, weights_only=False)  # the file really is dangerous
    assert trace.exists()


def test_a_bare_pickle_and_a_whole_module_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(os.mkdir, str(trace))))
    with pytest.raises(UserError, match="refused"):
        run(tmp_path / "bare.pt")
    assert not trace.exists()
    with pytest.raises(UserError, match=r"refused.*Linear.*state_dict\(\)"):
        run(save(tmp_path / "module.pt", nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.bin", b"", r"allowed: \.pt, \.pth, \.safetensors"),
        ("a.pt", b"not a checkpoint at all", "refused|not a readable"),
        ("a.pt", b"", "not a readable|refused"),
        ("a.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00not json........", "not a readable safetensors"),
        ("a.safetensors", b"", "not a readable safetensors"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match):
        run(tmp_path / name)


def test_absent_truncated_and_empty_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no checkpoint file"):
        run(tmp_path / "nowhere.pt")
    file = save(tmp_path / "model.pt", small_state())
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(UserError, match="not a readable torch checkpoint"):
        run(file)
    for content in ({}, {"epoch": 3}, [torch.zeros(2)], {"state_dict": {}}):
        with pytest.raises(UserError, match="holds no state dict"):
            run(save(tmp_path / "model.pt", content))
    with pytest.raises(UserError, match="entries that are not tensors: best_score"):
        run(save(tmp_path / "model.pt", small_state() | {"best_score": 0.9}))


def test_report_of_a_plain_import(tmp_path: Path) -> None:
    state = small_state()
    file = save(tmp_path / "m.pt", {"model_state_dict": state, "epoch": 5, "optimizer": {}})
    report = run(file, card=CARD | {"training_data": "ZTF 2018-2020", "metrics": {"accuracy": 0.88}})
    assert json.loads(json.dumps(report)) == report
    assert report["container"] == "model_state_dict"
    assert report["ignored"] == ["epoch", "optimizer"]
    assert report["remaps"] == report["unused"] == report["cast"] == []
    assert report["from_profile"] == ["feature_names"]
    assert report["class_map"] == {c: c for c in FIVE}
    assert all(torch.equal(stored(file)[k], v) for k, v in state.items())
    card = ModelSet.load(tmp_path / "set").entry("cls_transformer").card
    assert card.training_data == "ZTF 2018-2020"
    assert card.metrics == {"accuracy": 0.88}
    assert card.normalisation["photometry"].mean == (1.0, 2.0, 3.0, 4.0)
    assert verify_model_set(tmp_path / "set")["verified"]


# --- remaps -------------------------------------------------------------------------------------------------


def test_prefixes_are_removed_and_reported(tmp_path: Path) -> None:
    state = small_state()
    file = save(tmp_path / "m.pt", {f"module._orig_mod.{k}": v for k, v in state.items()})
    report = run(file)
    assert [line.split(" removed")[0] for line in report["remaps"]] == [
        "prefix 'module.'",
        "prefix '_orig_mod.'",
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


# --- refusals -----------------------------------------------------------------------------------------------


def test_names_and_shapes_are_strict(tmp_path: Path) -> None:
    state = small_state()
    del state["norm.bias"]
    state["norm.weight"] = torch.zeros(5)
    state["surprise"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        run(save(tmp_path / "m.pt", state), network="cls_transformer")
    text = str(caught.value)
    assert "1 missing: norm.bias" in text
    assert "1 unexpected: surprise" in text
    assert "1 of another shape: norm.weight (5,) instead of (16,)" in text
    assert not (tmp_path / "set").exists()


def test_weights_that_are_not_finite_are_refused_and_half_precision_is_cast(tmp_path: Path) -> None:
    state = small_state()
    file = save(tmp_path / "m.pt", {k: v.half() for k, v in state.items()})
    assert len(run(file)["cast"]) == len(state)
    assert stored(file)["norm.bias"].dtype == torch.float32
    state["norm.bias"][3] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinite weights in norm\.bias"):
        run(save(tmp_path / "m.pt", state), replace=True)


def without(card: dict[str, Any], *path: str) -> dict[str, Any]:
    copy = json.loads(json.dumps(card))
    at = copy
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return copy


@pytest.mark.parametrize(
    ("card", "match"),
    [
        (None, r"lacks: class_order, normalisation\.photometry \(mean and std\)"),
        (without(CARD, "class_order"), r"cannot be completed; it lacks: class_order\."),
        (without(CARD, "normalisation"), r"it lacks: normalisation\.photometry"),
        (without(CARD, "normalisation", "photometry", "std"), r"it lacks: normalisation\.photometry\.std"),
        (CARD | {"class_order": FIVE[:4]}, "no output for TDE"),
        (CARD | {"class_order": [*FIVE, "SLSN-I"]}, r"fc\.weight \(5, 16\) instead of \(6, 16\)"),
        (CARD | {"class_order": [*FIVE[:4], "thing"], "class_map": {"thing": "Tde"}}, "cannot be assigned"),
        (CARD | {"class_map": [[1, 0, 0, 0, 0]] * 5}, "one class at most|without an output"),
        (CARD | {"profile": "paper"}, "The card says profile = 'paper'"),
        (CARD | {"network": "baseline_cls"}, "The card says network = 'baseline_cls'"),
        (CARD | {"weights": "x"}, "written by the import"),
        (CARD | {"class_orders": []}, "unknown fields: class_orders"),
        (CARD | {"feature_names": ["flux"]}, "The photometry channels are"),
        (CARD | {"missing_value": 0.0}, r"missing_value 0\.0 differs from -999"),
        (CARD | {"remap": {"guess": True}}, "Unknown remap guess"),
        (CARD | {"remap": {"stem_channels": [0]}}, "no image stem"),
        (CARD | {"normalisation": PHOTOMETRY | RAW}, "normalisation of metadata"),
        (CARD | {"config": SMALL | {"n_layers": 2}}, r"missing: encoder\.layers\.1"),
    ],
)
def test_a_card_that_cannot_be_completed_is_refused(tmp_path: Path, card: Any, match: str) -> None:
    if card is None:
        card = {"config": SMALL}
    with pytest.raises(UserError, match=match):
        run(save(tmp_path / "m.pt", small_state()), card=card, network="cls_transformer")
    assert not (tmp_path / "set" / "model_set.toml").exists()


def test_image_cards_must_say_whether_metadata_are_raw(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt", small_state("upstream-main", "astrominn", **TINY))
    with pytest.raises(UserError, match=r'lacks: normalisation\.metadata \(mean and std, or "none"'):
        run(file, card=classes(FIVE, **TINY))
    (tmp_path / "card.toml").write_text(
        f"class_order = {json.dumps(FIVE)}\n[config]\ndepths = [1, 1]\ndims = [8, 16]\n"
        '[normalisation]\nmetadata = "none"\n'
    )
    run(file, card=tmp_path / "card.toml")
    assert ModelSet.load(tmp_path / "set").entry("astrominn").card.normalisation == {"metadata": None}


def test_cards_from_files(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt", small_state())
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    run(file, card=tmp_path / "card.json")
    for name, text, match in (
        ("absent.toml", None, "There is no card"),
        ("bad.toml", "= 1", "neither TOML"),
        ("bad.json", "{", "neither TOML"),
        ("list.json", "[]", "must be an object"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=match):
            run(file, card=tmp_path / name, replace=True)


def test_nine_classes_are_summed_from_an_imported_set(tmp_path: Path) -> None:
    cfg = {"widths": [4, 4, 4, 4, 4], "kernels": [[3, 5]] * 5}
    file = save(tmp_path / "m.pt", small_state("upstream-main", "spectranet", **cfg))
    report = run(file, card=classes(NINE, **cfg))
    assert report["class_map"]["Ib"] == "SN I"
    assert report["class_map"]["IIn"] == "SN II"
    entry = ModelSet.load(tmp_path / "set").entry("spectranet")
    logits = entry.build()(torch.randn(3, 1, 3481))
    p = logits.softmax(1).double().numpy()
    five = np.exp(entry.card.to_five(logits.numpy()).astype(float))
    assert np.allclose(five[:, 0], p[:, [5, 6, 7]].sum(1), atol=1e-6)


def test_unclear_networks_and_names_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt", {"something.weight": torch.zeros(3, 3)})
    with pytest.raises(
        UserError, match=r"fit no network of the profile 'paper'.*--network .*: cls_transformer"
    ):
        run(file, "paper")
    with pytest.raises(UserError, match="Unknown profile 'papers'"):
        run(file, "papers")
    with pytest.raises(UserError, match="has no network 'resnet'"):
        run(file, network="resnet")
    good = save(tmp_path / "m.pt", small_state())
    with pytest.raises(UserError, match="is no name for a network"):
        run(good, name="../up")


# --- the set ------------------------------------------------------------------------------------------------


def test_import_into_an_existing_set(tmp_path: Path) -> None:
    tiny = {"spectranet": {"widths": [4] * 5, "kernels": [[3]] * 5, "hidden": [8, 8]}, "astrominn": TINY}
    made = init_model_set(tmp_path / "set", configs={**tiny, "cls_transformer": SMALL})
    update_files(tmp_path / "set", calibration=made.calibration | {"calibrated": True}, anomaly=("a", b"x"))
    file = save(tmp_path / "m.pt", small_state("paper"))
    with pytest.raises(UserError, match="has a network 'cls_transformer' already"):
        run(file, "paper")
    assert run(file, "paper", name="aside", default=False)["default"] is False
    kept = ModelSet.load(tmp_path / "set")
    assert kept.calibration["calibrated"] is True
    assert kept.anomaly_file == "a"
    assert run(file, "paper", name="trained")["default"] is True
    loaded = ModelSet.load(tmp_path / "set")
    assert loaded.defaults["photometry"].name == "trained"
    assert [e.name for e in loaded.networks["photometry"]] == ["trained", "aside", "cls_transformer"]
    assert loaded.trained is False  # the other two are not
    # Temperatures and the anomaly reference were fitted with another network.
    assert loaded.calibration["calibrated"] is False
    assert loaded.anomaly_file is None
    run(file, "paper", name="trained", replace=True)
    assert len(ModelSet.load(tmp_path / "set").entries) == 5


def test_a_network_of_another_profile_is_kept_aside(tmp_path: Path) -> None:
    run(save(tmp_path / "m.pt", small_state("paper")), "paper", name="first")
    file = save(tmp_path / "m.pt", small_state())
    assert run(file, name="second")["default"] is False
    with pytest.raises(UserError, match="prepares inputs of the profile 'paper'"):
        run(file, name="third", default=True)
    loaded = ModelSet.load(tmp_path / "set")
    assert loaded.profile == "paper"
    assert loaded.defaults["photometry"].name == "first"


def test_equal_imports_give_equal_bytes(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt", small_state())
    for name in ("one", "two"):
        import_checkpoint(file, "upstream-main", tmp_path / name / "set", card=CARD)
    digests = {ModelSet.load(tmp_path / n / "set").digest for n in ("one", "two")}
    assert len(digests) == 1


def test_training_ids_travel_with_the_network(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pt", small_state())
    (tmp_path / "ids.txt").write_text("ZTF18aaaaaaa\nZTF19 b\n\nZTF18aaaaaaa\n")
    (tmp_path / "card.json").write_text(json.dumps(CARD | {"training_ids": "ids.txt"}))
    run(file, card=tmp_path / "card.json")
    found = ModelSet.load(file.parent / "set")
    assert found.training_ids() == (frozenset({"ZTF18aaaaaaa", "ZTF19 b"}), True)
    run(file, name="other", replace=True)
    assert ModelSet.load(file.parent / "set").training_ids() == (frozenset(), False)
    (file.parent / "set" / f"{found.entries[0].name}.training_ids.txt").write_text("ZTF20changed\n")
    with pytest.raises(UserError, match="was changed"):
        found.training_ids()
    with pytest.raises(UserError, match="cannot be read"):
        run(file, card=CARD | {"training_ids": "/nowhere/ids.txt"}, replace=True)
