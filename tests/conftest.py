"""Fixtures for all tests: where the real data lie, and nothing that a test could hide behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Threads of the numerical libraries: two cores are shared by everything the tests start.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "2")

_SHARED = Path(os.environ.get("APPLECIDER_BATCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _folder(name: str) -> Path:
    folder = _SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the real data folder '{name}' is not beside the checkout")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real alerts, light curves, spectra and labels; the test is skipped where it is absent."""
    return _folder("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder of golden vectors of the upstream networks; the test is skipped where it is absent."""
    return _folder("golden")
