"""What the command line, the jobs and library users call.

A run is a folder; everything here takes and returns plain values (see ``schemas/answers.json`` for the keys).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from applecider_batch.errors import UsageError
from applecider_batch.models.manifest import MANIFEST
from applecider_batch.storage import Store, absolute

if TYPE_CHECKING:
    from applecider_batch.engine.plan import Plan

DEFAULT_HORIZONS: tuple[float | None, ...] = (3.0, 10.0, 30.0, None)
DEFAULT_OBJECTS_PER_SHARD = 2000
EXECUTORS: tuple[str, ...] = ("serial", "ray")


def plan(
    archive_url: str,
    models: str,
    *,
    horizons: Sequence[float | None] = DEFAULT_HORIZONS,
    region: Sequence[float] | None = None,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int | None = None,
    threads: int = 1,
    objects_per_shard: int = DEFAULT_OBJECTS_PER_SHARD,
    snapshot: int | None = None,
    cuts: str | None = None,
    workers: int = 1,
    calibrated: bool = False,
    prices: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a classification would do and cost; writes nothing but temporary files.

    Parameters
    ----------
    archive_url, models : str
        Archive, and folder or packaged name of a model set.
    horizons : sequence of float or None
        Days after t0; None is the full history.
    region : (float, float, float), optional
        Cone: right ascension, declination and radius in degrees; only objects inside are classified.
    device, dtype, threads : str, str, int
        ``cpu``, ``cuda`` or ``auto``, ``float32``, ``float16`` or ``bfloat16``, CPU threads per process.
    batch_size : int, optional
        Largest batch for a network; by default 64 on a CPU and 1,024 on a GPU, halved where it does not fit.
    objects_per_shard : int
        Objects that a shard should hold.
    snapshot : int, optional
        Snapshot of the archive; by default the newest.
    cuts : str, optional
        File (any fsspec URL) with own cut presets.
    workers : int
        For the estimate of time only.
    calibrated : bool
        Do a few pieces of the plan first, and estimate from what they took.
    prices : str, optional
        TOML file (any fsspec URL) with ``currency`` and prices; see ``engine.estimate.PRICES``.

    Returns
    -------
    dict
        ``run_id, snapshot, models, horizons, shards, objects, alerts, rows, bytes_read, bytes_written,
        memory_per_worker_bytes, seconds, gpu_hours, cost, ...``
    """
    from applecider_batch.engine.estimate import calibrate, estimate, read_prices
    from applecider_batch.engine.plan import make_plan, open_inputs, read_cuts

    table = read_prices(prices, storage_options)
    archive, model_set = open_inputs(archive_url, models, snapshot, storage_options)
    device = resolve_device(device)
    made = make_plan(
        archive,
        model_set,
        horizons=horizons,
        region=region,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        threads=threads,
        objects_per_shard=objects_per_shard,
        archive_url=archive_url,
        models=models,
        cuts=read_cuts(cuts, storage_options),
    )
    measured = calibrate(made, archive, storage_options or {}) if calibrated else None
    return {**made.describe(), **estimate(made, archive, model_set, workers, measured, table)}


