"""The Ray executor: actors that own shards, an actor pool per modality, retries by the driver.

A :class:`ShardWorker` does a shard end to end and talks to the model actors itself, so the driver sees one
message per shard.  Nothing is restarted or retried by Ray (``max_restarts=0``, ``max_task_retries=0``):
the driver decides.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.outcome import ModelLost, Outcome, attempt_shard, is_by_object
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.ray_cluster import Connection, Pool, check_fit, plan_pools
from applecider_batch.engine.shard_task import ShardTask, TaskSpec
from applecider_batch.engine.timing import computed
from applecider_batch.errors import AppleciderError, ClusterError, UsageError
from applecider_batch.inference.batches import Batch
from applecider_batch.inference.fusion import MODALITIES
from applecider_batch.logs import get_logger

PLACE_SECONDS = 120.0
PLACE_SECONDS_AUTOSCALE = 1800.0
PING_SECONDS = 2.0

_log = get_logger(__name__)


class ModelActor:
    """The network of one modality in a process of its own."""

    def __init__(self, spec: TaskSpec, modality: str) -> None:
        self._spec, self._modality = spec, modality
        self._predictor: Any = None

    def ready(self) -> str:
        """Load the network; returns the node's id.  Unlike a constructor's, its errors come back as such."""
        import ray

        if self._predictor is None:
            from applecider_batch.inference.predictor import Predictor

            identity = self._spec.plan.identity
            self._predictor = Predictor(
                self._spec.load_models().defaults[self._modality],
                device=identity["device_type"],
                dtype=identity["dtype"],
                threads=identity["threads"],
            )
        return str(ray.get_runtime_context().get_node_id())

    def run(self, batch: Batch) -> dict[str, Any]:
        """Answer of the predictor, with the seconds that it took."""
        return computed(self._predictor.run, batch)


class ShardWorker:
    """Owns a shard from reading to committing."""

    def __init__(self, spec: TaskSpec, number: int) -> None:
        self._spec, self._number = spec, number
        self._task: ShardTask | None = None

    def ready(self) -> str:
        """Open archive and model set; returns the node's id."""
        import ray

        if self._task is None:
            self._task = ShardTask(self._spec)
        return str(ray.get_runtime_context().get_node_id())

    def run(self, shard: Shard, attempt: Attempt, pools: dict[str, list[tuple[Any, str]]]) -> Outcome:
        """One attempt at a shard; ``pools`` are the (actor, node id) of each modality at this moment."""
        here = self.ready()
        assert self._task is not None
        ports = {name: ActorPort(name, actors, here, self._number) for name, actors in pools.items()}
        return attempt_shard(self._task, shard, attempt, ports)


class ActorPort:
    """Batches of one modality to the actors of its pool, those on the own node if there are any.

    Parameters
    ----------
    modality : str
    actors : list of (actor, node id)
    here : str
        The caller's node id.
    first : int
        Where to begin, so that workers do not all begin with the same actor.
    """

    def __init__(self, modality: str, actors: list[tuple[Any, str]], here: str, first: int) -> None:
        near = [actor for actor, node in actors if node == here]
        self._modality = modality
        self._actors = near or [actor for actor, _ in actors]
        self._next = first

    def submit(self, batch: Batch) -> Any:
        """Send the batch to the next actor."""
        actor = self._actors[self._next % len(self._actors)]
        self._next += 1
        return actor.run.remote(batch)

    def result(self, handle: Any) -> dict[str, Any]:
        """The answer; ModelLost if the actor or its node died."""
        import ray
        from ray import exceptions as gone

        try:
            answer: dict[str, Any] = ray.get(handle)
        except gone.RayTaskError:
            raise
        except gone.RayError as error:
            raise ModelLost(f"A {self._modality} actor was lost: {str(error).splitlines()[0]}") from error
        return answer


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
        self._worker_pool = Pool("worker", 0, 0.0)
        self._pools: dict[str, Pool] = {}
        self._models: dict[str, list[_Actor]] = {}
        self._idle: list[_Actor] = []
        self._starting: dict[Any, tuple[str, _Actor]] = {}
        self._under_way: dict[Any, tuple[_Actor, Shard]] = {}
        self._stop = threading.Event()
        self._actors_made = 0

    # ---- start

    def start(self, stop: threading.Event) -> None:
        """Connect, check that the pools fit, start all actors and wait for them."""
        self._stop = stop
        identity = self.spec.plan.identity
        self._connect(self._modalities(), identity["device_type"], identity["threads"])
        self._models = {name: [] for name in self._pools}
        for name, pool in self._pools.items():
            for _ in range(pool.size):
                self._start_model(name)
        for _ in range(self._worker_pool.size):
            self._start_worker()
        while self._starting and not stop.is_set():
            self._settle(1.0)

    def _modalities(self) -> list[str]:
        defaults = self.spec.load_models().defaults
        return [name for name in MODALITIES if name in defaults]

    def _connect(self, modalities: list[str], device: str, threads: int) -> None:
        import os

        def planned(cpus: float, gpus: float) -> tuple[Pool, dict[str, Pool]]:
            return plan_pools(modalities, device, threads, cpus, gpus, self._workers, self._wanted)

        guess = planned(os.cpu_count() or 1, 0)
        self._connection.open(sum(p.size * p.num_cpus for p in (guess[0], *guess[1].values())))
        nodes = self._connection.nodes()
        cpus = (os.cpu_count() or 1) if self._connection.local else sum(node.cpus for node in nodes)
        self._worker_pool, self._pools = planned(cpus, sum(node.gpus for node in nodes))
        if not self._autoscale:
            check_fit([self._worker_pool, *self._pools.values()], nodes)

    def _start_model(self, modality: str) -> None:
        pool = self._pools[modality]
        self._start(modality, pool, ModelActor, self.spec.without_shards(), modality)

    def _start_worker(self) -> None:
        self._start("worker", self._worker_pool, ShardWorker, self.spec.without_shards(), self._actors_made)

    def _start(self, kind: str, pool: Pool, actor_class: type, *arguments: Any) -> None:
        import ray

        self._actors_made += 1
        made = ray.remote(actor_class).options(
            num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, max_restarts=0, max_task_retries=0
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
            (self._idle if kind == "worker" else self._models[kind]).append(actor)
        for kind, actor in self._starting.values():
            self._check_time(kind, actor)

    def _again(self, kind: str, old: _Actor, error: Exception) -> None:
        _log.warning("A %s actor died while starting: %s", kind, str(error).splitlines()[0])
        waiting = set(self._starting)
        self._start_worker() if kind == "worker" else self._start_model(kind)
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
                    with contextlib.suppress(ray.exceptions.RayError, ValueError):
                        ray.kill(pings[ref].handle)
                    self._start_model(modality)

    def sizes(self) -> dict[str, int]:
        """Workers and actors of each modality as planned."""
        return {pool.name: pool.size for pool in (self._worker_pool, *self._pools.values())}

    def close(self) -> None:
        """End all actors at once; a local Ray ends with them."""
        everyone = [*self._idle, *(a for _, a in self._starting.values())]
        everyone += [
            *(w for w, _ in self._under_way.values()),
            *(a for actors in self._models.values() for a in actors),
        ]
        if everyone:
            import ray

            for actor in everyone:
                with contextlib.suppress(ray.exceptions.RayError, ValueError, RuntimeError):
                    ray.kill(actor.handle)
        self._idle, self._starting, self._under_way, self._models = [], {}, {}, {}
        self._connection.close()
