"""Spectra of the paper's profile, and which one a row sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from applecider_batch.features.inputs import Prepared, prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.features.quality import Quality
from applecider_batch.features.spectra import TRIAL_REDSHIFTS, coverage, preprocess_spectrum
from tests.features.tables import JD0, alert, shard, spectrum

PAPER = get_profile("paper")
LOW, HIGH, N = PAPER.spectrum_grid
GRID = np.linspace(LOW, HIGH, N)


def prepare(*spectra: dict[str, Any], name: str = "paper") -> Prepared:
    data = shard([alert("ZTFa", JD0, 1), alert("ZTFb", JD0, 2)], None, spectra)
    return prepare_shard(data, [5.0, 30.0, None], get_profile(name), snapshot_jd_max=JD0 + 100)


def rows_of(prepared: Prepared, name: str = "ZTFa") -> list[dict[str, Any]]:
    return [row for row in prepared.rows.to_pylist() if row["objectId"] == name]


def test_zero_outside_the_coverage_and_standardised_within() -> None:
    wavelength = np.arange(4000.0, 6000.0, 3.0)
    flux = 2.0 + np.sin(wavelength / 100)
    made = preprocess_spectrum(wavelength, flux, PAPER)
    assert made is not None
    inside = (wavelength[0] <= GRID) & (wavelength[-1] >= GRID)
    assert (made[~inside] == 0).all()
    raw = np.interp(GRID[inside], wavelength, flux)
    np.testing.assert_allclose(made[inside], (raw - raw.mean()) / raw.std(), rtol=1e-5, atol=1e-6)


def test_the_rest_frame_and_the_unit_do_not_matter() -> None:
    wavelength = np.arange(3800.0, 9000.0, 2.0)
    flux = 2.0 + np.sin(wavelength / 100)
    rest = preprocess_spectrum(wavelength, flux, PAPER)
    shifted = preprocess_spectrum(wavelength * 1.2, 1e-17 * flux, PAPER, redshift=0.2)
    assert rest is not None
    assert shifted is not None
    np.testing.assert_allclose(rest, shifted, atol=2e-5)


@pytest.mark.parametrize(
    ("wavelength", "flux"),
    [
        ([5000.0], [1.0]),
        ([5000.0, 5100.0], [np.nan, 1.0]),
        ([5000.0, 6000.0], [0.0, 0.0]),
        ([5000.0, 6000.0], [3.0, 3.0]),
        ([1000.0, 2000.0], [1.0, 2.0]),
        ([], []),
    ],
)
def test_what_is_no_spectrum(wavelength: list[float], flux: list[float]) -> None:
    assert preprocess_spectrum(np.array(wavelength), np.array(flux), PAPER) is None


def test_the_nearest_to_t0_within_the_wall() -> None:
    prepared = prepare(
        spectrum("ZTFa", "late", JD0 + 20),
        spectrum("ZTFa", "early", JD0 + 8),
        spectrum("ZTFa", "undated", None),
        spectrum("ZTFb", "other", JD0 + 1),
    )
    assert [row["spec_id"] for row in rows_of(prepared)] == [None, "early", "early"]
    assert [row["spec_id"] for row in rows_of(prepared, "ZTFb")] == ["other"] * 3
    assert rows_of(prepared)[1]["spec_mjd"] == JD0 + 8 - 2400000.5
    assert sorted(prepared.spectra.spec_id) == ["early", "other"]


def test_an_undated_spectrum_enters_the_full_history_only() -> None:
    prepared = prepare(spectrum("ZTFa", "undated", None))
    rows = rows_of(prepared)
    assert [row["spec_id"] for row in rows] == [None, None, "undated"]
    assert rows[2]["quality_flags"] & Quality.SPECTRUM_UNDATED
    assert not rows[1]["quality_flags"] & Quality.SPECTRUM_UNDATED


def test_a_host_spectrum_is_flagged_and_not_used() -> None:
    rows = rows_of(prepare(spectrum("ZTFa", "host", JD0 - 400)))
    assert [row["spec_id"] for row in rows] == [None] * 3
    assert all(row["quality_flags"] & Quality.HOST_SPECTRUM for row in rows)


def test_a_flattened_spectrum_is_left_out() -> None:
    kind = "snid_flattened_restframe"
    rows = rows_of(
        prepare(spectrum("ZTFa", "flat", JD0 + 1, flux_kind=kind), spectrum("ZTFa", "real", JD0 + 4))
    )
    assert [row["spec_id"] for row in rows] == ["real"] * 3
    assert rows[0]["quality_flags"] & Quality.SPECTRUM_FLATTENED


def test_a_redshift_given_is_used() -> None:
    prepared = prepare(spectrum("ZTFa", "s", JD0 + 1, redshift=0.05))
    row = rows_of(prepared)[0]
    assert row["redshift_used"] == pytest.approx(0.05)
    assert row["redshift_source"] == "test"
    assert not row["quality_flags"] & Quality.REDSHIFT_MARGINALISED
    assert prepared.spectra.redshift.tolist() == pytest.approx([0.05])
    assert prepared.spectra.offsets.tolist() == [0, 1]


@pytest.mark.parametrize("redshift", [None, 999.0])
def test_without_a_redshift_a_spectrum_is_tried_at_several(redshift: float | None) -> None:
    unknown = spectrum("ZTFb", "s", JD0 + 1, redshift=redshift)
    prepared = prepare(spectrum("ZTFa", "t", JD0 + 1), unknown)
    row = rows_of(prepared, "ZTFb")[0]
    assert row["redshift_used"] is None
    assert row["redshift_source"] == "none given, averaged over 0 to 0.3"
    assert row["quality_flags"] & Quality.REDSHIFT_MARGINALISED
    found = prepared.spectra
    item = found.spec_id.index("s")
    rows = range(found.offsets[item], found.offsets[item + 1])
    np.testing.assert_allclose(found.redshift[rows], TRIAL_REDSHIFTS, rtol=1e-6)
    wavelength, flux = np.array(unknown["wavelength"]), np.array(unknown["flux"])
    for z, made in zip(TRIAL_REDSHIFTS, found.flux[rows], strict=True):
        np.testing.assert_allclose(made, preprocess_spectrum(wavelength, flux, PAPER, z), atol=1e-5)


def test_upstream_main_does_not_use_the_redshift() -> None:
    row = rows_of(prepare(spectrum("ZTFa", "s", JD0 + 1), name="upstream-main"))[0]
    assert (row["spec_id"], row["redshift_used"], row["redshift_source"]) == ("s", None, None)


def test_a_spectrum_that_cannot_be_used_is_absent() -> None:
    bad = spectrum("ZTFa", "bad", JD0 + 1)
    bad["flux"] = [float("nan")] * len(bad["flux"])
    prepared = prepare(bad, spectrum("ZTFb", "good", JD0 + 1))
    assert [row["spec_id"] for row in rows_of(prepared)] == [None] * 3
    assert prepared.spectra.spec_id == ["good"]


def test_equally_near_spectra_are_told_apart_by_name() -> None:
    first = prepare(spectrum("ZTFa", "b", JD0 + 2), spectrum("ZTFa", "a", JD0 + 2))
    assert rows_of(first)[0]["spec_id"] == "a"


def test_coverage() -> None:
    assert coverage(np.array([3000.0, 10000.0]), PAPER, 0.0) == 1.0
    assert coverage(np.array([3850.0, (LOW + HIGH) / 2]), PAPER, 0.0) == pytest.approx(0.5)
    half = spectrum("ZTFa", "s", JD0 + 1, wavelength=[4500.0, 5000.0, 5200.0], flux=[1.0, 2.0, 1.5])
    assert rows_of(prepare(half))[0]["quality_flags"] & Quality.SPECTRUM_PARTIAL
