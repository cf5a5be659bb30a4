"""Fixtures for all tests: where the real data lie, and nothing that a test could hide behind."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Threads of the numerical libraries: two cores are shared by everything the tests start.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "2")

# A busy machine fails no test.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

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


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """fsspec options of a real S3 server on this machine (moto in server mode), running for the session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"},
    }
    server.stop()


@pytest.fixture
def s3_url(s3_options: dict[str, Any]) -> str:
    """URL of a new, empty bucket on that server."""
    import boto3

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client = boto3.client(
        "s3", aws_access_key_id="test", aws_secret_access_key="test", **s3_options["client_kwargs"]
    )
    client.create_bucket(Bucket=name)
    return f"s3://{name}"
