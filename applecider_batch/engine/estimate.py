"""What a run will read, write, hold, take and cost.

Sizes come from the archive's indices.  Times, memory and bytes a row come from a calibration (a few pieces of
the plan's shards done in a temporary folder, see :func:`calibrate`), or, without one, from round figures of
one machine, which are an order of magnitude.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.plan import Plan, Shard
from applecider_batch.engine.shard_task import parquet_bytes
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from applecider_batch.storage import Store, store_of

# Without a calibration. Items per second and CPU thread, or per GPU. CPU: a shared 2-core EPYC; GPU: a tenth
# of what 35 % of the H200's matrix product would give for ConvNeXt-Tiny, because feeding it is the limit.
CPU_ITEMS_PER_S = {"photometry": 600.0, "image": 150.0, "spectra": 60.0}
GPU_ITEMS_PER_S = {"photometry": 60_000.0, "image": 20_000.0, "spectra": 10_000.0}
# Reading and preparing an object for all horizons, per worker.
PREPARE_OBJECTS_PER_S = 400.0
# A process with torch and pyarrow, and what an alert of a shard and an item of a batch hold at the peak.
PROCESS_BYTES = 700 << 20
ALERT_BYTES = 40_000
IMAGE_ITEM_BYTES = 8 << 20
ROW_BYTES = 700

SAMPLES = 4
SAMPLE_OBJECTS = 150
TABLES = ("alerts", "photometry", "spectra", "stamps")


@dataclass(frozen=True)
class Calibration:
    """What a few pieces of a plan took.

    Attributes
    ----------
    start_seconds : float
        Opening the inputs, loading the networks, and what the first piece took longer than the others.
    read_seconds_per_byte : float
        Of the tables read before inference.
    own_seconds_per_object, network_seconds_per_object : float
        A worker's own work, and waiting for networks in the same process.
    bytes_read_ratio : float
        Bytes read over those of all row groups that the pieces overlap.
    row_bytes, rows_per_object : float
        Of the data files, without what each file has of its own.
    file_bytes : int
        Of a data file without rows.
    peak_memory_bytes : int
        Of the process, networks included.
    """

    start_seconds: float
    read_seconds_per_byte: float
    own_seconds_per_object: float
    network_seconds_per_object: float
    bytes_read_ratio: float
    row_bytes: float
    file_bytes: int
    rows_per_object: float
    peak_memory_bytes: int


def calibrate(plan: Plan, archive: Any, storage_options: Mapping[str, Any]) -> Calibration:
    """Do a few pieces of the plan's shards, spread over the sky, in a temporary folder, and time them.

    Raises
    ------
    UserError
        If a piece fails.
    """
    from applecider_batch.engine.serial import SerialExecutor

    pieces = sample(plan.shards)
    with (
        tempfile.TemporaryDirectory(prefix="acb-calibrate-") as folder,
        contextlib.closing(SerialExecutor(TaskSpec(plan, Store(folder), dict(storage_options)))) as executor,
    ):
        begin = time.monotonic()
        executor.start(threading.Event())
        found, first = [], 0.0  # seconds until the first piece is done
        for number, piece in enumerate(pieces):
            executor.submit(piece, Attempt(f"calibrate{number}"))
            (outcome,) = executor.wait(0.0)
            if outcome.kind != "committed":
                raise UserError(f"The calibration failed on {piece.name}: {outcome.error}.")
            found.append(outcome)
            first = first or time.monotonic() - begin
    # The first piece pays for what happens once in a process; where there is no other, it has to serve.
    timed = range(1, len(found)) if len(found) > 1 else range(1)
    steps: Counter[str] = Counter()
    for number in timed:
        steps.update(found[number].metrics["seconds"])
    overlapped = bytes_of(archive, pieces)
    waited = steps["infer"]
    if plan.identity["device_type"] == "cuda":  # it computes while the pieces go on: not all is waited for
        waited = sum(sum(found[number].metrics["busy"].values()) for number in timed)
    before = sum(of[list(timed)].sum() for name, of in overlapped.items() if name != "stamps")
    objects = max(sum(found[number].record["objects"] for number in timed), 1)
    fixed = len(parquet_bytes(load_table("catalogue").empty()))
    rows = max(sum(outcome.record["rows"] for outcome in found), 1)
    return Calibration(
        start_seconds=max(first - steps.total() / len(timed), 0.0),
        read_seconds_per_byte=steps["read"] / max(before, 1.0),
        own_seconds_per_object=(steps.total() - steps["read"] - steps["infer"]) / objects,
        network_seconds_per_object=waited / objects,
        bytes_read_ratio=sum(outcome.metrics["bytes_read"] for outcome in found)
        / max(sum(of.sum() for of in overlapped.values()), 1.0),
        row_bytes=max(sum(o.metrics["bytes_written"] - fixed for o in found) / rows, 0.0),
        file_bytes=fixed,
        rows_per_object=rows / max(sum(outcome.record["objects"] for outcome in found), 1),
        peak_memory_bytes=max(outcome.metrics["peak_memory_bytes"] for outcome in found),
    )


def sample(shards: Sequence[Shard]) -> list[Shard]:
    """Pieces of shards spread evenly over the plan, the first one to warm up; hash ranges of some objects."""
    filled = [shard for shard in shards if shard.objects]
    if not filled:
        raise UserError("The plan has no object to calibrate with.")
    chosen = np.unique(np.linspace(0, len(filled) - 1, SAMPLES + 1).round().astype(int))
    return [_piece(filled[number]) for number in chosen]


def _piece(shard: Shard) -> Shard:
    share = min(1.0, SAMPLE_OBJECTS / shard.objects)
    if share == 1.0:
        return shard
    # Hashes are spread evenly, so a share of the range is that share of the objects.
    width = int((shard.hash_hi - shard.hash_lo) * share)
    return replace(shard, hash_hi=shard.hash_lo + width, objects=SAMPLE_OBJECTS)


def bytes_of(archive: Any, shards: Sequence[Shard]) -> dict[str, np.ndarray]:
    """Stored bytes of the row groups that each shard overlaps, by table: float64 (n_shards,).

    From the parts' indices: a row group's share of its file is that of its uncompressed size.
    """
    lo = np.array([shard.hash_lo for shard in shards], np.uint64)
    last = np.array([shard.hash_hi - 1 for shard in shards], np.uint64)
    sizes = {name: np.zeros(len(shards)) for name in TABLES}
    for part in archive.parts:
        for name in TABLES:
            index = part.index(name)
            if index is None or not index.bytes.sum():
                continue
            stored = index.bytes * (part.record.tables[name].bytes / index.bytes.sum())
            upto = np.concatenate([[0.0], np.cumsum(stored)])
            first, end = np.searchsorted(index.hi, lo, "left"), np.searchsorted(index.lo, last, "right")
            sizes[name] += np.where(end > first, upto[end] - upto[first], 0.0)
    return sizes


def estimate(
    plan: Plan,
    archive: Any,
    model_set: Any,
    workers: int,
    measured: Calibration | None,
    prices: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Rows, bytes, memory, time, GPU-hours and cost of a plan.

    Returns
    -------
    dict
        ``rows, bytes_read, bytes_written, memory_per_worker_bytes, seconds, start_seconds, gpu_hours,
        calibrated, cost, currency``; ``gpu_hours`` is None on CPUs, ``cost`` without prices.
    """
    objects = sum(shard.objects for shard in plan.shards)
    on_gpu = plan.identity["device_type"] == "cuda"
    sizes = bytes_of(archive, plan.shards)
    everything = sum(float(of.sum()) for of in sizes.values())
    rows = objects * len(plan.horizons)
    if measured is None:
        own, network = _round_figures(plan, archive, model_set, objects, rows)
        start, ratio, written = 0.0, 1.0, float(rows * ROW_BYTES)
        largest = max(shard.alerts for shard in plan.shards)
        batch = plan.identity["batch_size"] * IMAGE_ITEM_BYTES if "image" in model_set.defaults else 0
        memory = PROCESS_BYTES + largest * ALERT_BYTES + batch
    else:
        before = everything - float(sizes["stamps"].sum())
        own = measured.read_seconds_per_byte * before + measured.own_seconds_per_object * objects
        network = measured.network_seconds_per_object * objects
        start, ratio = measured.start_seconds, measured.bytes_read_ratio
        rows = round(measured.rows_per_object * objects)
        written = rows * measured.row_bytes + len(plan.shards) * measured.file_bytes
        memory = measured.peak_memory_bytes
    # A GPU works while the workers prepare the next batch; a CPU has to do both.
    seconds = start + (max(own / workers, network) if on_gpu else (own + network) / workers)
    answer = {
        "rows": rows,
        "bytes_read": int(everything * ratio),
        "bytes_written": int(written),
        "memory_per_worker_bytes": int(memory),
        "seconds": round(seconds, 1),
        "start_seconds": round(start, 1),
        "gpu_hours": round(seconds / 3600, 4) if on_gpu else None,
        "calibrated": measured is not None,
    }
    return {**answer, **_cost(answer, seconds * workers / 3600, prices)}


