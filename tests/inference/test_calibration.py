from __future__ import annotations

import numpy as np
import pytest

from applecider_batch.errors import UserError
from applecider_batch.inference.calibration import Calibration, pattern_name


def test_without_temperatures_it_is_the_identity() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 5))
    np.testing.assert_array_equal(Calibration().apply("image", logits, np.arange(8)), logits)


def test_the_pattern_decides_and_default_serves_the_others() -> None:
    calibration = Calibration.from_document(
        {
            "calibrated": True,
            "temperature": {"photometry": {"default": 2.0, "photometry+image": 4.0}, "fused": 3},
        }
    )
    logits = np.ones((3, 5))
    out = calibration.apply("photometry", logits, np.array([1, 3, 7]))
    np.testing.assert_allclose(out[:, 0], [0.5, 0.25, 0.5])
    np.testing.assert_allclose(calibration.apply("fused", logits, np.array([1, 3, 7])), 1 / 3)
    assert calibration.calibrated


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "1"])
def test_a_temperature_that_is_not_positive_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="must be > 0"):
        Calibration.from_document({"temperature": {"image": value}})


@pytest.mark.parametrize("table", [{"radio": 1.0}, {"image": {"image+photometry": 1.0}}])
def test_an_unknown_modality_or_pattern_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(UserError, match="allowed are photometry, image, spectra, fused"):
        Calibration.from_document({"temperature": table})


def test_pattern_names() -> None:
    assert [pattern_name(bits) for bits in (0, 1, 6, 7)] == [
        "", "photometry", "image+spectra", "photometry+image+spectra",
    ]  # fmt: skip
