"""What a run folder alone tells: status, log, and the request to stop."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from applecider_batch.engine.driver import CANCEL, summarise
from applecider_batch.engine.lease import is_alive, read_lease
from applecider_batch.engine.run_folder import RunFolder, read_lines
from applecider_batch.storage import Store


def run_status(store: Store) -> dict[str, Any]:
    """State of a run; keys as :func:`applecider_batch.engine.api.status` says."""
    folder = RunFolder(store)
    plan = folder.require_plan()
    result = summarise(folder, plan)
    driver = running_driver(store)
    if driver is not None:
        result["state"] = "running"
    sessions = [json.loads(line) for line in read_lines(store, "manifest.jsonl")]
    quarantined = [folder.quarantine_record(name) for name in sorted(folder.quarantined())]
    failures = {name: [_brief(r) for r in records] for name, records in folder.failures().items()}
    return {
        **result,
        "plan": plan.describe(),
        "driver": driver,
        "sessions": sessions,
        "failures": failures,
        "quarantine": [_brief(record) for record in quarantined],
        **_speed(read_lines(store, "metrics.jsonl"), sessions),
    }


def running_driver(store: Store) -> dict[str, Any] | None:
    """Host, pid and heartbeat of the living driver of a run, None where there is none."""
    holder = read_lease(store)
    if holder is None or not is_alive(holder, time.time()):
        return None
    return {key: holder[key] for key in ("host", "pid", "heartbeat")}


def request_cancel(store: Store) -> dict[str, Any]:
    """Ask the living driver to stop."""
    RunFolder(store).require_plan()
    driver = running_driver(store)
    if driver is not None:
        store.write_json_atomic(CANCEL, {"asked": time.time()})
    return {"run": store.url, "cancelled": driver is not None, "driver": driver}


def read_log(store: Store, lines: int | None) -> list[str]:
    """The run's log, or its last lines."""
    RunFolder(store).require_plan()
    found = read_lines(store, "log.txt")
    return found if lines is None else found[-lines:]


def _brief(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("shard_id", "kind", "charged", "charges", "type", "error")}


def _speed(metrics: list[str], sessions: list[dict[str, Any]]) -> dict[str, Any]:
    """Objects per second of the last session, and the seconds spent in each step over all shards."""
    steps: dict[str, float] = {}
    objects = 0
    last = sessions[-1]["session"] if sessions else None
    for line in metrics:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            objects += entry["objects"] if entry["session"] == last else 0
            for step, seconds in entry["seconds"].items():
                steps[step] = steps.get(step, 0.0) + seconds
    times = [entry["time"] for entry in sessions if entry["session"] == last]
    end = times[-1] if len(times) > 1 else time.time()
    rate = objects / max(end - times[0], 1e-3) if times else 0.0
    return {"objects_per_s": round(rate, 2), "seconds_by_step": {k: round(v, 3) for k, v in steps.items()}}
