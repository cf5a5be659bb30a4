"""Every test of the networks draws the same numbers, alone or among others; one archive serves all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.by_hand import Sky, make_sky


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20180201)


@pytest.fixture(scope="session")
def sky(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sky:
    """An archive of real packets and spectra, and what is in it."""
    return make_sky(shared_data, tmp_path_factory.mktemp("sky"))
