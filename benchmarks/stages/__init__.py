"""The stages of the way of the data, each timed against a straightforward implementation in the same run.

``python -m benchmarks.throughput [DATA] [--rounds N] [--stages NAME,…]`` runs them all and writes
``benchmarks/results.json`` and ``docs/performance.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """One stage: our way and the straightforward one over inputs of the same kind.

    Attributes
    ----------
    name, unit : str
    ours, reference : callable, () -> int
        Does the work once and returns how many units it did; the two may take different numbers of units.
        ``reference`` is None where a stage has no sensible one.
    bound_by : str
        What bounds our way, in words.
    target : float or None
        Ratio of the rates that is aimed at.
    same : callable, () -> None, optional
        Raises where the two do not give the same.
    one_core : bool
        Both are held on one core.
    notes : list of str
        Facts to print beside the row; ``ours`` may add to it.
    """

    name: str
    unit: str
    ours: Callable[[], int]
    reference: Callable[[], int] | None
    bound_by: str
    target: float | None = None
    same: Callable[[], None] | None = None
    one_core: bool = True
    notes: list[str] = field(default_factory=list)
