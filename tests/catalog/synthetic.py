"""Small prepared shards, network outputs and committed run folders, without archive, networks or engine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.catalog.rows import ROW_KEY, assemble_rows
from applecider_batch.digest import hash64_one
from applecider_batch.inference.calibration import Calibration
from applecider_batch.schema import load_table

HORIZONS: tuple[float | None, ...] = (3.0, 10.0, 30.0, None)
END = 2460500.5
GATE_OF = ("in_scope", "in_scope", "in_scope", "variable_star", "moving", "artefact", "too_few_detections")
IDENTITY: dict[str, Any] = {
    "run_id": "0123abcd",
    "model_set_id": "modelset01",
    "calibration_id": None,
    "anomaly_ref_id": None,
    "pipeline_version": "0.1.0",
    "trained": False,
}


@dataclass
class Outputs:
    """Logits by modality, as the inference room returns them."""

    logits: dict[str, np.ndarray] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    reference: Any = None


def object_names(count: int, prefix: str = "ZTF20aaaa") -> list[str]:
    """Names sorted as rows are: by (hash64, objectId)."""
    names = [f"{prefix}{i:04d}" for i in range(count)]
    return sorted(names, key=lambda name: (hash64_one(name), name))


def make_prepared(
    names: list[str],
    horizons: tuple[float | None, ...] = HORIZONS,
    seed: int = 0,
    positions: dict[str, tuple[float, float]] | None = None,
) -> Any:
    """Rows known before inference, with every gate, missing modalities, one failed object and one without t0.

    Returns
    -------
    namespace
        ``rows`` and per modality ``row_index``; item i of a modality belongs to its i-th row that has one.
    """
    rng = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        digits = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        ra, dec = float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(rng.uniform(-0.5, 0.99))))
        ra, dec = (positions or {}).get(name, (ra, dec))
        has_t0 = number % 11 != 10
        t0 = 2458300.5 + digits % 2000 if has_t0 else None
        gate = GATE_OF[number % len(GATE_OF)] if has_t0 else "too_few_detections"
        failed = number % 13 == 12
        for horizon in horizons if has_t0 else (None,):
            full = horizon is None
            n_det = 3 + digits % 7 + (10 if full else int(horizon or 0) // 3)
            records.append({
                "hash64": hash64_one(name), "objectId": name, "ra": ra, "dec": dec,
                "galactic_b": 30.0, "episode": 1 if has_t0 else 0, "t0": t0,
                "jd_first": t0, "jd_last": t0 and t0 + (80.0 if full else horizon),
                "as_of_jd": END if full else t0 and t0 + horizon, "horizon_days": horizon,
                "horizon_complete": True if has_t0 else None, "gate": None if failed else gate,
                "prob_in_scope": float(gate == "in_scope"),
                "gate_reason": f"rule {gate}" if has_t0 else "no t0",
                "programid_mask": 1, "n_det": n_det, "n_det_g": n_det // 2, "n_det_r": n_det - n_det // 2,
                "n_det_i": 0, "n_neg": digits % 3, "n_nondet": 5, "n_fp": 0,
                "mag_peak_g": 18.5, "mag_peak_r": None,
                "rb_max": 0.9, "drb_available": bool(digits % 2), "quality_flags": 0, "simulated": True,
                "candid_image": 10**15 + digits if number % 3 else None,
                "error_code": "bad_photometry" if failed else None,
                "object_error": "The object's photometry cannot be read." if failed else None,
            })  # fmt: skip
    rows = pa.Table.from_pylist(records, schema=_rows_schema(records))
    n_rows = rows.num_rows
    usable = np.array([record["t0"] is not None and record["error_code"] is None for record in records])
    has = {
        "photometry": usable & (rng.random(n_rows) < 0.9),
        "image": usable & rows.column("candid_image").is_valid().to_numpy(),
        "spectra": usable & (rng.random(n_rows) < 0.2),
    }
    return SimpleNamespace(
        rows=rows, **{name: SimpleNamespace(row_index=_index(mask)) for name, mask in has.items()}
    )


def _index(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, np.cumsum(mask) - 1, -1).astype(np.int32)


def _rows_schema(records: list[dict[str, Any]]) -> pa.Schema:
    arrow = load_table("catalogue").arrow
    return pa.schema([arrow.field(name) for name in records[0]])


def make_outputs(prepared: Any, seed: int = 1) -> Outputs:
    """Random logits for every item of every modality."""
    rng = np.random.default_rng(seed)
    counts = {name: int(getattr(prepared, name).row_index.max(initial=-1)) + 1 for name in MODALITY_NAMES}
    return Outputs({name: rng.normal(0, 2, (count, 5)).astype(np.float32) for name, count in counts.items()})


MODALITY_NAMES = ("photometry", "image", "spectra")


def make_rows(
    names: list[str],
    shard_id: int = 0,
    *,
    seed: int = 0,
    horizons: tuple[float | None, ...] = HORIZONS,
    positions: dict[str, tuple[float, float]] | None = None,
    **identity: Any,
) -> pa.Table:
    """Catalogue rows of one shard."""
    prepared = make_prepared(names, horizons, seed=seed, positions=positions)
    return assemble_rows(
        prepared, make_outputs(prepared, seed + 1), {**IDENTITY, **identity, "shard_id": shard_id}
    )


def write_run(
    run: Path,
    names: list[str],
    shards: int = 3,
    *,
    commit: set[int] | None = None,
    horizons: tuple[float | None, ...] = HORIZONS,
    positions: dict[str, tuple[float, float]] | None = None,
) -> Path:
    """A run folder whose shards (all, or those in ``commit``) are committed.

    The rows of an object do not depend on the number of shards.
    """
    everything = make_rows(names, horizons=horizons, positions=positions)
    return write_run_of(run, everything, shards, commit=commit, horizons=horizons)


def write_run_of(
    run: Path,
    everything: pa.Table,
    shards: int = 3,
    *,
    commit: set[int] | None = None,
    horizons: tuple[float | None, ...] = HORIZONS,
    snapshot: int | str = 1,
) -> Path:
    """A run folder of given rows."""
    edges = [2**64 * i // shards for i in range(shards + 1)]
    plan = {
        "run_id": IDENTITY["run_id"],
        "identity": {"snapshot": snapshot, "model_set": "untrained", "horizons": list(horizons)},
        "shards": [
            {"shard_id": i, "hash_lo": str(edges[i]), "hash_hi": str(edges[i + 1])} for i in range(shards)
        ],
    }
    for folder in ("data", "commits"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    (run / "plan.json").write_text(json.dumps(plan))
    hashes = everything.column("hash64").to_numpy()
    for i in range(shards):
        if commit is not None and i not in commit:
            continue
        inside = (hashes >= np.uint64(edges[i])) & (hashes <= np.uint64(edges[i + 1] - 1))
        table = everything.filter(pa.array(inside))
        position = table.schema.get_field_index("shard_id")
        numbers = pa.array([i] * table.num_rows, pa.int32())
        commit_table(run, i, table.set_column(position, table.schema.field(position), numbers))
    return run


def commit_table(run: Path, shard_id: int, table: pa.Table) -> None:
    """Write a shard's data file and its commit record."""
    path = run / "data" / f"shard-{shard_id:05d}.1.parquet"
    pq.write_table(table, path)
    record = {
        "shard_id": shard_id,
        "data_file": f"data/{path.name}",
        "rows": table.num_rows,
        "objects": len(set(table.column("objectId").to_pylist())),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "objects_in_error": 0,
        "degraded": False,
    }
    (run / "commits" / f"shard-{shard_id:05d}.json").write_text(json.dumps(record))


