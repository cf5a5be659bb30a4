"""What a driver writes down of its part of a run: attempts, metrics, log and manifest."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Any

from applecider_batch.engine.outcome import Outcome
from applecider_batch.engine.plan import Plan
from applecider_batch.engine.run_folder import Lines, RunFolder
from applecider_batch.errors import AppleciderError

# States of a session that has not ended: everything is being made ready, and shards are worked on.
UNDER_WAY = ("start", "working")
FLUSH_SECONDS = 10.0


class Session:
    """One driver's part of a run: attempts, metrics, log and manifest."""

    def __init__(self, folder: RunFolder, executor: str, plan: Plan, token: str) -> None:
        self._manifest = Lines(folder.store, "manifest.jsonl")
        self._metrics = Lines(folder.store, "metrics.jsonl")
        self._log = Lines(folder.store, "log.txt")
        self.number = 1 + max((json.loads(line)["session"] for line in self._manifest), default=0)
        self.objects = 0
        self._attempts = 0
        self._token = token
        self._started = time.monotonic()
        self._flushed = self._started
        self._about: dict[str, Any] = {
            "executor": executor,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._write_manifest(UNDER_WAY[0])
        self.log(f"session {self.number} starts: run {plan.run_id}, {executor} executor")
        self.flush(now=True)

    def next_attempt(self) -> str:
        """A name that no other attempt of the run has: the 15th of session 2, and that driver's own token."""
        self._attempts += 1
        return f"s{self.number}a{self._attempts}t{self._token}"

    @property
    def rate(self) -> float:
        """Objects per second of this session."""
        return self.objects / max(time.monotonic() - self._started, 1e-9)

    def committed(self, outcome: Outcome, retries: int) -> None:
        """Note a shard that is done."""
        record = outcome.record
        self.objects += record["objects"]
        line = {"shard_id": record["shard_id"], "objects": record["objects"], "rows": record["rows"]}
        line |= {"session": self.number, "retries": retries, "finished": round(time.time(), 3)}
        self._metrics.add(json.dumps({**line, **outcome.metrics}, sort_keys=True))
        note = f", {record['objects_in_error']} in error" if record["objects_in_error"] else ""
        note += ", degraded" if record["degraded"] else ""
        self.log(f"{outcome.shard.name} committed: {record['objects']} objects, {record['rows']} rows{note}")

    def working(self, pools: dict[str, int]) -> None:
        """The first shard can begin; note what there is, or will be, of each kind."""
        self._about["pools"] = pools
        self._write_manifest(UNDER_WAY[1])

    def log(self, text: str) -> None:
        """A line of the run's log."""
        self._log.add(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}")

    def flush(self, *, now: bool = False) -> None:
        """Write what is held back, every few seconds."""
        if now or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._metrics.flush()
            self._log.flush()

    def end(self, state: str) -> None:
        """Last lines; storage that refuses must not hide why the run ended."""
        self.log(f"session {self.number} ends: {state}")
        self._write_manifest(state, end=True)
        with contextlib.suppress(AppleciderError, OSError):
            self.flush(now=True)

    def _write_manifest(self, state: str, *, end: bool = False) -> None:
        entry = {"session": self.number, "time": time.time(), "state": state, **self._about}
        self._manifest.add(json.dumps({**entry, "objects": self.objects} if end else entry, sort_keys=True))
        with contextlib.suppress(AppleciderError, OSError) if end else contextlib.nullcontext():
            self._manifest.flush()


def summarise(folder: RunFolder, plan: Plan) -> dict[str, Any]:
    """Counts of a run from its commit records."""
    done, set_aside = folder.committed(), folder.quarantined()
    records = folder.commit_records([shard.name for shard in plan.shards if shard.name in done])
    remaining = len(plan.shards) - len(records) - len(set_aside)
    state = "complete" if len(records) == len(plan.shards) else ("incomplete" if remaining else "partial")
    return {
        "run_id": plan.run_id,
        "run": folder.store.url,
        "state": state,
        "shards": len(plan.shards),
        "shards_committed": len(records),
        "shards_quarantined": len(set_aside),
        "shards_remaining": remaining,
        "objects": sum(r["objects"] for r in records),
        "rows": sum(r["rows"] for r in records),
        "objects_in_error": sum(r["objects_in_error"] for r in records),
        "degraded_shards": sum(bool(r["degraded"]) for r in records),
        "trained": plan.trained,
        "anomaly_ref_id": plan.anomaly_ref_id,
    }
