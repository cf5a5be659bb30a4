"""Truncated and varied curves, against a plain loop over one curve."""

from __future__ import annotations

import numpy as np
import pytest

from applecider_batch.features.curve_summary import N_LIMIT, curve_summary
from applecider_batch.features.prepared import CurveSummary
from applecider_batch.training.augment import Augmentation, RaggedCurves, augment

NOTHING = Augmentation(drop=0.0, jitter=0.0, shift=0.0, stretch=0.0)


def events(days: list[float], log_flux: list[float]) -> np.ndarray:
    x = np.zeros((len(days), 7), np.float32)
    x[:, 0] = np.log1p(days)
    x[:, 1] = np.log1p(np.diff(days, prepend=days[0]))
    x[:, 2], x[:, 3], x[:, 4] = log_flux, 0.05, 1.0
    return x


def curves() -> RaggedCurves:
    values = np.concatenate([events([0, 1, 4, 20], [1, 2, 3, 4]), events([0, 30], [2, 1])])
    offsets = np.array([0, 4, 6])
    limits = np.array([[-20, 0.3, 1], [-2, 0.3, 2], [2.5, 0.2, 1], [10, 0.3, 1]], np.float32)
    limit_offsets = np.array([0, 4, 4])
    summary = curve_summary(values, offsets, limits, limit_offsets)
    return RaggedCurves(values, offsets, CurveSummary(limits, limit_offsets, summary))


def test_a_truncated_curve_is_the_curve_as_it_was_then() -> None:
    items, none = np.array([1, 0]), np.zeros(2, bool)
    made = augment(curves(), items, np.array([10.0, 10.0]), none, NOTHING, np.random.default_rng(0))
    assert made.offsets.tolist() == [0, 1, 4]
    np.testing.assert_array_equal(made.values[1:], curves().values[:3])
    assert made.summary is not None
    assert made.summary.limits[:, 0].tolist() == [-20, -2, 2.5]  # none after the last event
    expected = curve_summary(curves().values[:3], np.array([0, 3]), made.summary.limits, np.array([0, 3]))
    np.testing.assert_array_equal(made.summary.values[1], expected[0])


def test_without_its_first_event_a_curve_begins_at_the_next() -> None:
    thin = Augmentation(drop=0.5, jitter=0.0, shift=0.0, stretch=0.0)
    chosen, whole = np.ones(1, bool), np.array([np.inf])
    for seed in range(50):
        made = augment(curves(), np.array([0]), whole, chosen, thin, np.random.default_rng(seed))
        if made.values[0, 2] == 2.0 and len(made.values) == 3:
            break
    assert np.expm1(made.values[:, 0]) == pytest.approx([0, 3, 19], abs=1e-5)
    assert np.expm1(made.values[:, 1]) == pytest.approx([0, 3, 16], abs=1e-5)
    assert made.summary is not None
    assert made.summary.limits[:, 0] == pytest.approx([-21, -3, 1.5, 9])


def test_only_chosen_curves_are_varied_and_each_keeps_an_event() -> None:
    wild = Augmentation(drop=1.0, jitter=1.0, shift=0.3, stretch=0.2)
    given = RaggedCurves(curves().values, curves().offsets)
    chosen = np.array([True, False])
    made = augment(given, np.array([0, 1]), np.full(2, np.inf), chosen, wild, np.random.default_rng(1))
    assert made.offsets.tolist() == [0, 1, 3]
    assert made.values[0, 2] != 1.0
    np.testing.assert_array_equal(made.values[1:], given.values[4:])
    assert made.summary is None
    assert curves().summary.limits.shape[1] == N_LIMIT  # type: ignore[union-attr]
