"""Every test of the networks draws the same numbers, alone or among others; one archive serves all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.models.by_hand import Sky, make_sky


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20180201)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Inference on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Emptied at once: checkpoints are large, and pytest keeps its folders for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def sky(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sky:
    """An archive of real packets and spectra, and what is in it."""
    return make_sky(shared_data, tmp_path_factory.mktemp("sky"))
