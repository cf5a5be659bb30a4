"""Anomaly columns of rows, and q-values against a plain Benjamini-Hochberg."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.catalog.anomaly import QValues, contradictions
from applecider_batch.catalog.columns import floats
from applecider_batch.catalog.rows import assemble_rows
from applecider_batch.inference.anomaly_reference import AnomalyReference
from applecider_batch.schema import load_table
from applecider_batch.taxonomy import CLASSES
from tests.catalog import synthetic

HORIZONS = synthetic.HORIZONS


@pytest.fixture(scope="module")
def reference() -> AnomalyReference:
    """Energies alone (nothing was fitted on latents), of objects of every pattern and class."""
    rng = np.random.default_rng(0)
    n, h = 3000, len(HORIZONS)
    values = np.full((n, h, 3, 4), np.nan, np.float32)
    mask = rng.integers(1, 8, (n, h)).astype(np.int16)
    for m in range(3):
        values[:, :, m, 0] = np.where(mask >> m & 1, rng.normal(-5, 1, (n, h)), np.nan)
    divergence = np.where(np.isin(mask, [3, 5, 6, 7]), rng.random((n, h)), np.nan).astype(np.float32)
    predicted = rng.integers(0, len(CLASSES), (n, h)).astype(np.int16)
    return AnomalyReference({}, HORIZONS, CLASSES, values, divergence, mask, predicted)


def make(reference: AnomalyReference | None) -> tuple[pa.Table, synthetic.Outputs]:
    prepared = synthetic.make_prepared(synthetic.object_names(60))
    outputs = synthetic.make_outputs(prepared)
    outputs.reference = reference
    outputs.latents = {name: np.zeros((len(v), 2), np.float32) for name, v in outputs.logits.items()}
    outputs.energies = {
        name: -np.log(np.exp(v).sum(axis=1)).astype(np.float32) for name, v in outputs.logits.items()
    }
    return assemble_rows(prepared, outputs, {**synthetic.IDENTITY, "shard_id": 0}), outputs


def test_without_a_reference_every_anomaly_column_is_null() -> None:
    table, _ = make(None)
    names = [name for name in table.column_names if name.startswith("anomaly_")]
    assert len(names) > 15
    for name in names:
        assert table.column(name).null_count == table.num_rows


def test_columns_of_rows(reference: AnomalyReference) -> None:
    table, _ = make(reference)
    rows = table.to_pylist()
    assert any(row["anomaly_flag"] for row in rows)
    for row in rows:
        has_modality = row["modality_mask"] > 0
        for bit, short in ((1, "phot"), (2, "img"), (4, "spec")):
            logits = np.array(
                [row[f"logit_{short}_{key}"] for key in ("sni", "snii", "cv", "agn", "tde")], float
            )
            if row["modality_mask"] & bit:
                assert row[f"anomaly_energy_{short}"] == pytest.approx(
                    -np.log(np.exp(logits).sum()), rel=1e-4
                )
            else:
                assert row[f"anomaly_energy_{short}"] is None
        assert (row["anomaly_energy"] is not None) == has_modality
        assert row["anomaly_mcif"] is None
        judged = row["gate"] == "in_scope" and has_modality
        for name in ("pvalue", "flag", "reason", "n_ref", "ref_group", "consensus", "pvalue_energy"):
            assert (row[f"anomaly_{name}"] is not None) == judged, name
        if not judged:
            continue
        p, n_ref = row["anomaly_pvalue"], row["anomaly_n_ref"]
        assert 1 / (n_ref + 1) <= p * (1 + 1e-6) <= 1 + 1e-6
        assert row["anomaly_flag"] == (p <= 0.01) + (p <= 0.001)
        known = [row[f"anomaly_pvalue_{s}"] for s in ("energy", "jsd")]
        known = [value for value in known if value is not None]
        assert (len(known) == 2) == (row["n_modalities"] >= 2)
        assert row["anomaly_consensus"] == pytest.approx(-np.log10(known).mean(), rel=1e-5)
        assert row["anomaly_ref_group"].endswith("full" if row["horizon_days"] is None else " d")


def pvalue_table(p: np.ndarray, n_ref: np.ndarray, horizon: np.ndarray) -> pa.Table:
    """Rows of which only the q-values' columns are filled."""
    schema = load_table("catalogue").arrow
    table = pa.table({name: pa.nulls(len(p), schema.field(name).type) for name in schema.names})
    values = {
        "horizon_days": pa.array(horizon, mask=np.isnan(horizon)),
        "anomaly_pvalue": pa.array(p.astype(np.float32), mask=np.isnan(p)),
        "anomaly_n_ref": pa.array(n_ref.astype(np.int32), mask=n_ref == 0),
    }
    for name, array in values.items():
        table = table.set_column(table.schema.get_field_index(name), name, array)
    return table


def test_qvalues_are_benjamini_and_hochbergs() -> None:
    rng = np.random.default_rng(1)
    n_ref = np.full(500, 999)
    p = np.ceil(rng.random(500) * 1000) / 1000
    p[:30] = 0.001
    horizon = np.where(rng.random(500) < 0.5, 3.0, np.nan)
    p[::50], n_ref[::50] = np.nan, 0
    n_ref[1::50] = 60  # its lowest p is above 1 %
    table = pvalue_table(p, n_ref, horizon)
    qvalues = QValues()
    for start in (0, 200):  # in pieces as in a build
        qvalues.update(table.slice(start, 200 if start == 0 else 300))
    told = qvalues.finish()
    found = floats(qvalues.annotate(table), "anomaly_qvalue")
    assert np.isnan(found[n_ref < 99]).all()
    for label, chosen in (("3", horizon == 3.0), ("full", np.isnan(horizon))):
        rows = np.flatnonzero(chosen & (n_ref >= 99))
        order = rows[np.argsort(p[rows], kind="stable")]
        q, least = np.empty(len(order)), 1.0
        for rank in range(len(order), 0, -1):
            least = min(least, p[order[rank - 1]] * len(order) / rank)
            q[rank - 1] = least
        # of equal p the largest rank counts for all
        np.testing.assert_allclose(found[order], q, rtol=1e-5)
        assert told[label]["tests"] == len(rows)
        assert told[label]["floor"] == pytest.approx(0.001)
        assert told[label]["at_floor"] == int((p[rows] <= 0.001).sum())
        assert told[label]["smallest_q"] == pytest.approx(q[0], rel=1e-5)


def test_qvalues_that_would_all_be_one_are_null() -> None:
    p = np.linspace(0.03, 1.0, 50)
    table = pvalue_table(p, np.full(50, 200), np.full(50, 3.0))
    qvalues = QValues()
    qvalues.update(table)
    assert qvalues.finish()["3"]["smallest_q"] is None
    assert np.isnan(floats(qvalues.annotate(table), "anomaly_qvalue")).all()


def test_contradictions_are_found(reference: AnomalyReference) -> None:
    table, _ = make(reference)
    assert not contradictions(table).any()
    for name, value in (
        ("anomaly_flag", 2),
        ("anomaly_n_ref", 3),
        ("anomaly_pvalue", 1e-5),
        ("gate", "moving"),
        ("anomaly_pvalue", None),
    ):
        column = table.schema.field(name)
        changed = pa.repeat(pa.scalar(value, column.type), len(table))
        assert contradictions(table.set_column(table.schema.get_field_index(name), column, changed)).any()
