"""A catalogue, an archive to which nights came since, and what an update makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from applecider_batch.archive.ingest import ingest
from applecider_batch.catalog.build import build_catalog
from applecider_batch.engine.api import classify
from applecider_batch.engine.update import update
from applecider_batch.lease import LEASE
from applecider_batch.models.model_set import init_model_set
from applecider_batch.simulate import simulate
from tests.archive.trees import tree
from tests.engine.conftest import SMALL

_OBJECTS_PER_SHARD = 5


def make(folder: Path) -> None:
    """Archive, models and a catalogue in a folder; then two nights into the archive."""
    made = simulate(folder / "survey", n_objects=20, n_nights=16, seed=7)
    packets = made["packets_per_night"].values()
    nights = [str(night) for night, count in zip(made["nights"], packets, strict=True) if count]
    archive, run = str(folder / "archive"), str(folder / "run")
    ingest(nights[:-2], archive)
    init_model_set(folder / "models", seed=2, configs=SMALL)
    classify(archive, str(folder / "models"), run, horizons=(3.0, None), progress=False)
    build_catalog(run, str(folder / "catalogue"))
    for night in nights[-2:]:
        ingest([night], archive)


def update_of(folder: Path) -> dict[str, Any]:
    """Bring the catalogue up to the archive."""
    where = (str(folder / name) for name in ("archive", "catalogue", "models"))
    return update(*where, objects_per_shard=_OBJECTS_PER_SHARD, progress=False)


def update_words(folder: Path) -> list[str]:
    """The same as a command line."""
    words = ["update", str(folder / "catalogue"), "-q", "--objects-per-shard", str(_OBJECTS_PER_SHARD)]
    return [*words, "--archive", str(folder / "archive"), "--models", str(folder / "models")]


def catalogue_bytes(folder: Path) -> dict[str, str]:
    """Every file of the catalogue with its digest.

    Without the run folders, which have times and attempts in them, and without what a killed writer left: its
    lease, and files under temporary names.
    """
    return {
        name: digest
        for name, digest in tree(folder / "catalogue").items()
        if not name.startswith("runs/") and not name.endswith(".tmp") and name != LEASE
    }
