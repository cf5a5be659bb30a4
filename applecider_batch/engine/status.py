"""What a run folder alone tells: status, log, and the request to stop."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from applecider_batch.engine.driver import CANCEL
from applecider_batch.engine.run_folder import RunFolder, read_lines
from applecider_batch.engine.session import UNDER_WAY, summarise
from applecider_batch.lease import is_alive, read_lease
from applecider_batch.storage import Store

# Share of the workers' time from which on waiting for networks is what holds a run up.
MOSTLY = 0.5
STEP_WORDS = {
    "read": "reading alerts, photometry and spectra",
    "prepare": "making features",
    "stamps": "reading stamps",
    "cutouts": "cutting stamps",
    "batches": "putting batches together",
    "rows": "assembling rows",
    "write": "writing rows",
    "commit": "committing",
}


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
    """How fast, where the time goes, and what waits for what."""
    entries = []
    for line in metrics:
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    last = sessions[-1]["session"] if sessions else None
    current = [entry for entry in entries if entry["session"] == last]
    mine = [entry for entry in sessions if entry["session"] == last]
    over = bool(mine) and mine[-1]["state"] not in UNDER_WAY
    end = mine[-1]["time"] if over else time.time()
    seconds = max(end - mine[0]["time"], 1e-3) if mine else 1e-3
    steps: Counter[str] = Counter()
    for entry in entries:
        steps.update(entry["seconds"])
    return {
        "objects_per_s": round(sum(entry["objects"] for entry in current) / seconds, 2),
        "seconds_by_step": {step: round(spent, 3) for step, spent in steps.items()},
        "bytes_read": sum(entry.get("bytes_read", 0) for entry in entries),
        "bytes_written": sum(entry.get("bytes_written", 0) for entry in entries),
        "retries": sum(entry.get("retries", 0) for entry in entries),
        "peak_memory_bytes": max((entry.get("peak_memory_bytes", 0) for entry in entries), default=0),
        **flow(current, sessions[-1].get("pools", {}) if sessions else {}),
    }


def flow(entries: Sequence[Mapping[str, Any]], pools: Mapping[str, int]) -> dict[str, Any]:
    """Which stage starves which, from the shards of one session.

    Parameters
    ----------
    entries : sequence of mapping
        Lines of ``metrics.jsonl``.
    pools : mapping of str -> int
        Workers (``worker``) and actors of each modality; empty for the serial executor.

    Returns
    -------
    dict
        ``waiting_for_networks`` (share of the workers' time), ``network_busy`` (modality -> share of the time
        of its actors, from the first shard's begin to the last one's end; up to 2 under the serial executor,
        which computes two batches at once) and ``bottleneck`` (a sentence). None without shards.
    """
    spent, waited, busy = Counter[str](), Counter[str](), Counter[str]()
    for entry in entries:
        spent.update(entry["seconds"])
        waited.update(entry.get("waited", {}))
        busy.update(entry.get("busy", {}))
    total = spent.total()
    if not total:
        return {"waiting_for_networks": None, "network_busy": {}, "bottleneck": None}
    begin = min(entry["finished"] - sum(entry["seconds"].values()) for entry in entries)
    wall = max(max(entry["finished"] for entry in entries) - begin, 1e-3)
    shares = {name: busy[name] / (wall * pools.get(name, 1)) for name in busy}
    waiting = waited.total() / total
    if waited and waiting > MOSTLY:
        name, seconds = max(waited.items(), key=lambda item: item[1])
        said = f"The workers wait for networks {waiting:.0%} of their time, most for {name} ({seconds:.0f} s)"
        said += "; more actors or GPUs there would help." if pools else "."
    else:
        step, seconds = max(((k, v) for k, v in spent.items() if k != "infer"), key=lambda item: item[1])
        said = (
            f"The networks wait for the workers: {1 - waiting:.0%} of the workers' time is their own work, "
        )
        said += f"most of it {STEP_WORDS.get(step, step)} ({seconds:.0f} s)"
        said += "; more workers would help." if pools else "."
    return {
        "waiting_for_networks": round(waiting, 3),
        "network_busy": {name: round(share, 3) for name, share in shares.items()},
        "bottleneck": said,
    }
