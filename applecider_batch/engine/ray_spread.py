"""Tasks of ingest, compaction, catalogue build and export over the workers of a Ray cluster.

Ray retries nothing by itself. A task whose process or node died is handed in again, at most
:data:`ATTEMPTS` times; an error of the task itself ends the pass. What a task leaves behind when it is killed
is under a temporary name, or is what its next attempt writes again.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from applecider_batch.engine.ray_cluster import Connection
from applecider_batch.errors import ClusterError, UsageError
from applecider_batch.logs import get_logger
from applecider_batch.spread import Here, ProgressLike, Spread

ATTEMPTS = 4
PLACE_SECONDS = 1800.0  # without any living node, where the cluster may grow again
WATCH_SECONDS = 10.0  # between two looks at the nodes while no task ends

_log = get_logger(__name__)


@contextlib.contextmanager
def open_spread(executor: str, address: str | None, workers: int | None) -> Iterator[Spread]:
    """What ``--executor``, ``--address`` and ``--workers`` ask for.

    Raises
    ------
    UsageError
        For an address or workers without Ray.
    ClusterError
        If Ray cannot be reached or started, or has no CPU.
    """
    if executor == "serial":
        if address or (workers or 1) != 1:
            raise UsageError("The serial executor has neither address nor workers; use --executor ray.")
        yield Here()
        return
    with RaySpread(address, workers) as spread:
        yield spread


@dataclass
class _Waiting:
    """A task on its way."""

    task: Any
    ref: Any
    attempts: int = field(default=1)


class RaySpread:
    """Works on as many tasks at a time as there are workers.

    Parameters
    ----------
    address : str, optional
        None starts Ray on this machine.
    workers : int, optional
        Tasks at a time, a CPU each; by default the cluster's CPUs.
    """

    elsewhere = True

    def __init__(self, address: str | None, workers: int | None = None) -> None:
        self._connection = Connection(address)
        self._workers = workers
        self._node_seen = 0.0

    def __enter__(self) -> RaySpread:
        self._connection.open(self._workers or 0)
        cpus = sum(node.cpus for node in self._connection.nodes())
        if cpus < 1 and self._workers is None:
            self._connection.close()
            raise ClusterError(
                "The cluster has no CPU for a task.",
                hint="Add a node, or give --workers where the cluster grows by itself.",
            )
        self._workers = self._workers or int(cpus)
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def map(
        self,
        function: Callable[[Any, Any, Any], Any],
        shared: Any,
        tasks: Iterable[Any],
        progress: ProgressLike | None = None,
    ) -> Generator[Any, None, None]:
        """See :meth:`applecider_batch.spread.Spread.map`."""
        import ray

        assert self._workers is not None
        work = ray.remote(_work).options(num_cpus=1, max_retries=0)
        common = ray.put(shared)
        remaining = iter(tasks)
        waiting: deque[_Waiting] = deque()
        # What is left after an error ends with the connection: ray.cancel can end this process (a failed
        # check within Ray 2.60, when the task ends at the same moment).
        while True:
            while len(waiting) < self._workers + 1:
                for task in remaining:
                    waiting.append(_Waiting(task, work.remote(function, common, task)))
                    break
                else:
                    break
            if not waiting:
                return
            self._renew_dead(waiting, lambda task: work.remote(function, common, task))
            result, done, notes = ray.get(waiting.popleft().ref)
            if progress is not None and done:
                progress.update(done, **notes)
            yield result

    def _renew_dead(self, waiting: deque[_Waiting], hand_in: Callable[[Any], Any]) -> None:
        """Wait until the first task has ended well; those that died meanwhile are handed in again.

        Raises
        ------
        ClusterError
            If a task died too often, or no node is left that could ever end one.
        """
        import ray

        self._node_seen = time.monotonic()
        while True:
            refs = {each.ref: each for each in waiting}
            ended, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            if waiting[0].ref not in ended:
                wanted = min(len(ended) + 1, len(refs))
                ended, _ = ray.wait(list(refs), num_returns=wanted, timeout=WATCH_SECONDS)
                if len(ended) < wanted:
                    self._check_nodes()
            for ref in ended:
                each = refs[ref]
                try:
                    ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    said = str(error).splitlines()[0]
                    if each.attempts >= ATTEMPTS:
                        raise ClusterError(
                            f"A task was given up, its process or node died {ATTEMPTS} times: {said}",
                            hint="Look at the cluster's memory and disks, or use fewer workers.",
                        ) from error
                    _log.warning("A task died and is done again: %s", said)
                    each.ref, each.attempts = hand_in(each.task), each.attempts + 1
            if waiting[0].ref in ended:
                return

    def _check_nodes(self) -> None:
        """Refuse to wait for a cluster without nodes: Ray itself would wait for ever without a word."""
        self._connection.check()
        if self._connection.nodes():
            self._node_seen = time.monotonic()
        elif time.monotonic() - self._node_seen > PLACE_SECONDS:
            raise ClusterError(
                f"The cluster has had no living node for {PLACE_SECONDS:.0f} s.",
                hint="Look at the cluster with 'ray status', and run the same command again.",
            )


def _work(
    function: Callable[[Any, Any, Any], Any], shared: Any, task: Any
) -> tuple[Any, int, dict[str, Any]]:
    """The function's result, and what it told of its progress in sum."""
    done, last = 0, {}

    def update(count: int = 1, **notes: Any) -> None:
        nonlocal done, last
        done, last = done + count, notes

    return function(shared, task, update), done, last
