"""assemble_rows against a plain loop over rows, and its rules about null."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.catalog.columns import SHORT_NAMES
from applecider_batch.catalog.rows import assemble_rows
from applecider_batch.errors import InternalError, UserError
from applecider_batch.inference.calibration import Calibration
from applecider_batch.schema import load_table
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES
from tests.catalog.synthetic import IDENTITY, MODALITY_NAMES, make_outputs, make_prepared, object_names

NAMES = object_names(60)
FULL_IDENTITY = {**IDENTITY, "shard_id": 0}


def _plain(prepared: Any, outputs: Any, row: int) -> dict[str, Any]:
    """The row's numbers, one at a time."""
    probs: dict[str, list[float]] = {}
    if prepared.rows["error_code"][row].as_py() is None:
        for name in MODALITY_NAMES:
            item = getattr(prepared, name).row_index[row]
            if item >= 0:
                powers = [math.exp(float(x)) for x in outputs.logits[name][item]]
                probs[name] = [p / sum(powers) for p in powers]
    answer: dict[str, Any] = {f"n_{name}": probs.get(name) for name in MODALITY_NAMES}
    if not probs:
        return {**answer, "fused": None}
    fused = [sum(p[k] for p in probs.values()) / len(probs) for k in range(5)]
    entropy = [-sum(x * math.log(x) for x in p) for p in (fused, *probs.values())]
    best = sorted(fused, reverse=True)
    answer.update(fused=fused, top=CLASSES[fused.index(best[0])], margin=best[0] - best[1])
    answer.update(entropy=entropy[0] / math.log(5), jsd=None)
    if len(probs) > 1:
        answer["jsd"] = (entropy[0] - sum(entropy[1:]) / len(probs)) / math.log(2)
    return answer


def test_rows_equal_a_plain_loop() -> None:
    prepared = make_prepared(NAMES)
    outputs = make_outputs(prepared)
    rows = assemble_rows(prepared, outputs, FULL_IDENTITY).to_pylist()
    assert len(rows) == prepared.rows.num_rows
    seen_masks = set()
    for number, row in enumerate(rows):
        want = _plain(prepared, outputs, number)
        seen_masks.add(row["modality_mask"])
        fused = [row[f"prob_{key}"] for key in CLASS_KEYS]
        if want["fused"] is None:
            assert fused == [None] * 5
            assert row["prob_top1"] is row["entropy"] is row["class_top1"] is row["modality_jsd"] is None
            assert row["n_modalities"] == row["modality_mask"] == 0
            continue
        assert fused == pytest.approx(want["fused"], abs=1e-6)
        assert [row[f"logit_{key}"] for key in CLASS_KEYS] == pytest.approx(np.log(want["fused"]), abs=1e-5)
        assert row["prob_margin"] == pytest.approx(want["margin"], abs=1e-6)
        assert row["entropy"] == pytest.approx(want["entropy"], abs=1e-6)
        assert row["modality_jsd"] == (
            want["jsd"] if want["jsd"] is None else pytest.approx(want["jsd"], abs=1e-6)
        )
        assert row["class_top1"] == (want["top"] if row["gate"] == "in_scope" else None)
        for bit, name in enumerate(MODALITY_NAMES):
            block = [row[f"prob_{SHORT_NAMES[name]}_{key}"] for key in CLASS_KEYS]
            assert block == (pytest.approx(want[f"n_{name}"], abs=1e-6) if want[f"n_{name}"] else [None] * 5)
            assert bool(row["modality_mask"] & 1 << bit) == (want[f"n_{name}"] is not None)
    assert len(seen_masks) >= 6


def test_rows_conform_and_do_not_depend_on_input_order() -> None:
    prepared = make_prepared(NAMES)
    outputs = make_outputs(prepared)
    table = assemble_rows(prepared, outputs, FULL_IDENTITY)
    assert table.schema.equals(load_table("catalogue").arrow, check_metadata=True)
    order = np.random.default_rng(5).permutation(prepared.rows.num_rows)
    shuffled = SimpleNamespace(
        rows=prepared.rows.take(pa.array(order)),
        **{n: SimpleNamespace(row_index=getattr(prepared, n).row_index[order]) for n in MODALITY_NAMES},
    )
    assert assemble_rows(shuffled, outputs, FULL_IDENTITY).equals(table)


def test_gated_rows_keep_their_logits_and_failed_rows_have_none() -> None:
    prepared = make_prepared(NAMES)
    rows = assemble_rows(prepared, make_outputs(prepared), FULL_IDENTITY).to_pylist()
    gated = [row for row in rows if row["gate"] == "variable_star" and row["modality_mask"] & 1]
    assert gated
    assert all(row["class_top1"] is None and row["logit_phot_sni"] is not None for row in gated)
    failed = [row for row in rows if row["error_code"] == "bad_photometry"]
    assert failed
    assert all(row["modality_mask"] == 0 and row["prob_sni"] is None for row in failed)


