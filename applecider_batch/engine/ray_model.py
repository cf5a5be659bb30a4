"""What holds a network on the cluster; apart from the shards' worker, because it needs fewer imports."""

from __future__ import annotations

from typing import Any

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
