"""Import of checkpoints into a set: strict names and shapes, the report, and what becomes of the set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from applecider_batch.errors import UserError
from applecider_batch.models.importing import import_checkpoint
from applecider_batch.models.model_set import ModelSet, init_model_set, update_files
from applecider_batch.models.set_checks import verify_model_set
from tests.models.checkpoints import (
    CARD,
    FIVE,
    NINE,
    SMALL,
    TINY,
    classes,
    run,
    save,
    small_state,
    stored,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