def _round_figures(plan: Plan, archive: Any, model_set: Any, objects: int, rows: int) -> tuple[float, float]:
    """Seconds of a worker's own work and of networks, for all objects on one worker."""
    on_gpu = plan.identity["device_type"] == "cuda"
    # One image per object and horizon at most; early horizons often share theirs.
    spectra = sum(part.rows("spectra") for part in archive.snapshot.parts)
    items = {"photometry": rows, "image": rows, "spectra": min(spectra, objects)}
    rates, threads = (GPU_ITEMS_PER_S, 1) if on_gpu else (CPU_ITEMS_PER_S, plan.identity["threads"])
    network = sum(items[name] / (rates[name] * threads) for name in items if name in model_set.defaults)
    return objects / PREPARE_OBJECTS_PER_S, network


#: Keys of a price table, and what each is the price of.
PRICES = {
    "cpu_hour": "a worker for an hour",
    "gpu_hour": "a GPU for an hour",
    "gb_read": "10^9 bytes read",
    "gb_written": "10^9 bytes written",
}


def read_prices(url: str | None, storage_options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A price table: TOML with ``currency`` and any of :data:`PRICES`.

    Raises
    ------
    UserError
        If it is absent, no TOML, or holds something else.
    """
    if url is None:
        return None
    store, name = store_of(url, storage_options)
    allowed = f"allowed are currency, {', '.join(PRICES)}"
    try:
        table = tomllib.loads(store.read_bytes(name).decode())
    except FileNotFoundError:
        raise UserError(f"There is no price table '{url}'.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The price table '{url}' is not TOML: {error}.") from error
    for key, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if (key not in PRICES or not number) and not (key == "currency" and isinstance(value, str)):
            raise UserError(f"The price table '{url}' has '{key} = {value!r}'; {allowed}, as numbers >= 0.")
    return table


def _cost(answer: Mapping[str, Any], worker_hours: float, prices: Mapping[str, Any] | None) -> dict[str, Any]:
    if prices is None:
        return {"cost": None, "currency": None}
    amounts = {
        "cpu_hour": worker_hours,
        "gpu_hour": answer["gpu_hours"] or 0.0,
        "gb_read": answer["bytes_read"] / 1e9,
        "gb_written": answer["bytes_written"] / 1e9,
    }
    cost = sum(amount * prices.get(name, 0.0) for name, amount in amounts.items())
    return {"cost": float(f"{cost:.4g}"), "currency": prices.get("currency")}
