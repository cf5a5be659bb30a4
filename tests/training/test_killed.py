"""Trainings of light curves and spectra, killed and run again, end with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from applecider_batch.training.photometry import train_photometry
from applecider_batch.training.setup import TrainingRequest
from applecider_batch.training.spectra import train_spectra
from applecider_batch.training.splits import SplitRule
from tests.training.conftest import Survey, kill_in_training

TRAININGS: dict[str, Any] = {
    "pretrained": (train_photometry, {"pretrain_epochs": 2}),
    "unfrozen": (train_photometry, {"head_epochs": 1}),
    "tabular_ensemble": (train_photometry, {"network": "tabular_ensemble"}),
    "resnet1d": (train_spectra, {"network": "resnet1d"}),
}


def _train(name: str, folder: str, survey: tuple[str, str]) -> dict[str, Any]:
    function, options = TRAININGS[name]
    request = TrainingRequest(
        archive=survey[0],
        labels=survey[1],
        models=f"{folder}/set",
        out=f"{folder}/out",
        preset="compact",
        split=SplitRule(validation=0.2, test=0.2),
        epochs=2,
    )
    return dict(function(request, **options))


@pytest.mark.parametrize("name", TRAININGS)
def test_killed_and_resumed_gives_the_same_weights(name: str, survey: Survey, tmp_path: Path) -> None:
    whole = _train(name, str(tmp_path / "whole"), survey)
    kill_in_training(
        f"_train({name!r}, {str(tmp_path / 'cut')!r}, {tuple(survey)!r})",
        "from tests.training.test_killed import _train",
        tmp_path / f"cut/out/checkpoint-{'pretrain' if name == 'pretrained' else 'train'}.pt",
    )
    assert not (tmp_path / "cut/set").exists()
    cut = _train(name, str(tmp_path / "cut"), survey)
    assert cut["weights_sha256"] == whole["weights_sha256"]
    assert cut["model_set_digest"] == whole["model_set_digest"]
