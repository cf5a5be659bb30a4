"""``make models`` from data to set, small: a survey of some objects, one epoch, and no real data."""

from __future__ import annotations

from pathlib import Path

import pytest

from applecider_batch.models.model_set import ModelSet
from applecider_batch.models.set_checks import verify_model_set
from benchmarks import compact, compact_card


def test_a_set_is_made_without_real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "SURVEY", {"objects": 130, "nights": 20, "seed": 2})
    for what in compact.TRAININGS:
        monkeypatch.setitem(compact.TRAININGS, what, (*compact.TRAININGS[what], "--epochs", "1"))
    compact.Making(tmp_path, None, "cpu").run()
    made = ModelSet.load(tmp_path / "compact")
    assert set(made.defaults) == {"photometry", "image", "spectra"}
    assert made.trained
    assert made.learned_gate() is not None
    assert verify_model_set(tmp_path / "compact")["problems"] == []
    card = (tmp_path / "compact/README.md").read_text()
    assert made.model_set_id in card
    assert "Made without real data" in card
    assert ("Without an anomaly reference" in card) == (made.anomaly_file is None)
    assert "| fused, full |" in card


def test_the_forests_rows_are_those_of_their_pages() -> None:
    row = compact_card._forest("photometry", ("3d", "full"))
    page = Path(compact_card._DOCS / "photometry_real.md").read_text()
    assert row.startswith("| forest, light-curve features (real alone) | 0.6")
    assert all(cell.strip() in page for cell in row.strip("|").split("|")[1:])