def add_embeddings(run: Path, seed: int = 3) -> None:
    """Give every committed shard of a run the side table ``embeddings``: some rows lack some latents."""
    rng = np.random.default_rng(seed)
    schema = load_table("embeddings")
    for path in sorted((run / "commits").glob("*.json")):
        record = json.loads(path.read_text())
        rows = pq.read_table(run / record["data_file"])
        columns: dict[str, Any] = {name: rows.column(name) for name in ("hash64", *ROW_KEY)}
        for name, width, share in (("phot", 6, 0.9), ("img", 3, 0.5), ("spec", 4, 0.0)):
            there = rng.random(rows.num_rows) < share
            values = rng.normal(5.0, np.arange(1, width + 1), (rows.num_rows, width))
            values[:, 0] = 7.0  # a number that says nothing
            columns[f"latent_{name}"] = pa.array(
                [list(v) if t else None for v, t in zip(values, there, strict=True)], pa.list_(pa.float32())
            )
        side = run / "side" / "embeddings" / f"{path.stem}.1.parquet"
        side.parent.mkdir(parents=True, exist_ok=True)
        table = schema.conform(pa.table(columns))
        pq.write_table(table, side)
        entry = {
            "file": str(side.relative_to(run)),
            "rows": table.num_rows,
            "bytes": side.stat().st_size,
            "sha256": hashlib.sha256(side.read_bytes()).hexdigest(),
        }
        path.write_text(json.dumps({**record, "side": {"embeddings": entry}}))
    plan = json.loads((run / "plan.json").read_text())
    plan["identity"]["side"] = ["embeddings"]
    (run / "plan.json").write_text(json.dumps(plan))
