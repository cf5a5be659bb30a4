"""What ``status`` concludes from the metrics of shards."""

from __future__ import annotations

from typing import Any

import pytest

from applecider_batch.engine.status import flow
from applecider_batch.engine.timing import Clock, TimedPort, computed


def entry(finished: float, busy: float, **seconds: float) -> dict[str, Any]:
    return {
        "finished": finished,
        "seconds": seconds,
        "waited": {"image": seconds["infer"] * 0.75, "photometry": seconds["infer"] * 0.25},
        "busy": {"image": busy, "photometry": busy / 10},
    }


def test_workers_that_wait_for_networks() -> None:
    # Two workers for ten seconds each, the only image actor busy for nine of ten.
    entries = [entry(110.0, 4.5, read=1.0, prepare=1.0, infer=8.0) for _ in range(2)]
    found = flow(entries, {"worker": 2, "image": 1, "photometry": 1})
    assert found["waiting_for_networks"] == pytest.approx(0.8)
    assert found["network_busy"] == pytest.approx({"image": 0.9, "photometry": 0.09})
    assert "wait for networks 80% of their time, most for image (12 s)" in found["bottleneck"]
    assert "more actors" in found["bottleneck"]


def test_networks_that_wait_for_workers() -> None:
    found = flow(
        [entry(110.0, 1.0, read=1.0, stamps=7.0, infer=2.0)], {"worker": 1, "image": 2, "photometry": 1}
    )
    assert found["network_busy"]["image"] == pytest.approx(0.05)
    assert (
        "80% of the workers' time is their own work, most of it reading stamps (7 s)" in found["bottleneck"]
    )
    assert "more workers" in found["bottleneck"]


def test_nothing_done_yet() -> None:
    assert flow([], {})["bottleneck"] is None


class Ticks:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_time_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from applecider_batch.engine import timing

    ticks = Ticks()
    monkeypatch.setattr(timing, "time", ticks)

    def spend(seconds: float) -> dict[str, Any]:
        ticks.now += seconds
        return {"logits": 1}

    class Port:
        def submit(self, batch: Any) -> Any:
            spend(0.5)
            return "handle"

        def result(self, handle: Any) -> dict[str, Any]:
            answer = computed(lambda batch: spend(3.0), {})
            spend(1.0)
            return answer

    clock = Clock()
    port = TimedPort(Port(), clock)
    spend(2.0)
    clock.lap("read")
    spend(0.25)
    clock.apart("stamps", lambda: spend(4.0))
    assert port.result(port.submit({})) == {"logits": 1}
    clock.lap("batches")
    assert clock.seconds == {"read": 2.0, "stamps": 4.0, "infer": 4.5, "batches": 0.25}
    assert (port.waited, port.busy) == (4.5, 3.0)
    assert sum(clock.seconds.values()) == ticks.now
