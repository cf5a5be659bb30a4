"""The Ray executor: actors that own shards, an actor pool per modality, retries by the driver.

A worker (``ray_worker.py``) does a shard end to end and talks to the model actors (``ray_model.py``) itself,
so the driver sees one message per shard.  The pools follow the shards left and what the cluster has; there is
none for a modality without input in the archive.  Nothing is restarted or retried by Ray (``max_restarts=0``,
``max_task_retries=0``): the driver decides.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.outcome import Outcome, is_by_object
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.ray_cluster import WORKER, Connection, Node, Pool, check_fit, plan_pools
from applecider_batch.engine.ray_model import ModelActor
from applecider_batch.engine.ray_worker import ShardWorker
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.errors import AppleciderError, ClusterError, UsageError
from applecider_batch.logs import get_logger

PLACE_SECONDS = 120.0
PLACE_SECONDS_AUTOSCALE = 1800.0
PING_SECONDS = 2.0
NODES_SECONDS = 10.0  # between two looks at what the cluster has

_log = get_logger(__name__)


@dataclass
class _Actor:
    """An actor of the driver's: where it is, and what it is called."""

    handle: Any
    number: int
    since: float = field(default_factory=time.monotonic)
    node: str = ""


class RayExecutor:
    """Shards on a Ray cluster.

    Parameters
    ----------
    spec : TaskSpec
    address : str, optional
        None starts Ray on this machine.
    workers : int, optional
    pools : mapping, optional
        See :func:`applecider_batch.engine.api.classify`.
    autoscale : bool
        The cluster grows: wait for nodes instead of refusing what does not fit.
    """

    name = "ray"

    def __init__(
        self,
        spec: TaskSpec,
        *,
        address: str | None = None,
        workers: int | None = None,
        pools: Mapping[str, Mapping[str, float]] | None = None,
        autoscale: bool = False,
    ) -> None:
        if autoscale and workers is None:
            raise UsageError("A cluster that grows by itself needs the number of workers; give --workers.")
        self.spec, self._workers, self._wanted, self._autoscale = spec, workers, pools, autoscale
        self._connection = Connection(address)
        self._worker_pool = Pool(WORKER, 0, 0.0)
        self._pools: dict[str, Pool] = {}
        self._models: dict[str, list[_Actor]] = {}
        self._idle: list[_Actor] = []
        self._starting: dict[Any, tuple[str, _Actor]] = {}
        self._under_way: dict[Any, tuple[_Actor, Shard]] = {}
        # Actors that get no new shard, and the shards that may still use them.
        self._retired: list[tuple[_Actor, set[Any]]] = []
        self._stop = threading.Event()
        self._actors_made = 0
        self._modalities: list[str] = []
        self._shards: int | None = None
        self._looked = 0.0

    # ---- start

    def start(self, stop: threading.Event) -> None:
        """Connect, check that the pools fit, start all actors and wait until a shard can begin."""
        self._stop = stop
        self._modalities = self.spec.modalities()
        self._connect()
        self._models = {name: [] for name in self._pools}
        for name, pool in self._pools.items():
            for _ in range(pool.size):
                self._start_model(name)
        for _ in range(self._worker_pool.size):
            self._start_worker()
        while self._starting and not self.free() and not stop.is_set():
            self._settle(1.0)

    def _planned(self, cpus: float, gpus: float, workers: int | None = None) -> tuple[Pool, dict[str, Pool]]:
        identity = self.spec.plan.identity
        device, threads = identity["device_type"], identity["threads"]
        wanted = workers or self._workers
        return plan_pools(self._modalities, device, threads, cpus, gpus, wanted, self._wanted, self._shards)

    def _connect(self) -> None:
        guess = self._planned(os.cpu_count() or 1, 0)
        self._connection.open(sum(p.size * p.num_cpus for p in (guess[0], *guess[1].values())))
        nodes = self._connection.nodes()
        self._worker_pool, self._pools = self._planned(*self._cluster(nodes))
        self._looked = time.monotonic()
        if not self._autoscale:
            check_fit([self._worker_pool, *self._pools.values()], nodes)

    def _cluster(self, nodes: Sequence[Node]) -> tuple[float, float]:
        """CPUs and GPUs to plan for."""
        cpus = (os.cpu_count() or 1) if self._connection.local else sum(node.cpus for node in nodes)
        return cpus, sum(node.gpus for node in nodes)

    # ---- following the queue and the cluster

    def expect(self, shards: int) -> None:
        """Fewer workers than asked for where fewer shards are left, and what the nodes of now can hold."""
        self._shards = shards
        if not self._worker_pool.size:
            return
        self._end_retired()
        due = time.monotonic() - self._looked > NODES_SECONDS
        if not (due or shards < self._worker_pool.size):
            return
        self._looked = time.monotonic()
        nodes = self._connection.nodes()
        found = self._largest(nodes)
        if found is None or found == (self._worker_pool, self._pools):
            return
        _log.info("The pools become %s", {pool.name: pool.size for pool in (found[0], *found[1].values())})
        self._worker_pool, self._pools = found
        self._resize()

    def _largest(self, nodes: Sequence[Node]) -> tuple[Pool, dict[str, Pool]] | None:
        """The pools as wanted, with fewer workers where the nodes cannot hold these; None: none fit."""
        cluster = self._cluster(nodes)
        planned = self._planned(*cluster)
        if self._autoscale:
            return planned
        for workers in range(planned[0].size, 0, -1):
            smaller = self._planned(*cluster, workers)
            with contextlib.suppress(ClusterError):
                check_fit([smaller[0], *smaller[1].values()], nodes)
                return smaller
        return None

    def _resize(self) -> None:
        """Start what is lacking; end what is too much, first what is not ready yet, and nothing busy."""
        workers = len(self._idle) + len(self._under_way) + self._count_starting(WORKER)
        for _ in range(self._worker_pool.size - workers):
            self._start_worker()
        for _ in range(workers - self._worker_pool.size):
            if not self._end_starting(WORKER) and self._idle:
                self._kill(self._idle.pop(0))
        for name, pool in self._pools.items():
            actors = self._models[name]
            number = len(actors) + self._count_starting(name)
            for _ in range(pool.size - number):
                self._start_model(name)
            for _ in range(number - pool.size):
                if not self._end_starting(name) and len(actors) > 1:
                    self._retired.append((actors.pop(), set(self._under_way)))

    def _count_starting(self, kind: str) -> int:
        return sum(other == kind for other, _ in self._starting.values())

    def _end_starting(self, kind: str) -> bool:
        for ref, (other, actor) in self._starting.items():
            if other == kind:
                del self._starting[ref]
                self._kill(actor)
                return True
        return False

    def _end_retired(self) -> None:
        """End retired actors that no shard under way knows."""
        kept = []
        for actor, shards in self._retired:
            if shards.isdisjoint(self._under_way):
                self._kill(actor)
            else:
                kept.append((actor, shards))
        self._retired = kept

    @staticmethod
    def _kill(actor: _Actor) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ValueError, RuntimeError):
            ray.kill(actor.handle)

    def _start_model(self, modality: str) -> None:
        pool = self._pools[modality]
        self._start(modality, pool, ModelActor, self.spec.without_shards(), modality)

    def _start_worker(self) -> None:
        self._start(WORKER, self._worker_pool, ShardWorker, self.spec.without_shards(), self._actors_made)

    def _start(self, kind: str, pool: Pool, actor_class: type, *arguments: Any) -> None:
        import ray

        self._actors_made += 1
        made = ray.remote(actor_class).options(
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            memory=pool.memory or None,
            max_restarts=0,
            max_task_retries=0,
            # On a GPU the inputs of a batch travel while another one is computed.
            max_concurrency=2 if pool.num_gpus and kind != WORKER else 1,
        )
        actor = _Actor(made.remote(*arguments), self._actors_made)
        self._starting[actor.handle.ready.remote()] = (kind, actor)

    def _settle(self, seconds: float) -> None:
        """Take actors that became ready into use."""
        import ray

        done, _ = ray.wait(list(self._starting), num_returns=1, timeout=seconds)
        if done:
            done, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
        for ref in done:
            kind, actor = self._starting.pop(ref)
            try:
                actor.node = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, AppleciderError):
                    raise error.cause from None
                raise ClusterError(f"A {kind} actor cannot start: {error.cause!r}.") from error
            except ray.exceptions.RayError as error:
                # Dead before it was ready: a new one, until the time for starting is over.
                self._check_time(kind, actor)
                self._again(kind, actor, error)
                continue
            (self._idle if kind == WORKER else self._models[kind]).append(actor)
        for kind, actor in self._starting.values():
            self._check_time(kind, actor)

    def _again(self, kind: str, old: _Actor, error: Exception) -> None:
        _log.warning("A %s actor died while starting: %s", kind, str(error).splitlines()[0])
        waiting = set(self._starting)
        self._start_worker() if kind == WORKER else self._start_model(kind)
        for ref in set(self._starting) - waiting:
            self._starting[ref][1].since = old.since

    def _check_time(self, kind: str, actor: _Actor) -> None:
        limit = PLACE_SECONDS_AUTOSCALE if self._autoscale else PLACE_SECONDS
        if time.monotonic() - actor.since > limit:
            raise ClusterError(
                f"A {kind} actor could not be placed or started within {limit:.0f} s.",
                hint="Look at the cluster's resources with 'ray status'.",
            )

    # ---- work

    def free(self) -> int:
        """Idle workers, none while a modality has no actor."""
        return len(self._idle) if all(self._models.values()) else 0

    def submit(self, shard: Shard, attempt: Attempt) -> None:
        """Give the shard to an idle worker."""
        worker = self._idle.pop()
        pools = {name: [(a.handle, a.node) for a in actors] for name, actors in self._models.items()}
        self._under_way[worker.handle.run.remote(shard, attempt, pools)] = (worker, shard)

    def wait(self, seconds: float) -> list[Outcome]:
        """Attempts that ended; dead actors are replaced on the way."""
        import ray

        self._connection.check()
        refs = [*self._under_way, *self._starting]
        if not refs:
            time.sleep(min(seconds, 0.1))
            return []
        ray.wait(refs, num_returns=1, timeout=seconds)
        if self._starting:
            self._settle(0)
        done, _ = (
            ray.wait(list(self._under_way), num_returns=len(self._under_way), timeout=0)
            if (self._under_way)
            else ([], [])
        )
        return [self._outcome(ref) for ref in done]

    def _outcome(self, ref: Any) -> Outcome:
        import ray

        worker, shard = self._under_way.pop(ref)
        try:
            outcome: Outcome = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            self._idle.append(worker)
            return Outcome(
                shard,
                "error",
                error=repr(error.cause),
                error_type=type(error.cause).__name__,
                detail=str(error),
                by_object=is_by_object(error.cause),
            )
        except ray.exceptions.RayError as error:
            self._kill(worker)  # one that only cannot be reached would keep its CPUs
            self._start_worker()
            lost_node = self._node_died(worker, error)
            if lost_node:
                self._replace_dead_models()
            kind = "infrastructure" if lost_node else "worker_died"
            what = "The node" if lost_node else "The worker process"
            return Outcome(
                shard,
                kind,
                error=f"{what} that worked on {shard.name} died.",
                error_type=type(error).__name__,
                detail=str(error),
                by_object=not lost_node,
            )
        self._idle.append(worker)
        if outcome.kind == "infrastructure":
            self._replace_dead_models()
        return outcome

    def _node_died(self, worker: _Actor, error: Exception) -> bool:
        if (
            "node" in str(error).lower()
            and "has died" in str(error)
            and "node has died" in str(error).lower()
        ):
            return True
        return worker.node not in {node.node_id for node in self._connection.nodes()}

    def _replace_dead_models(self) -> None:
        """Ask every model actor for a sign of life and start a new one for each that is dead.

        One that is only busy does not answer in time and stays.
        """
        import ray

        for modality, actors in self._models.items():
            pings = {actor.handle.ready.remote(): actor for actor in actors}
            answered, _ = ray.wait(list(pings), num_returns=len(pings), timeout=PING_SECONDS)
            for ref in answered:
                try:
                    ray.get(ref)
                except ray.exceptions.RayError as error:
                    _log.warning("A %s actor died and is replaced: %s", modality, str(error).splitlines()[0])
                    actors.remove(pings[ref])
                    self._kill(pings[ref])
                    self._start_model(modality)

    def sizes(self) -> dict[str, int]:
        """Workers and actors of each modality as planned."""
        return {pool.name: pool.size for pool in (self._worker_pool, *self._pools.values())}

    def close(self) -> None:
        """End all actors at once; a local Ray ends with them."""
        everyone = [*self._idle, *(actor for _, actor in self._starting.values())]
        everyone += [worker for worker, _ in self._under_way.values()]
        everyone += [actor for actors in self._models.values() for actor in actors]
        for actor in [*everyone, *(actor for actor, _ in self._retired)]:
            self._kill(actor)
        self._retired = []
        self._idle, self._starting, self._under_way, self._models = [], {}, {}, {}
        self._connection.close()
