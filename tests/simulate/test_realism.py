"""Simulated metadata against real packets: loose, so that another sample of real packets passes too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from .conftest import Small

FIELDS = [
    "magpsf", "sigmapsf", "diffmaglim", "fwhm", "elong", "rb", "drb", "nmtchps", "ncovhist", "magzpsci",
    "distpsnr1", "distnr", "magap", "sigmagap", "scorr", "aimage", "bimage", "classtar", "chinr",
    "seeratio", "dsnrms", "ssnrms", "magdiff", "magfromlim", "sumrat", "nneg", "magnr", "srmag1",
    "sgscore2", "maggaia", "nmatches",
]  # fmt: skip


@pytest.fixture(scope="module")
def real(shared_data: Path) -> pl.DataFrame:
    frames = []
    for path in sorted((shared_data / "alerts" / "fink_parquet").glob("*.parquet")):
        if "candidate" in pl.read_parquet_schema(path):
            frames.append(pl.read_parquet(path, columns=["candidate"]).unnest("candidate"))
    return pl.concat(frames, how="diagonal_relaxed").unique("candid")


@pytest.mark.parametrize("name", FIELDS)
def test_simulated_median_lies_inside_the_real_bulk(small: Small, real: pl.DataFrame, name: str) -> None:
    ours = np.array([p["candidate"][name] for p in small.packets if p["candidate"]["rb"] > 0.55], dtype=float)
    theirs = real.filter(pl.col("rb") > 0.55)[name].cast(pl.Float64).drop_nulls().to_numpy()
    ours, theirs = ours[ours != -999.0], theirs[theirs != -999.0]
    low, high = np.quantile(theirs, [0.1, 0.9])
    assert low <= np.median(ours) <= high
    assert np.ptp(np.quantile(ours, [0.1, 0.9])) < 4.0 * (high - low) + 1e-9
