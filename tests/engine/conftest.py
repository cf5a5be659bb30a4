"""A small simulated archive and a model set of small networks, made once for the engine's tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SMALL: dict[str, dict[str, Any]] = {
    "cls_transformer": {"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 32},
    "astrominn": {"depths": [1, 1], "dims": [8, 16]},
    "spectranet": {"widths": [4, 4, 4, 4, 4], "hidden": [16, 8], "kernels": [[3, 5, 7]] * 5},
}


class Inputs(NamedTuple):
    """Where the archive and the model set lie."""

    archive: str
    models: str


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """30 simulated objects over 20 nights, in two ingests, with spectra; networks of all modalities."""
    from applecider_batch.archive.ingest import ingest
    from applecider_batch.models.model_set import init_model_set
    from applecider_batch.simulate import simulate

    folder = tmp_path_factory.mktemp("inputs")
    survey = simulate(folder / "survey", n_objects=30, n_nights=20, seed=5)
    nights = [str(night) for night in survey["nights"]]
    archive = str(folder / "archive")
    ingest(nights[:10], archive)
    ingest(nights[10:], archive, spectra=[str(folder / "survey" / "spectra.parquet")])
    init_model_set(folder / "models", seed=2, configs=SMALL)
    return Inputs(archive, str(folder / "models"))


@pytest.fixture(scope="session")
def not_updated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a catalogue and of an archive to which nights came since."""
    from tests.engine import nightly

    folder = tmp_path_factory.mktemp("nightly")
    nightly.make(folder)
    return folder


@pytest.fixture(scope="session")
def updated(not_updated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after an update that nothing disturbed."""
    from tests.engine import nightly

    folder = tmp_path_factory.mktemp("updated") / "a"
    shutil.copytree(not_updated, folder)
    assert nightly.update_of(folder)["changed"]
    return folder
