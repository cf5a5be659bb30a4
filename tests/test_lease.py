from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from applecider_batch import lease as leases
from applecider_batch.errors import UserError
from applecider_batch.lease import LEASE, Lease, is_alive, machine_id, process_start, read_lease
from applecider_batch.storage import Store


def holder(**changes: Any) -> dict[str, Any]:
    own = {"token": "x", "host": "h", "machine": machine_id(), "pid": os.getpid(), "heartbeat": time.time()}
    return {**own, "started": process_start(os.getpid()), **changes}


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_second_driver_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with Lease(store):
        with pytest.raises(UserError, match=f"has a driver already: process {os.getpid()}"), Lease(store):
            pass
        assert read_lease(store) is not None
    assert read_lease(store) is None


def test_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_json_atomic(LEASE, holder(pid=dead_pid(), started="1"))
    with Lease(store) as lease:
        found = read_lease(store)
        assert found is not None
        assert found["token"] == lease.token


def test_a_pid_that_is_used_again_is_not_the_old_driver() -> None:
    assert is_alive(holder(), time.time())
    assert not is_alive(holder(started="1"), time.time())


def test_a_process_that_nobody_waited_for_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    started = process_start(child.pid)
    deadline = time.monotonic() + 20
    while process_start(child.pid) != "" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(holder(pid=child.pid, started=started), time.time())
    child.wait()


@pytest.mark.parametrize("wrong_by", [-3600.0, 3600.0])
@pytest.mark.parametrize("alive", [True, False])
def test_a_driver_with_a_wrong_clock_is_told_by_its_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_by: float, alive: bool
) -> None:
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(leases, "WATCH_EVERY_SECONDS", 0.05)
    store, ended = Store(tmp_path), threading.Event()

    def beat() -> None:
        store.write_json_atomic(
            LEASE, holder(machine="elsewhere", token="other", heartbeat=time.time() + wrong_by)
        )

    def go_on() -> None:
        while not ended.wait(0.1):
            beat()

    beat()
    other = threading.Thread(target=go_on if alive else ended.wait)
    other.start()
    try:
        if alive:
            with pytest.raises(UserError, match="has a driver already"), Lease(store):
                pass
        else:
            with Lease(store) as lease:
                found = read_lease(store)
                assert found is not None
                assert found["token"] == lease.token
    finally:
        ended.set()
        other.join()


@pytest.mark.parametrize(
    ("age", "alive"), [(10, True), (290, True), (310, False), (-290, True), (-310, False)]
)
def test_elsewhere_the_heartbeat_decides(age: float, alive: bool) -> None:
    now = time.time()
    assert is_alive(holder(machine="elsewhere", heartbeat=now - age), now) is alive


def test_a_driver_that_lost_its_lease_is_told(tmp_path: Path) -> None:
    store, lost = Store(tmp_path), threading.Event()
    with Lease(store, on_lost=lost.set, every_seconds=0.02):
        for _ in range(100):  # a heartbeat that has just looked still writes its own once
            store.write_json_atomic(LEASE, holder(token="another"))
            if lost.wait(0.1):
                break
        assert lost.is_set()
    # The other driver's lease is not taken away.
    found = read_lease(store)
    assert found is not None
    assert found["token"] == "another"


def test_the_heart_beats(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with Lease(store, every_seconds=0.02):
        first = read_lease(store)
        assert first is not None
        deadline = time.monotonic() + 10
        while (read_lease(store) or first)["heartbeat"] == first["heartbeat"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_five_minutes_and_a_quarter() -> None:
    assert leases.EXPIRY_SECONDS == 300
    assert leases.HEARTBEAT_SECONDS <= leases.EXPIRY_SECONDS / 10
