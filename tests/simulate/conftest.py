"""A small simulated survey, made once for all tests of this folder."""

from __future__ import annotations

import gzip
import io
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from applecider_batch.simulate import simulate


@dataclass
class Small:
    folder: Path
    summary: dict[str, Any]
    packets: list[dict[str, Any]]  # in time order
    members: list[tuple[str, str]]  # (tarball, member) of each packet
    truth: list[dict[str, Any]]

    def by_object(self) -> dict[str, list[dict[str, Any]]]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for packet in self.packets:
            groups.setdefault(packet["objectId"], []).append(packet)
        return groups


def image_of(cutout: dict[str, Any]) -> np.ndarray:
    """A stamp read by astropy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ZTF's SIMPLE card is not in the standard's fixed format
        with fits.open(io.BytesIO(gzip.decompress(cutout["stampData"]))) as hdus:
            return np.array(hdus[0].data)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """60 objects in 24 nights."""
    folder = tmp_path_factory.mktemp("simulated") / "survey"
    summary = simulate(folder, n_objects=60, n_nights=24, seed=11)
    rows = []
    for path in summary["nights"]:
        with tarfile.open(path) as tar:
            for member in tar:
                handle = tar.extractfile(member)
                assert handle is not None
                (packet,) = fastavro.reader(io.BytesIO(handle.read()))
                rows.append((packet, (Path(path).name, member.name)))
    rows.sort(key=lambda row: (row[0]["candidate"]["jd"], row[0]["candid"]))
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    return Small(folder, summary, [r[0] for r in rows], [r[1] for r in rows], truth)
