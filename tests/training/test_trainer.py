"""Killed and started again, a training ends with the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from applecider_batch.errors import UserError
from applecider_batch.storage import Store
from applecider_batch.training.trainer import TrainerOptions, train

RULE = np.array([1.0, -2.0, 0.5], np.float32)


class Toy:
    """Logistic regression with dropout and random batches; ``pause`` seconds a batch."""

    score = "minus_loss"

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def batches(self, rng, batch_size):  # type: ignore[no-untyped-def]
        for _ in range(4):
            time.sleep(self.pause)
            x = rng.normal(size=(batch_size, 3)).astype(np.float32)
            yield {"x": x, "y": (x @ RULE > 0).astype(np.float32)}

    def loss(self, network, batch):  # type: ignore[no-untyped-def]
        out = network(batch["x"]).squeeze(-1)
        return nn.functional.binary_cross_entropy_with_logits(out, batch["y"])

    def evaluate(self, network):  # type: ignore[no-untyped-def]
        x = torch.from_numpy(np.random.default_rng(9).normal(size=(64, 3)).astype(np.float32))
        y = (x @ torch.from_numpy(RULE) > 0).float()
        return {self.score: -float(self.loss(network, {"x": x, "y": y}))}

    def head(self) -> tuple[str, ...]:
        return ("2.",)


def _run(folder: Path, pause: float = 0.0, epochs: int = 8, **options):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    settings = TrainerOptions(
        epochs=epochs, batch_size=16, learning_rate=1e-2, ema=0.9, cosine=True, patience=epochs, **options
    )
    return train(network, Toy(pause), settings, Store(folder))


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    folder = str(tmp_path / "cut")
    imports = "from pathlib import Path; from tests.training.test_trainer import _run"
    code = f"{imports}; _run(Path({folder!r}), 0.1)"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    limit = time.monotonic() + 60
    while not (tmp_path / "cut/checkpoint-train.pt").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    lines = (
        (tmp_path / "cut/metrics-train.jsonl").read_text().splitlines()
        if (tmp_path / "cut/metrics-train.jsonl").exists()
        else []
    )
    assert len(lines) < 8
    resumed = _run(tmp_path / "cut")
    assert resumed.best_epoch == whole.best_epoch
    for name, tensor in whole.state.items():
        assert torch.equal(tensor, resumed.state[name])
    assert (tmp_path / "cut/curves-train.png").read_bytes()[:4] == b"\x89PNG"
    assert len((tmp_path / "cut/metrics-train.jsonl").read_text().splitlines()) == 8


class OneClass(Toy):
    """Validates on one class: no AUC."""

    def evaluate(self, network):  # type: ignore[no-untyped-def]
        return {**super().evaluate(network), "macro_auc": float("nan")}


def test_a_measure_that_is_not_defined_is_left_out(tmp_path: Path) -> None:
    task, options = OneClass(), TrainerOptions(epochs=2)
    trained = train(nn.Linear(3, 1), task, options, Store(tmp_path / "some"))
    assert set(trained.best) == {"minus_loss"}
    lines = (tmp_path / "some/metrics-train.jsonl").read_text().splitlines()
    assert all(json.loads(line, parse_constant=pytest.fail)["epoch"] for line in lines)
    task.score = "macro_auc"
    with pytest.raises(UserError, match="Validation has no macro auc"):
        train(nn.Linear(3, 1), task, options, Store(tmp_path / "none"))


def test_another_training_is_refused(tmp_path: Path) -> None:
    _run(tmp_path, epochs=2)
    with pytest.raises(UserError, match="other data, network or options"):
        _run(tmp_path, epochs=3)


def test_it_learns_and_the_head_goes_first(tmp_path: Path) -> None:
    result = _run(tmp_path, epochs=12, head_epochs=2)
    assert result.history[0]["learning_rate_body"] == 0.0
    assert result.history[5]["learning_rate_body"] > 0
    assert result.best["minus_loss"] > result.history[0]["minus_loss"]
