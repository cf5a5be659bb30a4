"""A cluster without Ray: everything is pickled, tasks run ahead, out of order and twice."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Generator, Iterable
from typing import Any

from applecider_batch.spread import ProgressLike


class Elsewhere:
    """Stands in for :class:`applecider_batch.engine.ray_spread.RaySpread`."""

    elsewhere = True

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.passes: list[tuple[str, int]] = []

    def map(
        self,
        function: Callable[[Any, Any, Any], Any],
        shared: Any,
        tasks: Iterable[Any],
        progress: ProgressLike | None = None,
    ) -> Generator[Any, None, None]:
        """Results in the order of the tasks."""
        sent = pickle.dumps((function, shared))
        remaining, count = iter(tasks), 0
        while window := [pickle.dumps(task) for task in itertools.islice(remaining, self.workers)]:
            count += len(window)
            done = {}
            for number in [*reversed(range(len(window))), 0]:
                there, common = pickle.loads(sent)
                done[number] = pickle.dumps(there(common, pickle.loads(window[number]), _count(progress)))
            yield from (pickle.loads(done[number]) for number in range(len(window)))
        self.passes.append((function.__name__, count))


def _count(progress: ProgressLike | None) -> Callable[..., None]:
    return (lambda done=1, **notes: None) if progress is None else progress.update
