"""One function over many tasks, in this process or on a cluster: the same results in the same order.

Ingest, compaction, catalogue build and HATS export are passes of such tasks: *map* tasks sort rows into
blocks (``archive.spill``), *reduce* tasks write one part or partition each. How the work is cut follows from
the input alone and every task writes under a name that follows from its content, so neither the number of
workers nor a task that is done twice changes a byte. :class:`Here` works in this process; on a cluster it is
``engine.ray_spread``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")


class Update(Protocol):
    """How a task tells that it got on; ``Progress.update`` is one."""

    def __call__(self, done: int = 1, **notes: Any) -> None:
        """Count units and show notes."""


class ProgressLike(Protocol):
    """What is asked of a progress display (``logs.Progress``)."""

    def expect(self, total: int) -> None:
        """Units in all."""

    def update(self, done: int = 1, **notes: Any) -> None:
        """Count units and show notes."""


class Spread(Protocol):
    """Where tasks are worked on.

    Attributes
    ----------
    elsewhere : bool
        Whether tasks run in other processes, which cannot read this one's temporary files.
    """

    elsewhere: bool

    def map(
        self,
        function: Callable[[Shared, Task, Update], Result],
        shared: Shared,
        tasks: Iterable[Task],
        progress: ProgressLike | None = None,
    ) -> Generator[Result, None, None]:
        """Results of ``function(shared, task, update)`` in the order of the tasks.

        Parameters
        ----------
        function : callable
            Of a module, and fit to be called twice with the same task.
        shared : object
            What all tasks need; handed over once.
        tasks : iterable
            Taken as they are needed, a few ahead at most.
        """


class Here:
    """Works on one task after the other when its result is asked for."""

    elsewhere = False

    def map(
        self,
        function: Callable[[Shared, Task, Update], Result],
        shared: Shared,
        tasks: Iterable[Task],
        progress: ProgressLike | None = None,
    ) -> Generator[Result, None, None]:
        """See :meth:`Spread.map`."""
        update = _unheard if progress is None else progress.update
        for task in tasks:
            yield function(shared, task, update)


def _unheard(done: int = 1, **notes: Any) -> None:
    """Nobody watches."""