def test_identical_inputs_share_an_item() -> None:
    prepared = make_prepared(NAMES[:1])
    prepared.photometry.row_index = np.zeros(4, np.int32)
    outputs = make_outputs(prepared)
    assert outputs.logits["photometry"].shape == (1, 5)
    rows = assemble_rows(prepared, outputs, FULL_IDENTITY)
    assert len(set(rows["prob_phot_tde"].to_pylist())) == 1


def test_output_that_is_not_finite_is_a_named_error_of_its_rows_only() -> None:
    prepared = make_prepared(NAMES[:8])
    outputs = make_outputs(prepared)
    clean = assemble_rows(prepared, outputs, FULL_IDENTITY).to_pylist()
    row = int(np.flatnonzero(prepared.photometry.row_index >= 0)[0])
    outputs.logits["photometry"][prepared.photometry.row_index[row], 2] = np.nan
    rows = assemble_rows(prepared, outputs, FULL_IDENTITY).to_pylist()
    assert rows[row]["error_code"] == "output_not_finite"
    assert "photometry network" in rows[row]["object_error"]
    assert rows[row]["prob_phot_sni"] is None
    assert not rows[row]["modality_mask"] & 1
    assert [a for i, a in enumerate(rows) if i != row] == [a for i, a in enumerate(clean) if i != row]


def test_extreme_logits_stay_finite() -> None:
    prepared = make_prepared(NAMES[:1])
    outputs = make_outputs(prepared)
    for values in outputs.logits.values():
        values[:] = [5e4, -5e4, 0, 0, 0]
    rows = assemble_rows(prepared, outputs, FULL_IDENTITY).to_pylist()
    scored = [row for row in rows if row["n_modalities"]]
    assert scored
    for row in scored:
        assert row["prob_sni"] == 1.0
        assert row["entropy"] == 0.0
        assert math.isfinite(row["logit_snii"])


def test_calibration_changes_probabilities_not_logits() -> None:
    prepared = make_prepared(NAMES[:8])
    outputs = make_outputs(prepared)
    plain = assemble_rows(prepared, outputs, FULL_IDENTITY)
    outputs.calibration = Calibration({name: {"default": 4.0} for name in MODALITY_NAMES}, calibrated=True)
    table = assemble_rows(prepared, outputs, {**FULL_IDENTITY, "calibration_id": "c1"})
    assert set(plain["calibrated"].to_pylist()) == {False}
    assert set(table["calibrated"].to_pylist()) == {True}
    assert table["logit_phot_sni"].equals(plain["logit_phot_sni"])
    assert table["logit_sni"].equals(plain["logit_sni"])
    entropy = [np.nanmean(t["entropy"].to_numpy(zero_copy_only=False)) for t in (plain, table)]
    assert entropy[1] > entropy[0]
    row = int(np.flatnonzero(prepared.photometry.row_index >= 0)[0])
    powers = np.exp(outputs.logits["photometry"][prepared.photometry.row_index[row]].astype(float) / 4.0)
    assert table["prob_phot_cv"][row].as_py() == pytest.approx(powers[2] / powers.sum(), abs=1e-6)


def test_outputs_that_do_not_fit_are_our_fault() -> None:
    prepared = make_prepared(NAMES[:8])
    outputs = make_outputs(prepared)
    outputs.logits["image"] = outputs.logits["image"][:-1]
    with pytest.raises(InternalError, match="image outputs do not fit"):
        assemble_rows(prepared, outputs, FULL_IDENTITY)


def test_missing_key_column_is_refused() -> None:
    prepared = make_prepared(NAMES[:2])
    outputs = make_outputs(prepared)
    prepared.rows = prepared.rows.drop_columns(["episode"])
    with pytest.raises(UserError, match="episode"):
        assemble_rows(prepared, outputs, FULL_IDENTITY)


def test_healpix_is_that_of_hats() -> None:
    spatial = pytest.importorskip("hats.pixel_math.spatial_index")
    from applecider_batch.catalog.sky import healpix29

    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    index = healpix29(pa.array([*ra, None]), pa.array([*dec, 5.0]))
    assert index[-1].as_py() is None
    assert index[:-1].to_pylist() == spatial.compute_spatial_index(ra, dec).tolist()


def test_schema_units_and_ucds_are_valid() -> None:
    from astropy import units
    from astropy.io.votable.ucd import check_ucd

    assert not check_ucd("stat.entropy", check_controlled_vocabulary=True)
    for column in load_table("catalogue").columns:
        assert column.ucd, column.name
        assert check_ucd(column.ucd, check_controlled_vocabulary=True), column
        units.Unit(column.unit, format="vounit")


@pytest.mark.parametrize("complete", [True, False])
def test_objects_of_the_training_set_are_marked(complete: bool) -> None:
    prepared = make_prepared(NAMES)
    known = {"training_ids": (frozenset(NAMES[:7]), complete)}
    rows = assemble_rows(prepared, make_outputs(prepared), FULL_IDENTITY | known).to_pylist()
    rest = False if complete else None  # a network that does not say what trained it excludes nothing
    assert {(r["objectId"], r["in_training_set"]) for r in rows} == {
        (name, True if name in NAMES[:7] else rest) for name in NAMES
    }