def classify(
    archive_url: str,
    models: str,
    run_url: str,
    *,
    horizons: Sequence[float | None] = DEFAULT_HORIZONS,
    executor: str = "serial",
    address: str | None = None,
    workers: int | None = None,
    region: Sequence[float] | None = None,
    limit_shards: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int | None = None,
    threads: int = 1,
    objects_per_shard: int = DEFAULT_OBJECTS_PER_SHARD,
    snapshot: int | None = None,
    cuts: str | None = None,
    side: Sequence[str] = (),
    pools: Mapping[str, Mapping[str, float]] | None = None,
    autoscale: bool = False,
    retry_quarantined: bool = False,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Classify an archive into a run folder; an interrupted run is resumed by the same call.

    Parameters
    ----------
    run_url : str
        Run folder on any fsspec URL; created, or resumed if it was made with the same plan.
    executor : str
        ``serial`` (this process) or ``ray``.
    address : str, optional
        Ray cluster; by default a local one is started for the run.
    workers : int, optional
        Shard workers (Ray); by default one per two CPUs.
    snapshot : int, optional
        Snapshot of the archive; by default the newest.  A run is refused when it was made with
        other contents; a compacted archive has the same contents.
    cuts : str, optional
        File (any fsspec URL) with own cut presets, see ``features/cuts.toml``; part of the run's identity.
    side : sequence of str
        Side tables to write, of ``embeddings``, ``light_curves``; part of the run's identity.
    limit_shards : int, optional
        Stop after so many of the shards that are not done; not part of the run's identity.
    pools : mapping, optional
        Per modality, and for ``worker``: ``{"size": int, "num_cpus": float, "num_gpus": float,
        "memory_gib": float}``.  Sizes are the most there will be: fewer shards left need fewer.
    autoscale : bool
        The cluster grows on demand: do not refuse what its present nodes cannot hold.
    retry_quarantined : bool
        Give quarantined shards a new start.

    Returns
    -------
    dict
        ``run_id, run, state ("complete", "partial" or "incomplete"), shards, shards_committed,
        shards_quarantined, shards_remaining, objects, rows, objects_in_error, degraded_shards, trained,
        anomaly_ref_id, seconds, objects_per_s``

    Raises
    ------
    UserError
        Archive, model set or run folder refused; another driver has the run; storage full.
    ClusterError
        Ray is unreachable or cannot place the pools.
    RunInterrupted
        SIGINT, SIGTERM or ``cancel``; the run is resumable.
    """
    from applecider_batch.engine.plan import make_plan, open_inputs, read_cuts

    check_executor(executor, address, workers, pools)
    if limit_shards is not None and limit_shards < 1:
        raise UsageError(f"--limit-shards must be at least 1, given was {limit_shards}.")
    # Workers run in folders of their own.
    archive_url, run_url = absolute(archive_url), absolute(run_url)
    models = absolute(models) if os.path.exists(os.path.join(models, MANIFEST)) else models  # else packaged
    store = Store(run_url, storage_options)
    archive, model_set = open_inputs(archive_url, models, snapshot, storage_options)
    made = make_plan(
        archive,
        model_set,
        horizons=horizons,
        region=region,
        device=resolve_device(device, address),
        dtype=dtype,
        batch_size=batch_size,
        threads=threads,
        objects_per_shard=objects_per_shard,
        archive_url=archive_url,
        models=models,
        cuts=read_cuts(cuts, storage_options),
        side=side,
    )
    return drive(
        made,
        store,
        executor=executor,
        address=address,
        workers=workers,
        pools=pools,
        autoscale=autoscale,
        limit_shards=limit_shards,
        retry_quarantined=retry_quarantined,
        progress=progress,
    )


def check_executor(
    executor: str, address: str | None, workers: int | None, pools: Mapping[str, Mapping[str, float]] | None
) -> None:
    """Refuse an unknown executor, and options that it does not have (UsageError)."""
    if executor not in EXECUTORS:
        raise UsageError(f"Unknown executor '{executor}'; allowed are {', '.join(EXECUTORS)}.")
    if executor == "serial" and (address or pools or (workers or 1) != 1):
        raise UsageError(
            "The serial executor has neither address, pools nor workers; use --executor ray for these."
        )


def drive(
    plan: Plan,
    store: Store,
    *,
    executor: str,
    address: str | None = None,
    workers: int | None = None,
    pools: Mapping[str, Mapping[str, float]] | None = None,
    autoscale: bool = False,
    limit_shards: int | None = None,
    retry_quarantined: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Work through a plan in a run folder (the parameters and the answer are those of :func:`classify`)."""
    from applecider_batch.engine.driver import Driver
    from applecider_batch.engine.run_folder import RunFolder
    from applecider_batch.engine.task_spec import TaskSpec

    spec = TaskSpec(plan, store, dict(store.storage_options))
    if executor == "serial":
        from applecider_batch.engine.serial import SerialExecutor

        runner: Any = SerialExecutor(spec)
    else:
        from applecider_batch.engine.ray_executor import RayExecutor

        runner = RayExecutor(spec, address=address, workers=workers, pools=pools, autoscale=autoscale)
    return Driver(RunFolder(store), plan, runner, progress=progress).run(
        limit_shards=limit_shards, retry_quarantined=retry_quarantined
    )


def status(run_url: str, *, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """State of a run, from its folder alone.

    Returns
    -------
    dict
        ``run_id, run, state ("running", "complete", "partial", "incomplete"), shards,
        shards_committed, shards_quarantined, shards_remaining, objects, rows, objects_in_error,
        degraded_shards, failures, driver, objects_per_s, ...``
    """
    from applecider_batch.engine.status import run_status

    return run_status(Store(run_url, storage_options))


def cancel(run_url: str, *, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask the driver of a run to stop; it leaves a resumable run.

    Returns
    -------
    dict
        ``run, cancelled`` (False if no driver is running) and ``driver``.
    """
    from applecider_batch.engine.status import request_cancel

    return request_cancel(Store(run_url, storage_options))


def logs(
    run_url: str, *, lines: int | None = None, storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """Lines of a run's log, oldest first; with ``lines`` only the last so many."""
    from applecider_batch.engine.status import read_log

    return read_log(Store(run_url, storage_options), lines)


def resolve_device(device: str, address: str | None = None) -> str:
    """``auto`` as ``cuda`` where there is a GPU (here, or on the cluster at ``address``), else ``cpu``."""
    if device != "auto":
        return device
    if address is not None:
        from applecider_batch.engine.ray_cluster import Connection

        with contextlib.closing(Connection(address)) as connection:
            connection.open()
            found = any(node.gpus for node in connection.nodes())
    else:
        import torch

        found = torch.cuda.is_available()
    return "cuda" if found else "cpu"
