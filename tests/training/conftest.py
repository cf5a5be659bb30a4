"""A small simulated archive with its labels, made once for all trainings' tests, and how to kill one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest


class Survey(NamedTuple):
    """Where archive and label table lie."""

    archive: str
    labels: str


@pytest.fixture(scope="session")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """90 simulated objects over 24 nights with spectra; the truth table is the label table."""
    from applecider_batch.archive.ingest import ingest
    from applecider_batch.simulate import simulate

    folder = tmp_path_factory.mktemp("training")
    made = simulate(folder / "survey", n_objects=90, n_nights=24, seed=4)
    spectra = str(folder / "survey/spectra.parquet")
    ingest([str(night) for night in made["nights"]], str(folder / "archive"), spectra=[spectra])
    return Survey(str(folder / "archive"), str(folder / "survey/truth.parquet"))


def kill_in_training(call: str, imports: str, checkpoint: Path) -> None:
    """Run a training in a process of its own and kill it after its first checkpoint.

    Each checkpoint is followed by a pause, so that the kill falls in the middle of the training.
    """
    slow = (
        "import time; from applecider_batch.training import trainer\n"
        "save = trainer._Loop._save\n"
        "trainer._Loop._save = lambda self: (save(self), time.sleep(1))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", f"{slow}{imports}\n{call}"], cwd=Path(__file__).parents[2]
    )
    limit = time.monotonic() + 120
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    assert child.poll() is None, "the training ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
