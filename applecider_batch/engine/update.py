"""The nightly update: classify what changed in the archive since a release, and make the next release of it.

The steps, each of which can be killed and is gone on with by the same call::

    CATALOG/runs/<run_id>/          the changed objects are classified (a run like any other)
    CATALOG/rows, index, …          what goes into the release beside what is there
    CATALOG/releases/00002.json     the new release, then catalog.json

What changed: objects with rows that came since, objects with rows that are seen only now, and objects with a
horizon that is over only now.  Everything else has the same rows as in a classification of the whole archive;
models, settings and program must be those of the release, because a release is made of one of each.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from applecider_batch import __version__
from applecider_batch.engine.api import DEFAULT_OBJECTS_PER_SHARD, check_executor, drive
from applecider_batch.engine.plan import Plan, make_plan, open_inputs
from applecider_batch.engine.run_folder import read_lines
from applecider_batch.engine.selection import write_selection
from applecider_batch.errors import UserError
from applecider_batch.storage import Store, absolute


def update(
    archive_url: str,
    catalog_url: str,
    models: str,
    *,
    known: Sequence[str] = (),
    executor: str = "serial",
    address: str | None = None,
    workers: int | None = None,
    objects_per_shard: int = DEFAULT_OBJECTS_PER_SHARD,
    retry_quarantined: bool = False,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Bring a catalogue up to an archive's newest snapshot.

    Parameters
    ----------
    archive_url, catalog_url : str
        The archive, and a catalogue that was made from an earlier state of it.
    models : str
        The model set that the catalogue was made with; the other settings are the catalogue's.
    known : sequence of str
        ``[KIND=]FILE``: the lists that the catalogue was cross-matched with.
    executor, address, workers, retry_quarantined
        As :func:`applecider_batch.engine.api.classify`.
    objects_per_shard : int
        Objects that a shard of the changed ones should hold.

    Returns
    -------
    dict
        Keys as ``update`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        If models, program or lists are not the release's, the archive cannot tell what has changed, or a
        shard was set aside.
    """
    from applecider_batch.archive.changes import changed_objects
    from applecider_batch.catalog.release import add_release, matcher_of, open_newest, same_lists, with_index
    from applecider_batch.catalog.release_index import closing_objects
    from applecider_batch.catalog.store import only_writer

    check_executor(executor, address, workers, None)
    started = time.monotonic()
    archive_url, catalog_url = absolute(archive_url), absolute(catalog_url)
    models = absolute(models) if os.path.isdir(models) else models
    with only_writer(catalog_url, storage_options):
        store, info, completed = open_newest(catalog_url, storage_options)
        archive, model_set = open_inputs(archive_url, models, None, storage_options)
        _refuse_others(info, model_set, catalog_url)
        matcher = matcher_of(info, known, storage_options)
        same_lists(info, matcher, catalog_url)

        snapshot = archive.snapshot
        answer = {
            "changed": completed,
            "catalogue": catalog_url,
            "snapshot": snapshot.id,
            "logical_digest": snapshot.logical_digest,
        }
        if snapshot.logical_digest == info["identity"]["snapshot"]:
            return {**answer, **_of_release(info), **_nothing(started)}
        touched = changed_objects(archive.store, snapshot, info["identity"]["snapshot"])
        info = with_index(store, info)
        closing = np.empty(0, np.uint64)
        if snapshot.jd_max is not None:
            closing = np.setdiff1d(closing_objects(store, info, snapshot.jd_max), touched)
        changed = np.union1d(touched, closing)
        plan = _plan(archive, model_set, changed, info["identity"], archive_url, models, objects_per_shard)
        run = Store(f"{catalog_url}/runs/{plan.run_id}", storage_options)
        write_selection(run, changed)
        found = time.monotonic()
        done = drive(
            plan, run, executor=executor, address=address, workers=workers,
            retry_quarantined=retry_quarantined, progress=progress,
        )  # fmt: skip
        classified = time.monotonic()
        new = add_release(store, info, run.url, changed, as_of_jd=snapshot.jd_max, matcher=matcher)
        delta = new["deltas"][-1]
        ended = time.monotonic()
        return {
            **answer,
            **_of_release(new),
            "changed": True,
            "objects_touched": len(touched),
            "objects_closing": len(closing),
            "objects_classified": done["objects"],
            "objects_in_error": done["objects_in_error"],
            "rows_superseded": delta["rows_superseded"],
            "rows_new": sum(part["rows"] for part in delta["parts"]),
            "run": run.url,
            "run_id": plan.run_id,
            "bytes_read": _bytes_read(run),
            "seconds": {
                "find": round(found - started, 3),
                "classify": round(classified - found, 3),
                "release": round(ended - classified, 3),
            },
        }


def _of_release(info: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "release": info.get("release", 1),
        "deltas": len(info.get("deltas", ())),
        **{name: info[name] for name in ("rows", "objects", "content_sha256", "trained")},
    }


def _nothing(started: float) -> dict[str, Any]:
    counts = ("touched", "closing", "classified", "in_error")
    return {
        **dict.fromkeys((f"objects_{name}" for name in counts), 0),
        **{"rows_superseded": 0, "rows_new": 0, "run": None, "run_id": None, "bytes_read": 0},
        "seconds": {"find": round(time.monotonic() - started, 3), "classify": 0.0, "release": 0.0},
    }


def _refuse_others(info: Mapping[str, Any], model_set: Any, catalog_url: str) -> None:
    """Models and program must be those of the release."""
    identity = info["identity"]
    said = [
        f"{what} ({before} in the release, now {now})"
        for what, before, now in (
            ("the model set", identity["models"], model_set.digest),
            ("the version of applecider-batch", identity["pipeline_version"], __version__),
        )
        if before != now
    ]
    if said:
        raise UserError(
            f"The catalogue '{catalog_url}' cannot be updated, because rows of two kinds do not go into one "
            f"release; what differs: {'; '.join(said)}.",
            hint="Give what the release was made with, or classify the archive in full into a new catalogue "
            "(classify, catalog build), and see with catalog diff what that changes.",
        )


def _plan(
    archive: Any,
    model_set: Any,
    objects: np.ndarray,
    identity: Mapping[str, Any],
    archive_url: str,
    models: str,
    objects_per_shard: int,
) -> Plan:
    """The plan that classifies some objects as the release classified all."""
    return make_plan(
        archive,
        model_set,
        horizons=identity["horizons"],
        region=identity["selection"]["region"],
        device=identity["device_type"],
        dtype=identity["dtype"],
        batch_size=identity["batch_size"],
        threads=identity["threads"],
        objects_per_shard=objects_per_shard,
        archive_url=archive_url,
        models=models,
        cuts=identity.get("cuts"),
        side=identity.get("side", ()),
        objects=objects,
    )


def _bytes_read(run: Store) -> int:
    """Bytes of the archive that the run's shards read."""
    return sum(json.loads(line)["bytes_read"] for line in read_lines(run, "metrics.jsonl"))
