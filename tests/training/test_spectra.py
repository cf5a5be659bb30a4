"""Spectra: loading by name, resolution, edges, and a training by its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.cli.main import run
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.models.model_set import ModelSet
from applecider_batch.training.labels import label_table
from applecider_batch.training.setup import TrainingRequest
from applecider_batch.training.spectra import SpectraTask, train_spectra
from applecider_batch.training.spectra_data import at_resolution, load_spectra
from applecider_batch.training.spectra_vary import SpectraAugmentation, vary_spectra
from applecider_batch.training.splits import SplitRule

PAPER = get_profile("paper")


def test_resolution_widens_a_line_and_keeps_what_is_not_covered() -> None:
    low, high, n = PAPER.spectrum_grid
    flux = np.zeros((1, n), np.float32)
    flux[0, 500:3500] = 1.0
    flux[0, 2000] = 100.0
    out = at_resolution(flux, PAPER, 100.0)[0]
    assert (out[:500] == 0).all()
    assert (out[3500:] == 0).all()
    above = np.flatnonzero(out > (out.max() + np.median(out[out != 0])) / 2)
    width = (above[-1] - above[0] + 1) * (high - low) / (n - 1)
    assert width == pytest.approx((low + high) / 2 / 100, rel=0.05)


def test_varied_spectra_are_standardised_and_stay_inside_their_coverage() -> None:
    rng = np.random.default_rng(0)
    flux = np.zeros((8, 1000), np.float32)
    flux[:, 200:900] = rng.normal(size=(8, 700))
    augmentation = SpectraAugmentation(redshift=0)
    out, wrong = vary_spectra(flux, augmentation, np.random.default_rng(1), 1e-3)
    assert not wrong.any()
    assert (out[:, :200] == 0).all()
    assert any((row[200:900] == 0).any() for row in out)  # blanked edges
    for row in out:
        assert row[row != 0].std() == pytest.approx(1, abs=1e-3)
    assert (out == vary_spectra(flux, augmentation, np.random.default_rng(1), 1e-3)[0]).all()


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, pl.DataFrame]:
    """A few real spectra as an archive, and their labels."""
    folder = tmp_path_factory.mktemp("spectra")
    table = pl.read_parquet(shared_data / "spectra/spectra.parquet")
    ours = pl.col("class10").is_in(["SN Ia", "SN II"]) & (pl.col("flux_kind") == "flux")
    few = table.filter(ours).sort("object", "mjd").group_by("class10", maintain_order=True).head(25)
    flattened = table.filter(pl.col("flux_kind") != "flux").head(2)
    kept = pl.concat([few, flattened.select(few.columns)])
    kept.write_parquet(folder / "spectra.parquet")
    kept.select("object", "object_key", "class10").unique("object", maintain_order=True).write_parquet(
        folder / "labels.parquet"
    )
    ingest([], str(folder / "archive"), spectra=[str(folder / "spectra.parquet")])
    return str(folder / "archive"), str(folder / "labels.parquet"), kept


def test_real_spectra_are_labelled_by_name_and_split_by_object(real: tuple[str, str, pl.DataFrame]) -> None:
    table = real[2].select("object", "object_key", "class10").unique("object")
    labels = label_table(pa.table(table.to_arrow()), class_set="ten")
    data = load_spectra(Archive.open(real[0]), labels, PAPER).split(SplitRule(validation=0.2, test=0.2))
    assert data.left_out["continuum removed"] == 2
    assert 40 <= len(data) <= 50
    sides = {(g, p) for g, p in zip(data.group.tolist(), data.part.tolist(), strict=True)}
    assert len(sides) == len({g for g, _ in sides})
    known = np.isfinite(data.redshift) & (data.redshift > 0.01)
    assert (data.flux[known] != data.flux_unknown[known]).any(1).all()


def test_resnet_interrupted_and_resumed_ends_with_the_same_weights(
    real: tuple[str, str, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, **asked: Any) -> dict[str, Any]:
        out, models = str(tmp_path / name), str(tmp_path / f"{name}-set")
        request = TrainingRequest(
            archive=real[0], labels=real[1], out=out, models=models, preset="compact", epochs=2
        )
        return train_spectra(request, **{"network": "resnet1d", **asked})

    undisturbed = train("whole")
    evaluate = SpectraTask.evaluate

    def cut_short(task: SpectraTask, network: Any) -> dict[str, float]:
        if (tmp_path / "cut/checkpoint-train.pt").exists():
            raise KeyboardInterrupt
        return evaluate(task, network)

    with monkeypatch.context() as patch:
        patch.setattr(SpectraTask, "evaluate", cut_short)
        with pytest.raises(KeyboardInterrupt):
            train("cut")
    assert train("cut")["weights_sha256"] == undisturbed["weights_sha256"]
    entry = ModelSet.load(tmp_path / "cut-set").defaults["spectra"]
    assert entry.card.network == "resnet1d"

    # What goes on from these weights begins where they ended, and counts what trained them.
    other = pl.read_parquet(real[1])
    other.filter(pl.int_range(pl.len()) % 3 > 0).write_parquet(tmp_path / "other.parquet")
    real = (real[0], str(tmp_path / "other.parquet"), real[2])
    train("on", start=str(tmp_path / "whole-set"))
    first, later = (
        json.loads((tmp_path / name / "metrics-train.jsonl").read_text().splitlines()[0])
        for name in ("whole", "on")
    )
    assert later["loss"] < first["loss"] - 0.1
    ids, known = ModelSet.load(tmp_path / "on-set").training_ids()
    assert known
    assert ids > ModelSet.load(tmp_path / "whole-set").training_ids()[0]
    with pytest.raises(UserError, match="cannot start from 'resnet1d'"):
        train("off", network="spectranet", start=str(tmp_path / "whole-set"))
    assert entry.build()(torch.zeros(1, 1, 4096)).shape == (1, 10)


def test_a_wrong_redshift_is_shown_and_told() -> None:
    flux = np.zeros((400, 512), np.float32)
    flux[:, 100:400] = 1e-3
    flux[:, 250] = 50.0
    quiet = SpectraAugmentation(redshift=0, wrong=0.5, edge_share=0, noise=0, tilt=0, blur_share=0)
    out, wrong = vary_spectra(flux, quiet, np.random.default_rng(0), 0.002)
    assert 0.4 < wrong.mean() < 0.6
    error = np.abs(out.argmax(1) - 250) * 0.002
    assert (error[~wrong] == 0).all()
    assert error[wrong].min() >= 0.01
    assert error[wrong].max() <= 0.25


def test_train_spectra(
    real: tuple[str, str, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "spectra", "--archive", real[0], "--labels", real[1], "--out", str(tmp_path / "out")]
    command += ["--models", str(tmp_path / "set"), "--preset", "compact", "--epochs", "1", "--quiet"]
    assert run([*command, "--format", "json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run([*command, "--format", "json"]) == 0  # nothing left to do: the same weights
    assert json.loads(capsys.readouterr().out)["weights_sha256"] == first["weights_sha256"]
    card = ModelSet.load(tmp_path / "set").defaults["spectra"].card
    assert card.trained
    assert len(card.class_order) == 10
    assert np.array(card.class_map).sum() == 10
