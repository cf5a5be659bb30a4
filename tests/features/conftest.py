"""The real alerts as one shard, ingested once for all tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive, ShardData

HASH_END = 1 << 64


@pytest.fixture(scope="session")
def ingest_real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Path]], tuple[ShardData, float]]:
    """Ingest files into a new archive and read it as one shard; also its last jd."""

    def make(files: list[Path]) -> tuple[ShardData, float]:
        url = str(tmp_path_factory.mktemp("archive") / "archive")
        ingest([str(file) for file in files], url)
        archive = Archive.open(url)
        return archive.read_shard(0, HASH_END), float(archive.snapshot.jd_max)

    return make


@pytest.fixture(scope="session")
def real_shard(
    shared_data: Path, ingest_real: Callable[[list[Path]], tuple[ShardData, float]]
) -> tuple[ShardData, float]:
    """Every real packet, and the last jd among them."""
    alerts = shared_data / "alerts"
    return ingest_real(
        sorted(alerts.glob("archive/*.tar.gz"))
        + sorted(alerts.glob("fink_parquet/*.parquet"))
        + sorted(alerts.glob("variants/*.tar.gz"))
    )
