"""Where the time of a shard goes: seconds by step, and by network those waited for and those computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from applecider_batch.inference.batches import Batch
from applecider_batch.inference.shard import Port

#: What a predictor's answer carries beside its arrays: seconds that it computed.
BUSY = "seconds"

T = TypeVar("T")


class Clock:
    """Seconds by step: those since the last lap, less what was counted apart within it.

    Parameters
    ----------
    before : mapping of str -> float, optional
        Seconds that are counted already.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(before or {})
        self._last = time.monotonic()
        self._apart = 0.0

    def lap(self, step: str) -> None:
        """The step that began at the last lap ends."""
        now = time.monotonic()
        self._add(step, now - self._last - self._apart)
        self._last, self._apart = now, 0.0

    def apart(self, step: str, call: Callable[[], T]) -> T:
        """Call something and count its seconds as a step of their own."""
        start = time.monotonic()
        try:
            return call()
        finally:
            spent = time.monotonic() - start
            self._apart += spent
            self._add(step, spent)

    def _add(self, step: str, seconds: float) -> None:
        self.seconds[step] = round(self.seconds.get(step, 0.0) + seconds, 4)


class TimedPort:
    """A port that notes how long its networks were waited for, and how long they computed.

    Parameters
    ----------
    port : Port
    clock : Clock
        Waiting is counted there as ``infer``.

    Attributes
    ----------
    waited : float
        Seconds.
    """

    def __init__(self, port: Port, clock: Clock) -> None:
        self._port, self._clock = port, clock
        self.waited = 0.0
        self._told: float | None = None

    def submit(self, batch: Batch) -> Any:
        """Hand the batch in; a network of this process computes it now."""
        return self._timed(lambda: self._port.submit(batch))

    def result(self, handle: Any) -> dict[str, Any]:
        """The answer."""
        answer = self._timed(lambda: self._port.result(handle))
        if BUSY in answer:
            self._told = (self._told or 0.0) + answer.pop(BUSY)
        return answer

    @property
    def busy(self) -> float:
        """Seconds that the networks computed; those of this process compute while they are waited for."""
        return self.waited if self._told is None else self._told

    def _timed(self, call: Callable[[], T]) -> T:
        start = time.monotonic()
        try:
            return self._clock.apart("infer", call)
        finally:
            self.waited += time.monotonic() - start


def computed(run: Callable[[Batch], dict[str, Any]], batch: Batch) -> dict[str, Any]:
    """A predictor's answer with the seconds that it took."""
    start = time.monotonic()
    answer = dict(run(batch))
    answer[BUSY] = time.monotonic() - start
    return answer
