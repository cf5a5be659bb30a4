"""The comparison of what the network of stamps sees: known differences are found, none is made up."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.realism_inputs import Inputs, matched, section, stamp_numbers


def _inputs(n: int, seed: int, shift: float) -> Inputs:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 4))
    values[:, 1] += shift
    return Inputs(("a", "b", "c", "d"), 2, values, np.arange(n) % 5)


def _auc(text: str) -> dict[str, float]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: float(row[1]) for row in rows if row[0] in ("metadata", "stamps", "both")}


def test_a_shifted_column_is_what_tells_them_apart() -> None:
    found = _auc(section(_inputs(50, 0, 0.0), _inputs(400, 1, 3.0)))
    assert found["metadata"] > 0.95
    assert found["both"] > 0.95
    assert 0.35 < found["stamps"] < 0.65


def test_classes_have_the_real_shares() -> None:
    real, made = _inputs(11, 0, 0.0), _inputs(400, 1, 0.0)
    drawn = np.bincount(made.label[matched(real, made)])
    assert drawn.tolist() == (4 * np.bincount(real.label)).tolist()


def test_numbers_of_stamps() -> None:
    images = np.random.default_rng(0).normal(size=(3, 4, 49, 49)).astype(np.float32)
    images[1, 1] = 2.0  # a flat template
    images[2, 0, 24, 24] = 40.0
    found = stamp_numbers(images)
    assert found["template, 5 to 10 px"][1] == pytest.approx(2.0)
    assert found["template, outer scatter"][1] == pytest.approx(0.0, abs=1e-6)
    assert found["template, neighbours' correlation"][1] == pytest.approx(0.0, abs=1e-6)
    assert found["science, largest"][2] == pytest.approx(40.0)
    assert abs(found["science, neighbours' correlation"][0]) < 0.1
