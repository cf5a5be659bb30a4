"""Pictures of spectra in a run: chosen in the set, drawn batch by batch, recomputed one by one by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.read import read_catalog
from applecider_batch.engine import api
from applecider_batch.errors import UserError
from applecider_batch.features.loess import loess
from applecider_batch.features.spectra_raster import CHANNELS, render_spectra
from applecider_batch.inference.predictor import Predictor
from applecider_batch.inference.shard import LocalPort, infer
from applecider_batch.models import build_network
from applecider_batch.models.importing import import_checkpoint
from applecider_batch.models.model_set import ModelSet, init_model_set
from applecider_batch.models.set_checks import verify_model_set
from applecider_batch.models.use import use_network
from applecider_batch.taxonomy import CLASS_KEYS
from tests.engine.conftest import SMALL
from tests.features.test_spectra_raster import matplotlib_ink
from tests.models.by_hand import NINE, Sky, five_of, spectrum_of
from tests.models.golden import golden_state, seed_weights

MIDDLE: dict[str, Any] = {"depths": [1, 1, 2, 1], "dims": [32, 64, 96, 128]}
TINY: dict[str, Any] = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


def imported(folder: Path, **config: Any) -> ModelSet:
    """A set with the network of pictures alone, brought in from a checkpoint."""
    file = folder / "pictures.pt"
    torch.save(golden_state(build_network("paper", "spectra_image", n_classes=9, **config)), file)
    report = import_checkpoint(file, "paper", folder / "set", card={"class_order": NINE, "config": config})
    assert (report["network"], report["default"]) == ("spectra_image", True)
    return ModelSet.load(folder / "set")


def test_the_catalogue_holds_the_logits_of_each_picture(sky: Sky, tmp_path: Path) -> None:
    imported(tmp_path, **MIDDLE)
    result = api.classify(
        sky.url, str(tmp_path / "set"), str(tmp_path / "run"), horizons=(None,), device="cpu", progress=False
    )
    assert (result["state"], result["objects_in_error"]) == ("complete", 0)
    build_catalog(str(tmp_path / "run"), str(tmp_path / "catalogue"))
    rows = {r["objectId"]: r for r in read_catalog(str(tmp_path / "catalogue")).to_dicts()}
    network = seed_weights(build_network("paper", "spectra_image", n_classes=9, **MIDDLE))
    compared = 0
    for name, spectrum in sky.spectra.items():
        if not rows[name]["t0"]:  # no episode that a spectrum could belong to
            continue
        got = np.array([rows[name][f"logit_spec_{key}"] for key in CLASS_KEYS])
        # The paper's grid is the archived upstream's.
        flux = spectrum_of(spectrum, "upstream-archive")[0].numpy()  # (1, 4096)
        picture = torch.from_numpy(render_spectra(flux))
        with torch.inference_mode():
            by_hand = five_of(network(picture)[0].numpy(), NINE)
            np.testing.assert_allclose(got, by_hand, rtol=5e-5, atol=5e-5, err_msg=name)
            drawn = [matplotlib_ink(y) for y in (flux[0], *loess(flux, (0.05, 0.1))[:, 0])]
            mpl = five_of(network(torch.from_numpy(np.stack(drawn)[None]))[0].numpy(), NINE)
            others = [
                five_of(network(other.contiguous())[0].numpy(), NINE)
                for other in (picture.flip(1), picture.flip(2), picture.flip(3), 255 - picture)
            ]
        # Matplotlib's pictures say the same; mirrored ones, negatives and swapped channels do not.
        off = np.abs(mpl - got).max()
        assert off < min(np.abs(other - got).max() for other in others) / 3, (name, off)
        compared += 1
    assert compared >= 2


def test_no_more_than_a_batch_of_pictures_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made when their batch is due, of the card's size, and need no neighbours."""
    model_set = imported(tmp_path, image_size=64, **TINY)
    assert model_set.entry("spectra_image").card.feature_names == CHANNELS
    assert model_set.picture_size == 64
    rng = np.random.default_rng(1)
    flux = rng.normal(size=(23, 4096)).cumsum(1).astype(np.float32)
    made: list[int] = []

    def counted(values: np.ndarray, **options: Any) -> np.ndarray:
        made.append(len(values))
        return render_spectra(values, **options)

    monkeypatch.setattr("applecider_batch.inference.batches.render_spectra", counted)
    port = LocalPort(Predictor(model_set.defaults["spectra"]))
    open_now = itertools.count(1)

    class Watched:
        def submit(self, batch: Any) -> Any:
            assert len(made) <= next(open_now), "pictures were drawn before their batch was due"
            assert batch["x"].shape[1:] == (3, 64, 64)
            assert batch["x"].dtype == np.uint8
            return port.submit(batch)

        def result(self, handle: Any) -> Any:
            return port.result(handle)

    def run(size: int, which: np.ndarray) -> np.ndarray:
        known = {"redshift": np.zeros(len(which), np.float32), "offsets": np.arange(len(which) + 1)}
        prepared = SimpleNamespace(spectra=SimpleNamespace(flux=which, **known))
        outputs = infer(
            prepared, lambda _: None, {"spectra": Watched()}, batch_size={"spectra": size}, picture_size=64
        )
        return outputs.logits["spectra"]

    together = run(8, flux)
    assert made == [8, 8, 7]
    made.clear()
    open_now = itertools.count(1)
    np.testing.assert_allclose(run(1, flux), together, rtol=1e-5, atol=1e-5)
    made.clear()
    open_now = itertools.count(1)
    np.testing.assert_allclose(run(5, flux[::-1]), together[::-1], rtol=1e-5, atol=1e-5)
    assert run(8, flux[:0]).shape == (0, 5)


def test_it_is_put_into_use_beside_the_main_network(tmp_path: Path) -> None:
    init_model_set(tmp_path / "set", networks=("spectra_image",), configs={**SMALL, "spectra_image": TINY})
    assert ModelSet.load(tmp_path / "set").picture_size is None
    assert use_network(tmp_path / "set", "spectra_image")["instead_of"] == "spectranet"
    chosen = ModelSet.load(tmp_path / "set")
    assert chosen.defaults["spectra"].card.network == "spectra_image"
    assert chosen.picture_size == 288
    assert verify_model_set(tmp_path / "set")["verified"]
    answer = Predictor(chosen.defaults["spectra"]).run({"x": np.zeros((2, 3, 288, 288), np.uint8)})
    assert answer["logits"].shape == (2, 5)
    assert np.isfinite(answer["logits"]).all()


def test_a_card_with_other_channels_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pictures.pt"
    torch.save(build_network("paper", "spectra_image", n_classes=9, **TINY).state_dict(), file)
    card = {"class_order": NINE, "config": TINY, "feature_names": ["raw", "raw", "raw"]}
    with pytest.raises(UserError, match=r"picture channels are raw, loess_0\.05, loess_0\.1"):
        import_checkpoint(file, "paper", tmp_path / "set", card=card)
