"""Cutouts of the paper's profile: centre, radial distance, fill, and what happens to bad stamps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.features.cutouts import make_cutouts, radial_distance
from applecider_batch.features.profiles import PROFILES, get_profile
from tests.features.tables import stamps_table

PAPER = get_profile("paper")
RNG = np.random.default_rng(5)


def noise(height: int = 63, width: int = 63) -> np.ndarray:
    return RNG.normal(100.0, 10.0, (height, width)).astype(np.float32)


@pytest.mark.parametrize("name", list(PROFILES))
def test_shapes(name: str) -> None:
    profile = get_profile(name)
    made = make_cutouts(stamps_table([[noise(), noise(), noise()]] * 3), profile)
    assert made.shape == (3, profile.image_channels, profile.image_size, profile.image_size)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    assert make_cutouts(stamps_table([]), profile).shape == (0, *made.shape[1:])


def test_the_centre_stays_in_the_centre() -> None:
    plain = dataclasses.replace(PAPER, stamp_norm="none")
    image = np.zeros((63, 63), np.float32)
    image[31, 31] = 7.0
    made = make_cutouts(stamps_table([[image] * 3]), plain)
    assert made[0, 0, 24, 24] == 7.0
    assert made[0, :3].sum() == 21.0


def test_normalisation_is_arcsinh_of_robust_sigmas() -> None:
    image = noise()
    made = make_cutouts(stamps_table([[image] * 3]), dataclasses.replace(PAPER, image_size=63))
    median = np.median(image)
    sigma = 1.4826 * np.median(np.abs(image - median))
    np.testing.assert_allclose(made[0, 0], np.arcsinh((image - median) / sigma), rtol=1e-5, atol=1e-6)


def test_pixels_that_are_not_finite_become_the_median() -> None:
    image = noise()
    image[20:25, 20:25] = np.nan
    image[30, 30] = np.inf
    made = make_cutouts(stamps_table([[image] * 3]), PAPER)
    assert np.isfinite(made).all()
    assert (made[0, 0, 13:18, 13:18] == 0).all()
    assert made[0, 0, 23, 23] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
@pytest.mark.parametrize("name", list(PROFILES))
def test_wild_pixels_stay_finite(name: str, bad: float) -> None:
    image = noise()
    image[10:12, 30] = bad
    assert np.isfinite(make_cutouts(stamps_table([[image] * 3]), get_profile(name))).all()


def test_the_median_is_of_the_finite_pixels() -> None:
    image = noise()
    image[:, 40:] = np.nan
    plain = dataclasses.replace(PAPER, stamp_norm="none", image_size=63)
    made = make_cutouts(stamps_table([[image] * 3]), plain)
    assert (made[0, 0, :, 40:] == np.float32(np.nanmedian(image.astype(np.float64)))).all()


@pytest.mark.parametrize("shape", [(63, 50), (40, 63), (33, 21), (1, 1), (70, 80)])
def test_small_and_large_stamps_are_padded_or_cut(shape: tuple[int, int]) -> None:
    for name in ("paper", "upstream-main"):
        assert np.isfinite(make_cutouts(stamps_table([[noise(*shape)] * 3]), get_profile(name))).all()


def test_constant_and_empty_stamps_give_zeros() -> None:
    for value in (0.0, 5.0, np.nan):
        made = make_cutouts(stamps_table([[np.full((63, 63), value, np.float32)] * 3]), PAPER)
        assert (made[0, :3] == 0).all()


def test_a_bad_row_is_nan_and_leaves_the_others_as_they_are() -> None:
    good = [noise(), noise(), noise()]
    table = stamps_table([good, [noise(), None, noise()], good])
    widths = pa.array([63, 63, 50], pa.int16())
    broken = table.set_column(table.schema.get_field_index("widthScience"), "widthScience", widths)
    made = make_cutouts(broken, PAPER)
    assert np.isnan(made[1]).all()
    assert np.isnan(made[2]).all()
    np.testing.assert_array_equal(made[0], make_cutouts(stamps_table([good]), PAPER)[0])


@pytest.mark.parametrize("name", list(PROFILES))
def test_an_image_does_not_depend_on_the_others(name: str) -> None:
    profile = get_profile(name)
    rows = [[noise(*shape)] * 3 for shape in ((63, 63), (63, 62), (63, 63), (40, 63))]
    together = make_cutouts(stamps_table(rows), profile)
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(make_cutouts(stamps_table([row]), profile)[0], together[number])


def test_radial_distance() -> None:
    distance = radial_distance(49)
    assert distance[24, 24] == 0
    assert distance[0, 0] == distance[48, 48] == 1
    assert distance[24, 0] == pytest.approx(1 / np.sqrt(2))
