"""What a run will read, write, hold, take and cost.

Sizes come from the archive's indices.  Times, memory and bytes a row come from a calibration (a few pieces of
the plan's shards done in a temporary folder, see :func:`calibrate`), or, without one, from round figures of
one machine, which are an order of magnitude.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
import time
import tomllib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.outcome import Outcome
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

# A calibration does pieces of at most so many objects and at most that share of all, the first a smaller one.
SAMPLES = 4
SAMPLE_OBJECTS = 1000
SAMPLE_SHARE = 8
FEWEST_OBJECTS = 150
TABLES = ("alerts", "photometry", "spectra", "stamps")


@dataclass(frozen=True)
class Calibration:
    """What a few pieces of a plan took.

    Attributes
    ----------
    start_seconds : float
        Opening the inputs, loading the networks, what happens once in a process.
    ready_seconds_per_object : float
        Reading and preparing, which nothing is done beside for the first shard of all.
    seconds_per_object : float
        Of the clock, with the next piece made ready meanwhile, as a run does it.
    own_seconds_per_object, network_seconds_per_object : float
        A worker's own work, and the networks'.
    bytes_read_ratio : float
        Bytes read over those of all row groups that the pieces overlap.
    row_bytes, rows_per_object : float
        Of the data files, without what each file has of its own.
    file_bytes : float
        What a data file has of its own: schema, dictionaries.
    peak_memory_bytes : int
        Of the process, networks included.
    """

    start_seconds: float
    ready_seconds_per_object: float
    seconds_per_object: float
    own_seconds_per_object: float
    network_seconds_per_object: float
    bytes_read_ratio: float
    row_bytes: float
    file_bytes: float
    rows_per_object: float
    peak_memory_bytes: int


def calibrate(plan: Plan, archive: Any, storage_options: Mapping[str, Any]) -> Calibration:
    """Do a few pieces of the plan's shards, spread over the sky, in a temporary folder, and time them.

    Raises
    ------
    UserError
        If a piece fails.
    """
    pieces = sample(plan.shards)
    with tempfile.TemporaryDirectory(prefix="acb-calibrate-") as folder:
        found, ends = _done(pieces, TaskSpec(plan, Store(folder), dict(storage_options)))
    # The first piece pays for what happens once in a process; where there is no other, it has to serve. Of
    # many the second one finds nothing made ready, so that it counts as little as what lies before it.
    first = min(len(found) - 1, 1 if len(found) <= 3 else 2)
    timed = found[first:]
    objects = max(sum(outcome.record["objects"] for outcome in timed), 1)
    steps: Counter[str] = Counter()
    for outcome in timed:
        steps.update(outcome.metrics["seconds"])
    took = (ends[-1] - ends[first - 1] if first else steps.total()) / objects
    network = steps["infer"]
    if plan.identity["device_type"] == "cuda":  # it computes while the pieces go on: not all is waited for
        network = sum(sum(outcome.metrics["busy"].values()) for outcome in timed)
    rows = max(sum(outcome.record["rows"] for outcome in found), 1)
    row_bytes, file_bytes = _sizes(found)
    return Calibration(
        start_seconds=max(ends[0] - took * found[0].record["objects"], 0.0),
        ready_seconds_per_object=(steps["read"] + steps["prepare"]) / objects,
        seconds_per_object=took,
        own_seconds_per_object=(steps.total() - steps["infer"]) / objects,
        network_seconds_per_object=network / objects,
        bytes_read_ratio=sum(outcome.metrics["bytes_read"] for outcome in found)
        / max(bytes_for_one(archive, pieces[: len(found)]), 1.0),
        row_bytes=row_bytes,
        file_bytes=file_bytes,
        rows_per_object=rows / max(sum(outcome.record["objects"] for outcome in found), 1),
        peak_memory_bytes=max(outcome.metrics["peak_memory_bytes"] for outcome in found),
    )


def _sizes(found: Sequence[Outcome]) -> tuple[float, float]:
    """Bytes of a row and of what a data file has of its own, from the first piece and the larger ones."""
    rows = np.array([outcome.record["rows"] for outcome in found], float)
    size = np.array([outcome.metrics["bytes_written"] for outcome in found], float)
    empty = float(len(parquet_bytes(load_table("catalogue").empty())))
    if len(found) > 1 and rows[1:].mean() > 2 * rows[0]:
        of_row = max((size[1:].mean() - size[0]) / (rows[1:].mean() - rows[0]), 0.0)
        return of_row, max(size[0] - of_row * rows[0], empty)
    return max((size.sum() - len(found) * empty) / max(rows.sum(), 1.0), 0.0), empty


def _done(pieces: Sequence[Shard], spec: TaskSpec) -> tuple[list[Outcome], list[float]]:
    """Outcomes of the pieces, and the seconds until each was done; of more than three the last is not.

    That one is made ready only: beside every other piece but the first two the next one is then made ready,
    as in the middle of a run.
    """
    from applecider_batch.engine.serial import SerialExecutor

    found: list[Outcome] = []
    ends: list[float] = []
    with contextlib.closing(SerialExecutor(spec)) as executor:
        begin = time.monotonic()
        executor.start(threading.Event())
        waiting = deque(enumerate(pieces))
        while len(found) < len(pieces) - (len(pieces) > 3):
            while waiting and executor.free():
                number, piece = waiting.popleft()
                executor.submit(piece, Attempt(f"calibrate{number}"))
            (outcome,) = executor.wait(0.0)
            ends.append(time.monotonic() - begin)
            if outcome.kind != "committed":
                name = pieces[len(found)].name
                raise UserError(f"The calibration failed on {name}: {outcome.error}.")
            found.append(outcome)
    return found, ends


def sample(shards: Sequence[Shard]) -> list[Shard]:
    """Pieces of shards spread evenly over the plan, the first one to warm up; hash ranges of some objects."""
    filled = [shard for shard in shards if shard.objects]
    if not filled:
        raise UserError("The plan has no object to calibrate with.")
    share = sum(shard.objects for shard in filled) // SAMPLE_SHARE
    most = min(max(share, FEWEST_OBJECTS), SAMPLE_OBJECTS)
    pieces = [piece for shard in filled for piece in _pieces(shard, most)]
    first, *rest = np.unique(np.linspace(0, len(pieces) - 1, SAMPLES + 1).round().astype(int)).tolist()
    return [_pieces(pieces[first], FEWEST_OBJECTS)[0], *(pieces[number] for number in rest)]


def _pieces(shard: Shard, most: int) -> list[Shard]:
    """A shard in pieces of about ``most`` objects; hashes are spread evenly, so these are equal ranges."""
    count = max(1, shard.objects // most)
    edges = [shard.hash_lo + (shard.hash_hi - shard.hash_lo) * at // count for at in range(count + 1)]
    objects = shard.objects // count
    return [replace(shard, hash_lo=lo, hash_hi=hi, objects=objects) for lo, hi in itertools.pairwise(edges)]


def bytes_of(archive: Any, shards: Sequence[Shard]) -> dict[str, np.ndarray]:
    """Stored bytes of the row groups that each shard overlaps, by table: float64 (n_shards,).

    From the parts' indices: a row group's share of its file is that of its uncompressed size.
    """
    sizes = {name: np.zeros(len(shards)) for name in TABLES}
    for name, stored, first, stop in _overlapped(archive, shards):
        upto = np.concatenate([[0.0], np.cumsum(stored)])
        sizes[name] += np.where(stop > first, upto[stop] - upto[first], 0.0)
    return sizes


def bytes_for_one(archive: Any, shards: Sequence[Shard]) -> float:
    """Stored bytes of the row groups that shards overlap, read by one worker in their order.

    It keeps the row group that reaches into its next shard, unless it is one of stamps.
    """
    total = float(bytes_of(archive, shards)["stamps"].sum())
    for name, stored, first, stop in _overlapped(archive, shards):
        if name != "stamps":
            change = np.zeros(len(stored) + 1, np.int64)
            np.add.at(change, first, 1)
            np.add.at(change, np.maximum(stop, first), -1)
            total += float(stored[np.cumsum(change)[:-1] > 0].sum())
    return total


def _overlapped(
    archive: Any, shards: Sequence[Shard]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each part's tables: name, bytes of the row groups, each shard's first one and behind its last."""
    lo = np.array([shard.hash_lo for shard in shards], np.uint64)
    last = np.array([shard.hash_hi - 1 for shard in shards], np.uint64)
    for part in archive.parts:
        for name in TABLES:
            index = part.index(name)
            if index is not None and index.bytes.sum():
                stored = index.bytes * (part.record.tables[name].bytes / index.bytes.sum())
                yield name, stored, np.searchsorted(index.hi, lo), np.searchsorted(index.lo, last, "right")


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
    if workers == 1:
        everything = bytes_for_one(archive, plan.shards)
    else:
        everything = float(sum(of.sum() for of in bytes_of(archive, plan.shards).values()))
    rows = objects * len(plan.horizons)
    if measured is None:
        own, network = _round_figures(plan, archive, model_set, objects, rows)
        both, start, ratio, written = own + network, 0.0, 1.0, float(rows * ROW_BYTES)
        batch = plan.identity["batch_size"] * IMAGE_ITEM_BYTES if "image" in model_set.defaults else 0
        memory = PROCESS_BYTES + max(shard.alerts for shard in plan.shards) * ALERT_BYTES + batch
    else:
        own = measured.own_seconds_per_object * objects
        network = measured.network_seconds_per_object * objects
        both = measured.seconds_per_object * objects
        start = measured.start_seconds + measured.ready_seconds_per_object * max(
            shard.objects for shard in plan.shards
        )
        ratio = measured.bytes_read_ratio
        rows = round(measured.rows_per_object * objects)
        written = rows * measured.row_bytes + len(plan.shards) * measured.file_bytes
        memory = measured.peak_memory_bytes
    # A GPU works while the workers prepare the next batch; a CPU has to do both.
    seconds = start + (max(own / workers, network) if on_gpu else both / workers)
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
