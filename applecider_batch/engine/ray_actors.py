"""What runs on the cluster: actors that own shards, and actors that hold a network."""

from __future__ import annotations

from typing import Any

from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.outcome import ModelLost, Outcome, attempt_shard
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.shard_task import ShardTask
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.engine.timing import computed
from applecider_batch.inference.batches import Batch


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
