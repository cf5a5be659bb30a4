"""Upstream's checkpoint forms imported and classified with; every logit is computed a second time, by hand.

The second way (`tests.models.by_hand`) shares nothing with the pipeline but the networks, whose golden tests
are beside this file, and the packets.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.read import read_catalog
from applecider_batch.catalog.verify import verify_catalog
from applecider_batch.cli.main import run as command
from applecider_batch.engine import api
from applecider_batch.errors import UserError
from applecider_batch.models import build_network
from applecider_batch.models.importing import import_checkpoint
from applecider_batch.models.model_set import ModelSet, update_files
from applecider_batch.models.use import use_network
from applecider_batch.schema import load_answers
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES
from tests.models.by_hand import (
    NINE,
    PHOTOMETRY,
    Sky,
    five_of,
    image_of,
    metadata_of,
    photometry_of,
    spectrum_of,
)
from tests.models.golden import golden_checkpoint, seed_weights

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Checkpoint:
    """A file as upstream writes it: the golden spec of its weights and how it is packed."""

    spec: str
    network: str
    packing: str
    classes: list[str]
    same_as: str = ""  # network with the file's own parameter names, where the import renames them


SETS: dict[str, tuple[str, list[Checkpoint]]] = {
    "main": (
        "upstream-main",
        [
            Checkpoint("photo_cls", "cls_transformer", "module.pth", list(CLASSES)),
            Checkpoint("astrominn", "astrominn", "plain.pt", list(CLASSES)),
            Checkpoint("spectranet", "spectranet", "tensors.safetensors", NINE),
        ],
    ),
    "paper-era": (
        "upstream-main",
        [Checkpoint("photo_baselinecls", "cls_transformer", "nested.pth", list(CLASSES), "baseline_cls")],
    ),
    "archive": (
        "upstream-archive",
        [
            Checkpoint("photo_baselinecls", "baseline_cls", "plain.pt", list(CLASSES)),
            Checkpoint("xastrominn_d32", "xastrominn", "module.pth", list(CLASSES)),
            Checkpoint("spectranet_tripool", "spectranet_tripool", "nested.pth", list(CLASSES)),
        ],
    ),
    "archive, Informer": (
        "upstream-archive",
        [Checkpoint("informer", "informer", "nested.pth", list(CLASSES))],
    ),
    "archive, nine classes": (
        "upstream-archive",
        [Checkpoint("spectranet_archive", "spectranet", "tensors.safetensors", NINE)],
    ),
}
MODALITY = dict.fromkeys(("cls_transformer", "baseline_cls", "informer"), "phot")
MODALITY |= dict.fromkeys(("astrominn", "xastrominn"), "img")


# --- the pipeline


def pack(state: dict[str, Tensor], packing: str, folder: Path) -> Path:
    file = folder / packing
    if packing.startswith("module"):
        torch.save({"epoch": 7, "model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}}, file)
    elif packing.startswith("nested"):
        torch.save({"model_state_dict": state, "optimizer_state_dict": {"lr": [1e-3]}}, file)
    elif packing.endswith("safetensors"):
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file)
    return file


def networks_of(golden: Path, folder: Path, which: str) -> dict[str, tuple[nn.Module, Checkpoint]]:
    """Import the set's checkpoints; returns by modality the same network, built without the set."""
    profile, checkpoints = SETS[which]
    found = {}
    for c in checkpoints:
        modality = MODALITY.get(c.network, "spec")
        card: dict[str, Any] = {"class_order": c.classes}
        card |= {"phot": {"normalisation": PHOTOMETRY}, "img": {"normalisation": {"metadata": None}}}.get(
            modality, {}
        )
        file = pack(golden_checkpoint(golden, c.spec), c.packing, folder)
        report = import_checkpoint(file, profile, folder / "set", network=c.network, card=card)
        assert report["default"]
        assert set(report) == set(load_answers()["models import"])
        found[modality] = (seed_weights(build_network(profile, c.same_as or c.network)), c)
    return found


def by_hand(network: nn.Module, modality: str, sky: Sky, name: str, profile: str) -> np.ndarray:
    if modality == "phot":
        return network(*photometry_of(sky.packets[name]))[0].numpy()
    if modality == "img":
        return network(image_of(sky.packets[name], profile), metadata_of(sky.packets[name]))[0].numpy()
    return network(spectrum_of(sky.spectra[name], profile))[0].numpy()


