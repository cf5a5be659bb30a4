"""The serial executor: one shard after the other in this process, without Ray.

While the networks compute a shard's batches in threads of their own, the caller's thread reads and cuts the
stamps that come next, and one more thread reads and prepares the shard that follows: never more than one
ahead, so memory does not grow with the run. Nothing of it changes a row: a batch is computed by one thread
(by the plan's ``threads`` within torch), and batches are the plan's.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.outcome import Outcome, Stopped, attempt_shard
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.shard_task import Ready, ShardTask
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.engine.timing import computed
from applecider_batch.inference.batches import Batch
from applecider_batch.inference.predictor import Predictor

MOST_AT_ONCE = 2
"""Batches computed at once at most: each takes the memory of its layers."""
IN_FLIGHT = 8
"""Batches of a modality, a few MB each, that lie ready or answered, so that stamps are cut ahead of them."""


def at_once(device: str, threads: int, cores: int) -> int:
    """How many batches are computed at the same time, so that their threads do not fight for cores.

    Parameters
    ----------
    device : str
        On a GPU two: while one is computed, the other one's inputs travel.
    threads : int
        Of each batch.
    cores : int
        Of this process.
    """
    return MOST_AT_ONCE if device != "cpu" else max(1, min(MOST_AT_ONCE, cores // threads))


class ThreadPort:
    """A predictor of this process, run by a pool of threads.

    Parameters
    ----------
    predictor : Future of Predictor
        Being loaded by an earlier task of the pool.
    pool : Executor
    before : callable
        Called ahead of every batch; may raise to stop.
    """

    def __init__(self, predictor: Future[Predictor], pool: Pool, before: Callable[[], None]) -> None:
        self._predictor, self._pool, self._before = predictor, pool, before
        self._queued: deque[Future[dict[str, Any]]] = deque()

    def wait_until_loaded(self) -> None:
        """Return when the network is there; UserError where it is refused."""
        self._predictor.result()

    def submit(self, batch: Batch) -> Future[dict[str, Any]]:
        """Queue the batch."""
        self._queued.append(self._pool.submit(self._run, batch))
        return self._queued[-1]

    def result(self, handle: Future[dict[str, Any]]) -> dict[str, Any]:
        """The answer, or the exception that the batch ended with."""
        self._queued.remove(handle)
        return handle.result()

    def drop(self) -> None:
        """Forget the batches that nobody waits for any more."""
        for handle in self._queued:
            handle.cancel()
        self._queued.clear()

    def _run(self, batch: Batch) -> dict[str, Any]:
        self._before()
        return computed(self._predictor.result().run, batch)


class SerialExecutor:
    """Works on one shard at a time, in the caller's thread, with the next one made ready.

    Parameters
    ----------
    spec : TaskSpec
    """

    name = "serial"

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._task: ShardTask | None = None
        self._ports: dict[str, ThreadPort] = {}
        self._pools: list[ThreadPoolExecutor] = []
        self._queue: deque[tuple[Shard, Attempt, Future[Ready]]] = deque()
        self._stop = threading.Event()

    def expect(self, shards: int) -> None:
        """One process, however many there are."""

    def start(self, stop: threading.Event) -> None:
        """Open the inputs and begin to load the networks, while the first shard is made ready."""
        self._stop = stop
        self._task = ShardTask(self.spec, IN_FLIGHT)
        identity = self.spec.plan.identity
        device, threads = identity["device_type"], identity["threads"]
        networks = ThreadPoolExecutor(at_once(device, threads, len(os.sched_getaffinity(0))), "networks")
        self._pools = [networks, ThreadPoolExecutor(1, "ahead")]
        for modality in self._task.modalities:
            predictor = networks.submit(
                Predictor,
                self._task.model_set.defaults[modality],
                device=device,
                dtype=identity["dtype"],
                threads=threads,
            )
            self._ports[modality] = ThreadPort(predictor, networks, self._check)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def free(self) -> int:
        """One shard is worked on, another one made ready."""
        return 2 - len(self._queue)

    def submit(self, shard: Shard, attempt: Attempt) -> None:
        """Begin to make the shard ready; :meth:`wait` works on it."""
        if self._task is None:
            raise RuntimeError("the executor has not been started")
        ready = self._pools[-1].submit(self._task.make_ready, shard, attempt)
        self._queue.append((shard, attempt, ready))

    def wait(self, seconds: float) -> list[Outcome]:
        """Work on the shard handed in first; UserError where a network is refused."""
        if not self._queue or self._task is None:
            return []
        for port in self._ports.values():
            port.wait_until_loaded()
        shard, attempt, ready = self._queue.popleft()
        outcome = attempt_shard(self._task, shard, attempt, self._ports, ready.result)
        for port in self._ports.values():  # a shard that failed leaves some
            port.drop()
        return [outcome]

    def sizes(self) -> dict[str, int]:
        """Everything is in this process."""
        return {}

    def close(self) -> None:
        """End the threads, after the batch and the shard that they are at, and let go of the networks."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)
        self._pools.clear()
        self._queue.clear()
        self._ports.clear()
        self._task = None
