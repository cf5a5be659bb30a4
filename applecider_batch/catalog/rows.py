"""Rows of the catalogue from the inputs' rows and the networks' outputs.

Pure and deterministic: the same inputs give the same rows, whatever the order in which modalities were run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.sky import healpix29
from applecider_batch.errors import InternalError
from applecider_batch.inference.calibration import FUSED
from applecider_batch.inference.fusion import MODALITIES, fuse, log_softmax, mask_and_count
from applecider_batch.schema import load_table
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES

#: Modality of a network -> short name in the columns.
SHORT_NAMES: dict[str, str] = {"photometry": "phot", "image": "img", "spectra": "spec"}

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
        ``calibration``: temperatures for the probabilities (the logits stay as the networks gave them).
    identity : mapping
        ``run_id, shard_id, model_set_id, pipeline_version, trained`` and, where they exist,
        ``calibration_id``, ``anomaly_ref_id``, ``prior_id``.

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
    available = np.stack([np.isfinite(logits[name][:, 0]) for name in MODALITIES], axis=1)  # (n, modalities)
    mask, count = mask_and_count(available)
    raw = {name: log_softmax(logits[name]) for name in MODALITIES}
    calibrate = outputs.calibration.apply
    log_probs = {name: log_softmax(calibrate(name, logits[name], mask)) for name in MODALITIES}
    fused = log_softmax(calibrate(FUSED, _fuse(log_probs, available), mask))

    columns: dict[str, pa.Array] = {name: rows.column(name) for name in rows.column_names}
    columns.update(errors)
    columns["_healpix_29"] = healpix29(rows.column("ra"), rows.column("dec"))
    _add_block(columns, "prob", np.exp(fused))
    _add_block(columns, "logit", _fuse(raw, available))
    for modality, short in SHORT_NAMES.items():
        _add_block(columns, f"prob_{short}", np.exp(log_probs[modality]))
        _add_block(columns, f"logit_{short}", logits[modality])
    columns.update(_statistics(fused, log_probs, available))
    columns["class_top1"] = _top_class(fused, rows.column("gate"))
    columns["modality_mask"] = pa.array(mask)
    columns["n_modalities"] = pa.array(count)
    columns["calibrated"] = pa.repeat(pa.scalar(outputs.calibration.calibrated), rows.num_rows)
    columns.update(_identity_columns(identity, rows.num_rows))
    return load_table("catalogue").conform(pa.table(columns)).sort_by(_SORT)


def _fuse(log_probs: Mapping[str, np.ndarray], available: np.ndarray) -> np.ndarray:
    return fuse(np.stack([log_probs[name] for name in MODALITIES], axis=1), available)


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
        columns[f"{prefix}_{key}"] = _float32(values[:, position])


def _float32(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def _statistics(
    fused: np.ndarray, log_probs: Mapping[str, np.ndarray], available: np.ndarray
) -> dict[str, pa.Array]:
    """prob_top1, prob_margin, entropy (in units of ln 5) and the divergence between modalities (bits).

    The Jensen-Shannon divergence is H(mean of p_m) - mean of H(p_m) over the available modalities (Lin 1991,
    doi:10.1109/18.61115).
    """
    ordered = np.sort(np.exp(fused), axis=1)
    count = available.sum(axis=1)
    each = np.stack([_entropy(log_probs[name]) for name in MODALITIES], axis=1)  # (n, modalities)
    mean_entropy = np.where(available, each, 0.0).sum(axis=1) / np.maximum(count, 1)
    divergence = np.maximum(_entropy(_fuse(log_probs, available)) - mean_entropy, 0.0) / np.log(2.0)
    return {
        "prob_top1": _float32(ordered[:, -1]),
        "prob_margin": _float32(ordered[:, -1] - ordered[:, -2]),
        "entropy": _float32(_entropy(fused) / np.log(len(CLASSES))),
        "modality_jsd": _float32(np.where(count >= 2, divergence, np.nan)),
    }


def _entropy(log_probs: np.ndarray) -> np.ndarray:
    """Shannon entropy in nats over the last axis; NaN where the row is NaN."""
    return 0.0 - (np.exp(log_probs) * log_probs).sum(axis=-1)


def _top_class(fused: np.ndarray, gate: pa.ChunkedArray) -> pa.Array:
    """Most probable class (the first of equals); null outside the gate or without probabilities."""
    in_scope = np.array([value == "in_scope" for value in gate.to_pylist()], bool)
    known = in_scope & np.isfinite(fused).all(axis=1)
    best = np.argmax(np.nan_to_num(fused), axis=1)
    return pa.DictionaryArray.from_arrays(pa.array(best, pa.int8(), mask=~known), list(CLASSES)).cast(
        pa.string()
    )


def _identity_columns(identity: Mapping[str, Any], n_rows: int) -> dict[str, pa.Array]:
    values: dict[str, pa.Scalar] = {
        "run_id": pa.scalar(identity["run_id"], pa.string()),
        "shard_id": pa.scalar(identity["shard_id"], pa.int32()),
        "model_set_id": pa.scalar(identity["model_set_id"], pa.string()),
        "calibration_id": pa.scalar(identity.get("calibration_id"), pa.string()),
        "anomaly_ref_id": pa.scalar(identity.get("anomaly_ref_id"), pa.string()),
        "prior_id": pa.scalar(identity.get("prior_id"), pa.string()),
        "pipeline_version": pa.scalar(identity["pipeline_version"], pa.string()),
        "trained": pa.scalar(bool(identity["trained"])),
        # A run never cross-matches; only `catalog build --known` changes this.
        "known_status": pa.scalar("unchecked"),
    }
    return {name: pa.repeat(value, n_rows) for name, value in values.items()}