@pytest.mark.parametrize("which", SETS)
def test_the_catalogue_holds_the_logits_computed_by_hand(
    sky: Sky, shared_golden: Path, tmp_path: Path, which: str
) -> None:
    networks = networks_of(shared_golden, tmp_path, which)
    result = api.classify(
        sky.url, str(tmp_path / "set"), str(tmp_path / "run"), horizons=(None,), device="cpu", progress=False
    )
    assert (result["state"], result["trained"], result["objects_in_error"]) == ("complete", True, 0)
    build_catalog(str(tmp_path / "run"), str(tmp_path / "catalogue"))
    assert verify_catalog(str(tmp_path / "catalogue"))["ok"]
    rows = [r for r in read_catalog(str(tmp_path / "catalogue")).to_dicts() if r["objectId"] in sky.packets]
    shutil.rmtree(tmp_path / "set")
    for modality, (network, checkpoint) in networks.items():
        compared = []
        for row in rows:
            logits = [row[f"logit_{modality}_{key}"] for key in CLASS_KEYS]
            if logits[0] is None:
                continue
            hand = five_of(
                by_hand(network, modality, sky, row["objectId"], SETS[which][0]), checkpoint.classes
            )
            scale = 2e-4 if modality == "img" else 5e-5
            np.testing.assert_allclose(logits, hand, rtol=scale, atol=scale, err_msg=row["objectId"])
            compared.append(row["objectId"])
        if modality == "spec":  # an object without t0 has no episode that a spectrum could belong to
            assert compared == [r["objectId"] for r in rows if r["objectId"] in sky.spectra and r["t0"]]
        assert len(compared) >= (2 if modality == "spec" else 5), f"{modality}: {compared}"


def test_the_network_in_use_is_chosen_in_the_set(
    sky: Sky, shared_golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, profile = tmp_path / "set", "upstream-main"
    for spec, network in (("photo_cls", "cls_transformer"), ("photo_baselinecls", "baseline_cls")):
        card = {"class_order": list(CLASSES), "normalisation": PHOTOMETRY}
        file = pack(golden_checkpoint(shared_golden, spec), "plain.pt", tmp_path)
        import_checkpoint(file, profile, folder, network=network, card=card)
    file = pack(golden_checkpoint(shared_golden, "photo_mpt"), "plain.pt", tmp_path)
    import_checkpoint(
        file, profile, folder, network="cls_transformer_mpt", card={"normalisation": PHOTOMETRY}
    )
    update_files(folder, calibration={"calibrated": True, "temperatures": {"photometry": 2.0}})
    before = ModelSet.load(folder)
    assert set(before.summary()) == set(load_answers()["models info"]) == set(load_answers()["models init"])
    assert before.defaults["photometry"].name == "baseline_cls"
    assert not use_network(folder, "baseline_cls")["changed"]
    assert ModelSet.load(folder).digest == before.digest, "nothing to change, nothing changed"

    assert command(["models", "use", str(folder), "cls_transformer", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == set(load_answers()["models use"])
    after = ModelSet.load(folder)
    assert (answer["instead_of"], answer["changed"]) == ("baseline_cls", True)
    assert answer["model_set_digest"] == after.digest != before.digest
    assert after.defaults["photometry"].name == "cls_transformer"
    assert not after.calibration["calibrated"], "temperatures belong to the network they were fitted with"
    with pytest.raises(UserError, match="has no network 'informer'"):
        use_network(folder, "informer")
    with pytest.raises(UserError, match="does not classify"):
        use_network(folder, "cls_transformer_mpt")
    assert ModelSet.load(folder).digest == after.digest

    api.classify(sky.url, str(folder), str(tmp_path / "run"), horizons=(None,), device="cpu", progress=False)
    build_catalog(str(tmp_path / "run"), str(tmp_path / "catalogue"))
    network_ = seed_weights(build_network(profile, "cls_transformer"))
    rows = read_catalog(str(tmp_path / "catalogue")).to_dicts()
    row = next(r for r in rows if r["objectId"] in sky.packets and r["logit_phot_sni"] is not None)
    np.testing.assert_allclose(
        [row[f"logit_phot_{key}"] for key in CLASS_KEYS],
        by_hand(network_, "phot", sky, row["objectId"], profile),
        rtol=5e-5,
        atol=5e-5,
    )
