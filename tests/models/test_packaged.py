"""The packaged model set: it is whole, small and trained, and nobody's test object trained it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from applecider_batch.errors import UserError
from applecider_batch.models.manifest import PACKAGED
from applecider_batch.models.model_set import ModelSet, update_files
from applecider_batch.models.set_checks import verify_model_set
from applecider_batch.models.use import copy_set, use_network
from applecider_batch.training.splits import development_part

NAME = "compact"


def test_it_is_whole_and_small_and_trained() -> None:
    assert verify_model_set(NAME)["problems"] == []
    assert sum(path.stat().st_size for path in (PACKAGED / NAME).iterdir()) < 20_000_000
    model_set = ModelSet.load(NAME)
    assert model_set.trained
    assert set(model_set.defaults) == {"photometry", "image", "spectra"}
    assert model_set.anomaly_file is not None
    assert model_set.gate is not None
    assert {"photometry", "image", "spectra", "fused"} <= model_set.calibration["temperature"].keys()


def test_weights_in_half_precision_become_single() -> None:
    for entry in ModelSet.load(NAME).entries:
        assert all(p.dtype != torch.float16 for p in entry.build().state_dict().values())


def test_the_card_says_what_it_must_not_be_used_for() -> None:
    card = (PACKAGED / NAME / "README.md").read_text(encoding="utf-8")
    assert "What it must not be used for" in card
    assert "simulations alone" in card
    assert ModelSet.load(NAME).model_set_id in card


def test_it_is_copied_and_not_changed(tmp_path: Path) -> None:
    before = ModelSet.load(NAME).digest
    with pytest.raises(UserError, match="comes with the package") as refused:
        update_files(NAME, calibration={"temperature": {"fused": 2.0}})
    assert "models init MODELS --from compact" in str(refused.value.hint)
    assert ModelSet.load(NAME).digest == before
    copy = copy_set(NAME, tmp_path / "mine")
    assert copy.digest == before
    update_files(tmp_path / "mine", calibration={"temperature": {"fused": 2.0}})
    assert ModelSet.load(tmp_path / "mine").calibration == {"temperature": {"fused": 2.0}}
    with pytest.raises(UserError, match="already"):
        copy_set(NAME, tmp_path / "mine")
    assert not use_network(NAME, ModelSet.load(NAME).defaults["image"].name)["changed"]


def test_no_held_back_object_trained_it(shared_data: Path) -> None:
    curves = pl.read_parquet(shared_data / "lightcurves/ztf_objects.parquet").select("objectId", "object_key")
    spectra = pl.read_parquet(shared_data / "spectra/spectra.parquet", columns=["object", "object_key"])
    both = pl.concat([curves, spectra.rename({"object": "objectId"})]).unique()
    held_back = {name for name, key in both.iter_rows() if development_part(key) == 2}
    ids, known = ModelSet.load(NAME).training_ids()
    assert known
    assert len(ids & set(both["objectId"])) > 1000
    assert not ids & held_back
