"""What owns shards on the cluster, and how it reaches the actors that hold the networks."""

from __future__ import annotations

from typing import Any

from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.outcome import ModelLost, Outcome, attempt_shard
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.shard_task import ShardTask
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.errors import InternalError
from applecider_batch.inference.batches import Batch


class ShardWorker:
    """Owns a shard from reading to committing."""

    def __init__(self, spec: TaskSpec, number: int) -> None:
        self._spec, self._number = spec, number
        self._task: ShardTask | None = None

    def ready(self) -> str:
        """Open archive and model set; returns the node's id.

        The networks take longer to load, so there is time to warm up.
        """
        import ray

        if self._task is None:
            self._task = ShardTask(self._spec)
            self._task.warm_up()
        return str(ray.get_runtime_context().get_node_id())

    def run(self, shard: Shard, attempt: Attempt, pools: dict[str, list[tuple[Any, str]]]) -> Outcome:
        """One attempt at a shard; ``pools`` are the (actor, node id) of each modality at this moment."""
        here = self.ready()
        assert self._task is not None
        ports = {
            name: ActorPort(name, pools.get(name, []), here, self._number) for name in self._task.modalities
        }
        return attempt_shard(self._task, shard, attempt, ports)


class ActorPort:
    """Batches of one modality to the actors of its pool, those on the own node if there are any.

    Parameters
    ----------
    modality : str
    actors : list of (actor, node id)
        Empty where the archive holds no input for the modality; a batch is an error then.
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
        if not self._actors:
            raise InternalError(f"A batch for {self._modality}, though the archive holds no input for it.")
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
