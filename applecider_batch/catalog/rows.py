"""Rows of the catalogue from the inputs' rows and the networks' outputs.

Pure and deterministic: the same inputs give the same rows, whatever the order in which modalities were run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.anomaly import anomaly_columns
from applecider_batch.catalog.columns import SHORT_NAMES, equals, float32
from applecider_batch.catalog.sky import healpix29
from applecider_batch.errors import InternalError
from applecider_batch.inference.answers import RowAnswers, answer_rows, entropy
from applecider_batch.inference.fusion import MODALITIES, fuse, log_softmax
from applecider_batch.schema import load_table
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES

ROW_KEY = ("objectId", "episode", "horizon_days")
_SORT = [("hash64", "ascending"), *((name, "ascending") for name in ROW_KEY)]


def assemble_rows(prepared: Any, outputs: Any, identity: Mapping[str, Any]) -> pa.Table:
    """Catalogue rows of one shard.

    Parameters
    ----------
    prepared : features.inputs.Prepared
        ``rows`` (everything known before inference, one row per objectId, episode and horizon) and, per
        modality ``photometry``, ``image``, ``spectra``, an object with ``row_index`` (int32, (n_rows,),
        -1 = absent).
    outputs : inference.shard.ShardOutputs
        ``logits``: modality -> float32 (n_items, 5), in the class order of ``taxonomy.CLASSES``;
        ``calibration``: temperatures for the probabilities (the logits stay as the networks gave them);
        ``reference``: with it anomaly scores, and the ``latents`` and ``energies`` they are made of.
    identity : mapping
        ``run_id, shard_id, model_set_id, pipeline_version, trained`` and, where they exist,
        ``calibration_id``, ``anomaly_ref_id``, ``prior_id`` and ``training_ids`` (see
        `models.model_set.ModelSet.training_ids`).

    Returns
    -------
    pyarrow.Table
        Schema ``catalogue``, sorted by (hash64, objectId, episode, horizon_days with null last).

    Notes
    -----
    A modality whose logits are not all finite counts as absent in that row, and the row says so in
    ``error_code``.  A row that failed before inference keeps null probabilities.
    """
    rows: pa.Table = prepared.rows
    logits, errors = _row_logits(prepared, outputs, rows)  # modality -> (n, 5), NaN where absent
    answers = answer_rows(logits, outputs.calibration)
    raw = np.stack([log_softmax(logits[name]) for name in MODALITIES], axis=1)

    columns: dict[str, pa.Array] = {name: rows.column(name) for name in rows.column_names}
    columns.update(errors)
    columns["_healpix_29"] = healpix29(rows.column("ra"), rows.column("dec"))
    _add_block(columns, "prob", np.exp(answers.fused))
    _add_block(columns, "logit", fuse(raw, answers.available))
    for position, modality in enumerate(MODALITIES):
        short = SHORT_NAMES[modality]
        _add_block(columns, f"prob_{short}", np.exp(answers.log_prob[:, position]))
        _add_block(columns, f"logit_{short}", logits[modality])
    columns.update(_statistics(answers))
    in_scope = equals(rows, "gate", "in_scope")
    columns["class_top1"] = _top_class(answers.predicted, in_scope)
    columns["modality_mask"] = pa.array(answers.mask)
    columns["n_modalities"] = pa.array(answers.count)
    columns["calibrated"] = pa.repeat(pa.scalar(outputs.calibration.calibrated), rows.num_rows)
    if outputs.reference is not None:
        columns.update(anomaly_columns(prepared, outputs, answers, in_scope))
    columns["in_training_set"] = _in_training_set(rows.column("objectId"), identity.get("training_ids"))
    columns.update(_identity_columns(identity, rows.num_rows))
    return load_table("catalogue").conform(pa.table(columns)).sort_by(_SORT)


def _row_logits(
    prepared: Any, outputs: Any, rows: pa.Table
) -> tuple[dict[str, np.ndarray], dict[str, pa.Array]]:
    """Logits of every row per modality, float64 (n_rows, 5), NaN where absent; and the error columns."""
    n_rows = rows.num_rows
    codes, reasons = _text_column(rows, "error_code"), _text_column(rows, "object_error")
    failed = np.array([code is not None for code in codes], bool)
    logits: dict[str, np.ndarray] = {}
    for modality in MODALITIES:
        spread = np.full((n_rows, len(CLASSES)), np.nan)
        items = outputs.logits.get(modality)
        if items is not None and len(items):
            index = np.asarray(getattr(prepared, modality).row_index)
            if index.shape != (n_rows,) or index.max(initial=-1) >= len(items):
                raise InternalError(
                    f"The {modality} outputs do not fit the rows: {len(items)} items, {n_rows} rows, "
                    f"row_index of shape {index.shape} up to {index.max(initial=-1)}."
                )
            wanted = (index >= 0) & ~failed
            spread[wanted] = items[index[wanted]]
            bad = wanted & ~np.isfinite(spread).all(axis=1)
            spread[bad] = np.nan
            for row in np.flatnonzero(bad):
                codes[row] = codes[row] or "output_not_finite"
                reasons[row] = reasons[row] or f"The {modality} network gave no finite answer."
        logits[modality] = spread
    return logits, {
        "error_code": pa.array(codes, pa.string()),
        "object_error": pa.array(reasons, pa.string()),
    }


def _text_column(rows: pa.Table, name: str) -> list[str | None]:
    if name not in rows.column_names:
        return [None] * rows.num_rows
    values: list[str | None] = rows.column(name).to_pylist()
    return values


def _add_block(columns: dict[str, pa.Array], prefix: str, values: np.ndarray) -> None:
    """Five float32 columns from values (n, 5); NaN becomes null."""
    for position, key in enumerate(CLASS_KEYS):
        columns[f"{prefix}_{key}"] = float32(values[:, position])


def _statistics(answers: RowAnswers) -> dict[str, pa.Array]:
    """prob_top1, prob_margin, entropy (in units of ln 5) and the divergence between modalities (bits)."""
    ordered = np.sort(np.exp(answers.fused), axis=1)
    return {
        "prob_top1": float32(ordered[:, -1]),
        "prob_margin": float32(ordered[:, -1] - ordered[:, -2]),
        "entropy": float32(entropy(answers.fused) / np.log(len(CLASSES))),
        "modality_jsd": float32(answers.divergence),
    }


def _top_class(predicted: np.ndarray, in_scope: np.ndarray) -> pa.Array:
    """Most probable class (the first of equals); null outside the gate or without probabilities."""
    indices = pa.array(np.maximum(predicted, 0), pa.int8(), mask=~in_scope | (predicted < 0))
    return pa.DictionaryArray.from_arrays(indices, list(CLASSES)).cast(pa.string())


def _in_training_set(names: pa.ChunkedArray, known: tuple[frozenset[str], bool] | None) -> pa.Array:
    """True where a network in use was trained on the object, null where it cannot be excluded."""
    ids, complete = known or (frozenset(), False)
    inside = [name in ids for name in names.to_pylist()]
    return pa.array([True if found else False if complete else None for found in inside], pa.bool_())


def _identity_columns(identity: Mapping[str, Any], n_rows: int) -> dict[str, pa.Array]:
    values: dict[str, pa.Scalar] = {
        "run_id": pa.scalar(identity["run_id"], pa.string()),
        "shard_id": pa.scalar(identity["shard_id"], pa.int32()),
        "model_set_id": pa.scalar(identity["model_set_id"], pa.string()),
        "calibration_id": pa.scalar(identity.get("calibration_id"), pa.string()),
        "gate_id": pa.scalar(identity.get("gate_id"), pa.string()),
        "anomaly_ref_id": pa.scalar(identity.get("anomaly_ref_id"), pa.string()),
        "prior_id": pa.scalar(identity.get("prior_id"), pa.string()),
        "pipeline_version": pa.scalar(identity["pipeline_version"], pa.string()),
        "trained": pa.scalar(bool(identity["trained"])),
        # A run never cross-matches; only `catalog build --known` changes this.
        "known_status": pa.scalar("unchecked"),
    }
    return {name: pa.repeat(value, n_rows) for name, value in values.items()}
