"""One driver per run, one writer per catalogue, an owner of every scratch folder: a lease file with host, pid
and heartbeat.

The lease keeps two drivers from wasting work on one run, and ``catalog gc`` from removing what an update is
writing; it says whose a scratch folder is (``archive/spill.py``).  Correctness of a run does not rest on it
but on the create-only commit records, so a takeover at the same moment costs time, never a row.

Of a driver on another machine only the heartbeat is seen, and its clock may be wrong.  A heartbeat of the
last five minutes is believed; one that looks older, or comes from the future, is watched: a driver that lives
writes another one within :data:`WATCH_SECONDS`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from applecider_batch.errors import StorageError, UserError
from applecider_batch.logs import get_logger
from applecider_batch.storage import Store, json_bytes

LEASE = "lease.json"
HEARTBEAT_SECONDS = 15.0
EXPIRY_SECONDS = 300.0
# Two heartbeats and a half.
WATCH_SECONDS = 2.5 * HEARTBEAT_SECONDS
WATCH_EVERY_SECONDS = 1.0
# For a scratch folder's owner elsewhere, who may be held up for hours and cannot go on without the folder.
FORGOTTEN_SECONDS = 24 * 3600.0

_log = get_logger(__name__)


def machine_id() -> str:
    """What two processes share exactly when one can look the other's pid up: boot and pid name space."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks (a pid may be used again); None where it cannot be told.

    A process that is dead but not yet waited for counts as gone: "".
    """
    try:
        # Fields 3 and 22; the name in field 2 may hold blanks and brackets, so count from its last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


def is_alive(holder: dict[str, Any], now: float) -> bool:
    """Whether a lease's holder is to be taken for alive."""
    if holder.get("machine") != machine_id():
        return abs(now - float(holder.get("heartbeat", 0.0))) < EXPIRY_SECONDS
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process_start(pid) == holder.get("started")


def read_lease(store: Store) -> dict[str, Any] | None:
    """The lease's contents, None where there is none (or it is just being replaced)."""
    try:
        lease: dict[str, Any] = store.read_json(LEASE)
    except FileNotFoundError:
        return None
    return lease


def still_beats(store: Store, holder: dict[str, Any]) -> bool:
    """Whether a holder elsewhere, whose clock says that it is dead, writes another heartbeat."""
    if holder.get("machine") == machine_id():
        return False
    _log.info("Watching whether process %s on %s still works.", holder["pid"], holder["host"])
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(WATCH_EVERY_SECONDS)
        seen = read_lease(store)
        if seen is not None and seen.get("heartbeat") != holder.get("heartbeat"):
            return True
    return False


def is_abandoned(store: Store) -> bool:
    """Whether a folder that somebody held a lease of is certainly nobody's any more.

    Its holder was a process of this machine that is gone, or one elsewhere that has not been heard of for a
    day and does not write a heartbeat now; or there is no lease and nothing was written for a day.
    """
    holder, now = read_lease(store), time.time()
    if holder is None:
        changed = store.modified()
        return changed is not None and now - changed > FORGOTTEN_SECONDS
    if holder.get("machine") == machine_id():
        return not is_alive(holder, now)
    return now - float(holder["heartbeat"]) > FORGOTTEN_SECONDS and not still_beats(store, holder)


class Lease:
    """Held by a run's driver, who changes a catalogue, or who uses a scratch folder; a context manager.

    Parameters
    ----------
    store : Store
        The run folder, the catalogue's, or the scratch folder.
    what : {"run", "catalogue", "scratch folder"}
    on_lost : callable
        Called (from the heartbeat's thread) when another driver has taken the run over.
    on_beat : callable
        Called at every heartbeat.
    every_seconds : float

    Raises
    ------
    UserError
        On entering, if a living driver has the run.
    """

    def __init__(
        self,
        store: Store,
        *,
        what: str = "run",
        on_lost: Callable[[], None] = lambda: None,
        on_beat: Callable[[], None] = lambda: None,
        every_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._store, self._what, self._every = store, what, every_seconds
        self._on_lost, self._on_beat = on_lost, on_beat
        self.token = secrets.token_hex(4)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        try:
            self._store.create_only(LEASE, self._contents())
        except FileExistsError:
            self._take_over()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        # Leaving must not hide why the run ended; a lease left behind is taken over by the next driver.
        with contextlib.suppress(StorageError, OSError):
            if self._mine():
                self._store.delete(LEASE)

    def _contents(self) -> bytes:
        return json_bytes(
            {
                "token": self.token,
                "host": socket.gethostname(),
                "machine": machine_id(),
                "pid": os.getpid(),
                "started": process_start(os.getpid()),
                "heartbeat": time.time(),
            }
        )

    def _take_over(self) -> None:
        holder = read_lease(self._store)
        if holder is not None:
            if is_alive(holder, time.time()) or still_beats(self._store, holder):
                said = "has a driver already" if self._what == "run" else "is being changed"
                stop = ", or stop it with: applecider-batch cancel RUN" if self._what == "run" else "."
                raise UserError(
                    f"The {self._what} '{self._store.url}' {said}: process {holder['pid']} on "
                    f"{holder['host']}.",
                    hint=f"Wait for it{stop}",
                )
            _log.info("Taking the %s over from process %s on %s.", self._what, holder["pid"], holder["host"])
            self._store.delete(LEASE)
        try:
            self._store.create_only(LEASE, self._contents())
        except FileExistsError:
            raise UserError(
                f"Another process took over the {self._what} '{self._store.url}' at this moment."
            ) from None

    def _mine(self) -> bool:
        holder = read_lease(self._store)
        return holder is not None and holder.get("token") == self.token

    def _beat(self) -> None:
        while not self._stop.wait(self._every):
            try:
                if not self._mine():
                    self._on_lost()
                    return
                self._store.write_atomic(LEASE, self._contents())
                self._on_beat()
            except (StorageError, OSError) as error:
                # A missed heartbeat is not the end: the next one, or the run's own writes, will tell.
                _log.warning("The heartbeat could not be written: %s", error)
