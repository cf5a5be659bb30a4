"""Joint training: fusion as in a run, absent modalities masked, killed and resumed is undisturbed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.calibration import FUSED, Calibration
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.inference.marginal import REDSHIFT_SCALE, marginalise
from applecider_batch.models.model_set import ModelSet, init_model_set
from applecider_batch.schema import load_answers
from applecider_batch.storage import Store
from applecider_batch.training.answers import ask
from applecider_batch.training.dataset import load_dataset
from applecider_batch.training.joint import check_sides, joint_examples, train_joint
from applecider_batch.training.joint_task import (
    JointNetwork,
    JointTask,
    joint_batch,
    mean_over_trials,
    predict_joint,
)
from applecider_batch.training.labels import read_labels
from applecider_batch.training.setup import TrainingRequest
from applecider_batch.training.splits import SplitRule
from tests.engine.conftest import SMALL
from tests.training.conftest import Survey, kill_in_training

RULE = SplitRule(validation=0.3, test=0.2)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("networks") / "set"
    init_model_set(folder, seed=3, configs=SMALL)
    return str(folder)


def test_fused_as_in_a_run(survey: Survey, networks: str, tmp_path: Path) -> None:
    archive, labels, profile = Archive.open(survey.archive), read_labels(survey.labels), get_profile("paper")
    model_set = ModelSet.load(networks)
    entries = model_set.defaults
    dataset = load_dataset(archive, labels, profile, horizons=[10.0], modalities=list(entries)).split(RULE)
    examples = joint_examples(archive, dataset, profile, Store(tmp_path), list(entries), 1)
    present = np.stack([examples.items[m] >= 0 for m in entries], 1)
    assert len(np.unique(present, axis=0)) > 1  # several availability patterns
    cards = {m: e.card for m, e in entries.items()}
    network = JointNetwork({m: e.build() for m, e in entries.items()}, cards).eval()
    rows = np.arange(len(examples.label))
    with torch.inference_mode():
        found = predict_joint(network, examples, cards, rows)
    answers = ask(model_set, dataset, archive, device="cpu", threads=1)
    for what in (*entries, FUSED):
        want = answers.log_prob(what, Calibration())[:, 0]
        assert np.array_equal(np.isfinite(found[what]), np.isfinite(want))
        assert np.nan_to_num(found[what]) == pytest.approx(np.nan_to_num(want), abs=2e-5)

    # What an object lacks takes no part: its networks get no gradient from it.
    alone = np.flatnonzero(present.sum(1) == 2)[:1]
    lacking = next(m for m, there in zip(entries, present[alone[0]], strict=True) if not there)
    network.requires_grad_(True)
    batch = {k: torch.as_tensor(v) for k, v in joint_batch(examples, cards, alone).items()}
    JointTask(examples, cards).loss(network, batch).backward()
    touched = {m: any(p.grad is not None for p in network.networks[m].parameters()) for m in entries}
    assert touched == {m: m != lacking for m in entries}


def _train(folder: str, archive: str, labels: str, networks: str, **options: Any) -> dict[str, Any]:
    request = TrainingRequest(
        archive=archive,
        labels=labels,
        models=networks,
        out=f"{folder}/out",
        preset="compact",
        split=RULE,
        epochs=4,
    )
    return train_joint(request, result=f"{folder}/set", **options)


def test_killed_and_resumed_gives_the_same_weights(survey: Survey, networks: str, tmp_path: Path) -> None:
    whole = _train(str(tmp_path / "whole"), *survey, networks)
    kill_in_training(
        f"_train({str(tmp_path / 'cut')!r}, *{(*survey, networks)!r})",
        "from tests.training.test_joint import _train",
        tmp_path / "cut/out/checkpoint-train.pt",
    )
    assert not (tmp_path / "cut/set").exists()
    cut = _train(str(tmp_path / "cut"), *survey, networks)
    assert set(cut) == set(load_answers()["train joint"])
    assert cut["model_set_digest"] == whole["model_set_digest"]
    before, after = ModelSet.load(networks), ModelSet.load(tmp_path / "cut/set")
    for modality, entry in after.defaults.items():
        assert entry.card.trained
        old = before.defaults[modality].state_dict()
        assert any(not torch.equal(old[k], v) for k, v in entry.state_dict().items())

    # Objects that trained a network must not validate or test it under another split.
    labels = read_labels(survey.labels)
    dataset = load_dataset(Archive.open(survey.archive), labels, get_profile("paper"), horizons=[10.0])
    check_sides(dataset.split(RULE), after.defaults)
    with pytest.raises(UserError, match="trained the network"):
        check_sides(dataset.split(replace(RULE, seed=1)), after.defaults)


def test_too_few_modalities_and_its_own_set_are_refused(
    survey: Survey, networks: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="cannot write into it"):
        train_joint(
            TrainingRequest(archive=survey.archive, labels=survey.labels, models=networks, out=str(tmp_path)),
            result=networks,
        )
    with pytest.raises(UserError, match="at least 4 of them"):
        _train(str(tmp_path), *survey, networks, min_modalities=4)


def test_the_mean_over_trial_redshifts_is_that_of_a_run() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (9, 5)).astype(np.float32)
    redshift, offsets = rng.uniform(0, 0.3, 9), np.array([0, 1, 5, 9])
    energy = -np.logaddexp.reduce(logits, axis=1)
    want = log_softmax(marginalise(logits, logits, energy, redshift, offsets)[0])
    evidence = torch.as_tensor(-redshift / REDSHIFT_SCALE - energy)
    owner = torch.as_tensor(np.repeat(np.arange(3), np.diff(offsets)))
    found = mean_over_trials(torch.as_tensor(log_softmax(logits)), evidence, owner)
    assert found.numpy() == pytest.approx(want, abs=1e-5)
