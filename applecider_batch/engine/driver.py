"""The run loop: hands shards to an executor, counts charges, quarantines, keeps the folder's records.

Both executors are driven by the same loop; they differ only in where a shard is worked on.

Charges (why a shard is given up): an error in the shard and the death of its own worker are charged; the
death of a model actor or of a node is not.  At :data:`MAX_CHARGES` charges the shard is quarantined.  A
shard that loses more than :data:`FREE_LOSSES` attempts to dying actors or nodes is charged for the further
ones, so a run always ends.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol

from applecider_batch.engine.isolate import OBJECT_FAILED, WORKER_DIED, Attempt, Isolation
from applecider_batch.engine.outcome import Outcome
from applecider_batch.engine.plan import Plan, Shard
from applecider_batch.engine.run_folder import RunFolder
from applecider_batch.engine.session import Session, summarise
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, AppleciderError, InternalError
from applecider_batch.lease import Lease
from applecider_batch.logs import Progress, get_logger

MAX_CHARGES = 4
FREE_LOSSES = 8
CANCEL = "cancel.json"
WATCH_SECONDS = 1.0

# Kinds of outcome that count towards quarantine; "infrastructure" does not, "fatal" ends the run.
CHARGED = ("error", "worker_died")

_log = get_logger(__name__)


class RunInterrupted(AppleciderError):
    """Stopped by a signal or ``cancel``; what is committed is safe, and the run can be resumed."""

    exit_code = EXIT_TERMINATED


class RunInterruptedByUser(RunInterrupted):
    """Stopped by SIGINT."""

    exit_code = EXIT_INTERRUPTED


class Executor(Protocol):
    """Where shards are worked on."""

    name: str
    spec: TaskSpec

    def expect(self, shards: int) -> None:
        """So many shards are not done yet: what there is of workers and actors may follow."""

    def start(self, stop: threading.Event) -> None:
        """Make everything ready; ``stop`` is set when no new work is to be begun."""

    def free(self) -> int:
        """How many more shards can be handed in now."""

    def submit(self, shard: Shard, attempt: Attempt) -> None:
        """Hand a shard in."""

    def wait(self, seconds: float) -> list[Outcome]:
        """Attempts that ended; waits at most about so long for the first one."""

    def sizes(self) -> dict[str, int]:
        """Workers (``worker``) and actors of each modality; empty where everything is in this process."""

    def close(self) -> None:
        """Stop everything at once."""


class Driver:
    """Works through a run with an executor.

    Parameters
    ----------
    folder : RunFolder
    plan : Plan
        Must have the identity of the folder's plan, if there is one.
    executor : Executor
    progress : bool
        Show progress on stderr.
    """

    def __init__(self, folder: RunFolder, plan: Plan, executor: Executor, *, progress: bool = True) -> None:
        self._folder, self._plan, self._executor, self._show = folder, plan, executor, progress
        self._stop = threading.Event()
        self._reason: AppleciderError | None = None
        self._charges: dict[str, int] = {}
        self._losses: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._set_aside: dict[str, dict[str, tuple[str, str]]] = {}
        self._isolations: dict[str, Isolation] = {}
        self._isolated: set[str] = set()

    def run(self, *, limit_shards: int | None = None, retry_quarantined: bool = False) -> dict[str, Any]:
        """Do all shards that are not done; see :func:`applecider_batch.engine.api.classify`."""
        plan = self._folder.begin(self._plan)
        lease = Lease(self._folder.store, on_lost=self._lease_lost)
        with lease, self._signals(), self._cancel_watch():
            done = self._folder.committed()
            if retry_quarantined:
                for name in sorted(self._folder.quarantined()):
                    self._folder.release(name)
            given_up = self._folder.quarantined()
            pending = deque(s for s in plan.shards if s.name not in done and s.name not in given_up)
            if limit_shards is not None:
                pending = deque(list(pending)[:limit_shards])
            session = Session(self._folder, self._executor.name, plan, lease.token)
            started = time.monotonic()
            try:
                if pending:
                    self._recall_failures(pending)
                    self._set_aside = self._folder.objects_set_aside()
                    self._executor.expect(len(pending))
                    self._executor.start(self._stop)
                    session.working(self._executor.sizes())
                    self._loop(pending, session, len(plan.shards), len(done))
                self._raise_if_stopped()
            except BaseException as error:
                session.end(_ending(error))
                raise
            finally:
                self._executor.close()
            self._folder.collect_garbage()
            result = summarise(self._folder, plan)
            seconds = time.monotonic() - started
            result |= {"seconds": round(seconds, 3), "objects_per_s": round(session.objects / seconds, 2)}
            session.end(result["state"])
        return result

    def _loop(self, pending: deque[Shard], session: Session, total: int, done: int) -> None:
        under_way = 0
        with Progress("classify", total, unit="shards", enabled=self._show) as progress:
            progress.already(done)
            while (pending or under_way) and not self._stop.is_set():
                self._executor.expect(len(pending) + under_way)
                while pending and self._executor.free() > 0 and not self._stop.is_set():
                    shard = pending.popleft()
                    isolation = self._isolations.get(shard.name)
                    aside = self._set_aside.get(shard.name, {})
                    attempt = Attempt(session.next_attempt(), aside, isolation is not None)
                    part = isolation.trial if isolation else None
                    self._executor.submit(part or shard, attempt)
                    under_way += 1
                for outcome in self._executor.wait(WATCH_SECONDS):
                    under_way -= 1
                    isolation = self._isolations.get(outcome.shard.name)
                    if isolation is not None and outcome.kind not in ("fatal", "interrupted"):
                        if not self._tried(isolation, outcome, session):
                            # Ahead of the others: it is nearly done once its bad objects are known.
                            pending.appendleft(isolation.shard)
                    elif outcome.kind == "committed":
                        session.committed(outcome, self._failures.get(outcome.shard.name, 0))
                        progress.update(1, **{"objects/s": f"{session.rate:,.1f}"})
                    elif outcome.kind == "fatal":
                        session.log(f"{outcome.shard.name} stopped the run: {outcome.error}")
                        raise outcome.raised or InternalError(f"{outcome.shard.name}: {outcome.error}")
                    elif outcome.kind != "interrupted" and not self._failed(outcome, session):
                        pending.append(outcome.shard)
                        self._isolate(outcome, session)
                session.flush()

    def _isolate(self, outcome: Outcome, session: Session) -> None:
        """After a charge that may be an object's fault: try the halves of the shard next, once."""
        shard = outcome.shard
        if not outcome.by_object or shard.name in self._isolated:
            return
        self._isolated.add(shard.name)
        try:
            names = self._executor.spec.object_names(shard)
        except Exception as error:
            session.log(f"{shard.name}: its objects cannot be told apart: {error}")
            return
        known = self._set_aside.get(shard.name, {})
        isolation = Isolation(shard, [name for name in names if name not in known])
        if isolation.trial is not None:
            self._isolations[shard.name] = isolation

    def _tried(self, isolation: Isolation, outcome: Outcome, session: Session) -> bool:
        """Note how a trial ended and set aside what was found; True if the shard is quarantined by it."""
        name = isolation.shard.name
        if outcome.kind == "tried":
            isolation.passed()
        elif outcome.by_object:
            said = (OBJECT_FAILED, f"{outcome.error_type}: {outcome.error}")
            isolation.failed(WORKER_DIED if outcome.kind == "worker_died" else said)
        else:
            # The storage or the cluster, which says nothing about the objects.
            return self._failed(outcome, session)
        if isolation.trial is not None:
            return False
        del self._isolations[name]
        if isolation.hopeless:
            session.log(f"{name}: too many of its objects fail alone to set them aside")
        elif isolation.found:
            aside = self._set_aside[name] = {**self._set_aside.get(name, {}), **isolation.found}
            self._folder.set_objects_aside(name, aside)
            session.log(f"{name}: set aside after {isolation.trials} trials: {', '.join(isolation.found)}")
        else:
            session.log(f"{name}: no part of it fails alone")
        return False

    def _failed(self, outcome: Outcome, session: Session) -> bool:
        """Record a failed attempt; True if the shard is quarantined by it."""
        name = outcome.shard.name
        charged = outcome.kind in CHARGED
        if not charged:
            self._losses[name] = self._losses.get(name, 0) + 1
            charged = self._losses[name] > FREE_LOSSES
        charges = self._charges[name] = self._charges.get(name, 0) + charged
        number = self._failures[name] = self._failures.get(name, 0) + 1
        record = {
            "shard_id": outcome.shard.shard_id,
            "kind": outcome.kind,
            "charged": charged,
            "charges": charges,
            "error": outcome.error,
            "type": outcome.error_type,
            "detail": outcome.detail,
            "session": session.number,
        }
        self._folder.record_failure(name, number, record)
        session.log(f"{name} failed ({outcome.kind}, charge {charges} of {MAX_CHARGES}): {record['error']}")
        if charges < MAX_CHARGES:
            return False
        self._folder.quarantine(name, record)
        session.log(f"{name} is quarantined")
        _log.warning("%s is set aside after %d failures: %s", name, charges, record["error"])
        return True

    def _recall_failures(self, pending: deque[Shard]) -> None:
        """Charges of earlier sessions still count."""
        wanted = {shard.name for shard in pending}
        for name, records in self._folder.failures().items():
            if name in wanted:
                self._charges[name] = sum(bool(r["charged"]) for r in records)
                self._losses[name] = sum(r["kind"] == "infrastructure" for r in records)
                self._failures[name] = len(records)

    # ---- being stopped

    def _halt(self, reason: AppleciderError) -> None:
        if self._reason is None:
            self._reason = reason
        self._stop.set()

    def _raise_if_stopped(self) -> None:
        if self._reason is not None:
            raise self._reason

    def _lease_lost(self) -> None:
        self._halt(
            RunInterrupted(f"Another driver took over the run '{self._folder.store.url}'; this one stops.")
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the run in good order; a second one ends the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def handle(number: int, frame: FrameType | None) -> None:
            kind = RunInterruptedByUser if number == signal.SIGINT else RunInterrupted
            self._halt(
                kind(
                    f"Interrupted; the run '{self._folder.store.url}' keeps what is committed.",
                    hint="Run the same command again to go on.",
                )
            )
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

        for number in old:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _cancel_watch(self) -> Iterator[None]:
        """Look for ``cancel.json`` from a thread; an old request is not for this driver."""
        store = self._folder.store
        store.delete(CANCEL)
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(WATCH_SECONDS if store.is_local else 5 * WATCH_SECONDS):
                with contextlib.suppress(AppleciderError, OSError):
                    if store.exists(CANCEL):
                        self._halt(RunInterrupted(f"The run '{store.url}' was cancelled; it can be resumed."))
                        return

        thread = threading.Thread(target=watch, name="cancel", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=30)
            with contextlib.suppress(AppleciderError, OSError):
                store.delete(CANCEL)


def _ending(error: BaseException) -> str:
    return "interrupted" if isinstance(error, RunInterrupted) else f"failed: {type(error).__name__}: {error}"
