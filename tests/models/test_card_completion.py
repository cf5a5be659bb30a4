"""Cards: completed from what is said, never guessed; otherwise refused with all that is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.errors import UserError
from applecider_batch.models.model_set import ModelSet
from tests.models.checkpoints import (
    CARD,
    FIVE,
    PHOTOMETRY,
    RAW,
    SMALL,
    TINY,
    classes,
    run,
    save,
    small_state,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def without(card: dict[str, Any], *path: str) -> dict[str, Any]:
    copy = json.loads(json.dumps(card))
    at = copy
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return copy


@pytest.mark.parametrize(
    ("card", "match"),
    [
        (None, r"lacks: class_order, normalisation\.photometry \(mean and std\)"),
        (without(CARD, "class_order"), r"cannot be completed; it lacks: class_order\."),
        (without(CARD, "normalisation"), r"it lacks: normalisation\.photometry"),
        (without(CARD, "normalisation", "photometry", "std"), r"it lacks: normalisation\.photometry\.std"),
        (CARD | {"class_order": FIVE[:4]}, "no output for TDE"),
        (CARD | {"class_order": [*FIVE, "SLSN-I"]}, r"fc\.weight \(5, 16\) instead of \(6, 16\)"),
        (CARD | {"class_order": [*FIVE[:4], "thing"], "class_map": {"thing": "Tde"}}, "cannot be assigned"),
        (CARD | {"class_map": [[1, 0, 0, 0, 0]] * 5}, "one class at most|without an output"),
        (CARD | {"profile": "paper"}, "The card says profile = 'paper'"),
        (CARD | {"network": "baseline_cls"}, "The card says network = 'baseline_cls'"),
        (CARD | {"weights": "x"}, "written by the import"),
        (CARD | {"class_orders": []}, "unknown fields: class_orders"),
        (CARD | {"feature_names": ["flux"]}, "The photometry channels are"),
        (CARD | {"missing_value": 0.0}, r"missing_value 0\.0 differs from -999"),
        (CARD | {"remap": {"guess": True}}, "Unknown remap guess"),
        (CARD | {"remap": {"stem_channels": [0]}}, "no image stem"),
        (CARD | {"normalisation": PHOTOMETRY | RAW}, "normalisation of metadata"),
        (CARD | {"config": SMALL | {"n_layers": 2}}, r"missing: encoder\.layers\.1"),
    ],
)
def test_a_card_that_cannot_be_completed_is_refused(tmp_path: Path, card: Any, match: str) -> None:
    if card is None:
        card = {"config": SMALL}
    with pytest.raises(UserError, match=match):
        run(save(tmp_path / "m.pt", small_state()), card=card, network="cls_transformer")
    assert not (tmp_path / "set" / "model_set.toml").exists()


def test_image_cards_must_say_whether_metadata_are_raw(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt", small_state("upstream-main", "astrominn", **TINY))
    with pytest.raises(UserError, match=r'lacks: normalisation\.metadata \(mean and std, or "none"'):
        run(file, card=classes(FIVE, **TINY))
    (tmp_path / "card.toml").write_text(
        f"class_order = {json.dumps(FIVE)}\n[config]\ndepths = [1, 1]\ndims = [8, 16]\n"
        '[normalisation]\nmetadata = "none"\n'
    )
    run(file, card=tmp_path / "card.toml")
    assert ModelSet.load(tmp_path / "set").entry("astrominn").card.normalisation == {"metadata": None}


def test_cards_from_files(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt", small_state())
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    run(file, card=tmp_path / "card.json")
    for name, text, match in (
        ("absent.toml", None, "There is no card"),
        ("bad.toml", "= 1", "neither TOML"),
        ("bad.json", "{", "neither TOML"),
        ("list.json", "[]", "must be an object"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=match):
            run(file, card=tmp_path / name, replace=True)
