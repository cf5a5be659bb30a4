"""What a run will read, hold and take; from counts alone, so it is a size, not a promise."""

from __future__ import annotations

from typing import Any

from applecider_batch.engine.plan import Plan

# Items per second and CPU thread, or per GPU.  CPU: measured on a shared 2-core EPYC (docs/decisions.md);
# GPU: a tenth of what 35 % of the H200's matrix product would give for ConvNeXt-Tiny, because feeding it
# is the limit.
CPU_ITEMS_PER_S = {"photometry": 600.0, "image": 150.0, "spectra": 60.0}
GPU_ITEMS_PER_S = {"photometry": 60_000.0, "image": 20_000.0, "spectra": 10_000.0}
# Reading and preparing an object for all horizons, per worker.
PREPARE_OBJECTS_PER_S = 400.0
# A process with torch and pyarrow, and what an object of a shard and an item of a batch hold at the peak.
PROCESS_BYTES = 700 << 20
ALERT_BYTES = 40_000
IMAGE_ITEM_BYTES = 8 << 20


def estimate(
    plan: Plan, archive: Any, model_set: Any, workers: int, price_per_gpu_hour: float | None
) -> dict[str, Any]:
    """Rows, bytes, memory, time, GPU-hours and cost of a plan.

    Returns
    -------
    dict
        ``rows`` (at most, one episode each), ``bytes_read``, ``memory_per_worker_bytes``, ``seconds``,
        ``gpu_hours`` and ``cost`` (None without a GPU or a price).
    """
    objects = sum(shard.objects for shard in plan.shards)
    alerts = sum(shard.alerts for shard in plan.shards)
    rows = objects * len(plan.horizons)
    # One image per object and horizon at most; early horizons often share theirs, so this is an upper bound.
    items = {"photometry": rows, "image": rows, "spectra": min(_stored_spectra(archive), objects)}
    on_gpu = plan.identity["device_type"] == "cuda"
    rates = GPU_ITEMS_PER_S if on_gpu else CPU_ITEMS_PER_S
    scale = 1 if on_gpu else plan.identity["threads"] * workers
    infer = sum(items[name] / (rates[name] * scale) for name in items if name in model_set.defaults)
    prepare = objects / (PREPARE_OBJECTS_PER_S * workers)
    seconds = max(infer, prepare) if on_gpu else infer + prepare
    gpu_hours = seconds / 3600 if on_gpu else None
    largest = max(shard.alerts for shard in plan.shards)
    batch = plan.identity["batch_size"] * IMAGE_ITEM_BYTES if "image" in model_set.defaults else 0
    return {
        "rows": rows,
        "bytes_read": _stored_bytes(archive, alerts),
        "memory_per_worker_bytes": PROCESS_BYTES + largest * ALERT_BYTES + batch,
        "seconds": round(seconds, 1),
        "gpu_hours": None if gpu_hours is None else round(gpu_hours, 3),
        "cost": None
        if gpu_hours is None or price_per_gpu_hour is None
        else round(gpu_hours * price_per_gpu_hour, 2),
    }


def _stored_spectra(archive: Any) -> int:
    return sum(part.rows("spectra") for part in archive.snapshot.parts)


def _stored_bytes(archive: Any, alerts: int) -> int:
    """Bytes of the tables a run reads, by the share of alerts that the plan selects."""
    parts = archive.snapshot.parts
    total = sum(
        part.tables[name].bytes
        for part in parts
        for name in ("alerts", "photometry", "stamps", "spectra")
        if name in part.tables
    )
    stored = sum(part.rows("alerts") for part in parts)
    return int(total * min(1.0, alerts / stored)) if stored else total
