"""The serial executor: one shard after the other in this process, without Ray."""

from __future__ import annotations

import threading
from collections import deque

from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.outcome import Outcome, Stopped, attempt_shard
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.shard_task import ShardTask, TaskSpec
from applecider_batch.inference.predictor import Predictor
from applecider_batch.inference.shard import LocalPort, Port


class SerialExecutor:
    """Works on one shard at a time, in the caller's thread.

    Parameters
    ----------
    spec : TaskSpec
    """

    name = "serial"

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._task: ShardTask | None = None
        self._ports: dict[str, Port] = {}
        self._queue: deque[tuple[Shard, Attempt]] = deque()
        self._stop = threading.Event()

    def expect(self, shards: int) -> None:
        """One process, however many there are."""

    def start(self, stop: threading.Event) -> None:
        """Open the inputs and load the networks; UserError where one is refused."""
        self._stop = stop
        self._task = ShardTask(self.spec)
        identity = self.spec.plan.identity
        for modality in self._task.modalities:
            predictor = Predictor(
                self._task.model_set.defaults[modality],
                device=identity["device_type"],
                dtype=identity["dtype"],
                threads=identity["threads"],
            )
            self._ports[modality] = LocalPort(predictor, self._check)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def free(self) -> int:
        """One shard at a time."""
        return 1 - len(self._queue)

    def submit(self, shard: Shard, attempt: Attempt) -> None:
        """Remember the shard; :meth:`wait` works on it."""
        self._queue.append((shard, attempt))

    def wait(self, seconds: float) -> list[Outcome]:
        """Work on the shard handed in."""
        if not self._queue or self._task is None:
            return []
        shard, attempt = self._queue.popleft()
        return [attempt_shard(self._task, shard, attempt, self._ports)]

    def sizes(self) -> dict[str, int]:
        """Everything is in this process."""
        return {}

    def close(self) -> None:
        """Let go of the networks."""
        self._ports.clear()
        self._task = None
