"""Stamps and spectra of the upstream profiles against arrays recorded with the public code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from applecider_batch.features.cutouts import STAMPS, make_cutouts
from applecider_batch.features.profiles import Profile, get_profile
from applecider_batch.features.spectra import preprocess_spectrum
from tests.features.tables import stamps_table

MAIN = get_profile("upstream-main")
ARCHIVE = get_profile("upstream-archive")
#: Upstream's archived spectrum code on main's grid: the same without the fall-back for a MAD of 0.
LEGACY = dataclasses.replace(MAIN, name="legacy", spectrum_norm="mad_unguarded")


def test_legacy_triplets(shared_golden: Path) -> None:
    with (
        np.load(shared_golden / "stamps_decoded.npz") as decoded,
        np.load(shared_golden / "stamps_legacy_triplets.npz") as golden,
    ):
        cases = sorted(golden.files)
        assert len(cases) >= 10
        stamps = [[decoded[f"{case}_{name.lower()}"] for name in STAMPS] for case in cases]
        ours = make_cutouts(stamps_table(stamps), ARCHIVE)
        for case, image in zip(cases, ours, strict=True):
            theirs = np.moveaxis(golden[case], -1, 0)
            np.testing.assert_allclose(image[:3], theirs, rtol=2e-6, atol=1e-12)


def test_main_stamps_are_as_they_lie(shared_golden: Path) -> None:
    keep = dataclasses.replace(MAIN, stamp_fill="keep")
    with np.load(shared_golden / "stamps_decoded.npz") as decoded:
        cases = sorted({key.split("_")[0] for key in decoded.files if key.endswith("difference")})
        whole = [c for c in cases if decoded[f"{c}_science"].shape == (63, 63)]
        stamps = [[decoded[f"{case}_{name.lower()}"] for name in STAMPS] for case in whole]
        np.testing.assert_array_equal(make_cutouts(stamps_table(stamps), keep), np.array(stamps))


def spectra_cases(golden: Path, prefix: str) -> list[str]:
    with np.load(golden / "spectra_preprocessed.npz") as arrays:
        return [
            k for k in arrays.files if k != "wave_grid" and k.startswith("legacy_") == (prefix == "legacy_")
        ]


@pytest.mark.parametrize(("profile", "prefix"), [(MAIN, ""), (LEGACY, "legacy_")])
def test_spectra(shared_golden: Path, profile: Profile, prefix: str) -> None:
    table = pl.read_parquet(shared_golden / "spectra_input.parquet")
    with np.load(shared_golden / "spectra_preprocessed.npz") as golden:
        low, high, n = profile.spectrum_grid
        np.testing.assert_array_equal(golden["wave_grid"], np.linspace(low, high, n).astype(np.float32))
        for key in spectra_cases(shared_golden, prefix):
            case = table.filter(pl.col("case") == key.removeprefix("legacy_"))
            ours = preprocess_spectrum(case["wavelength"].to_numpy(), case["flux"].to_numpy(), profile)
            theirs = golden[key]
            if ours is None:  # upstream's archived code gives NaN for what is too short, ours nothing
                assert np.isnan(theirs).all(), key
                continue
            scale = max(1.0, float(np.max(np.abs(theirs[np.isfinite(theirs)]), initial=0.0)))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * scale, err_msg=key)


def test_too_short_spectra_give_none(shared_golden: Path) -> None:
    table = pl.read_parquet(shared_golden / "spectra_input.parquet").filter(pl.col("case") == "one-point")
    assert preprocess_spectrum(table["wavelength"].to_numpy(), table["flux"].to_numpy(), MAIN) is None
    assert preprocess_spectrum(np.empty(0), np.empty(0), MAIN) is None
