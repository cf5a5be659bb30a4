"""Connecting to Ray, what it has, and whether the pools fit.

Every setting that Ray takes from the environment is set here, before ray is imported anywhere.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from applecider_batch.errors import ClusterError, UsageError
from applecider_batch.inference.fusion import MODALITIES

CONNECT_SECONDS = 5.0
OBJECT_STORE_BYTES = 512 << 20
# "/acb-ray-<pid>-<8>/session_<date>_<time>_<6>_<pid>/sockets/plasma_store" makes 107 bytes of it.
LONGEST_BASE = 18
# On CPUs a worker waits while its batches are computed, so a worker and its share of model actors are
# about a core.
WORKER_CPUS = {"cpu": 0.25, "cuda": 1.0}
MODEL_CPUS = {"cpu": 0.25, "cuda": 0.25}
GPU_SHARES = {"image": 0.5, "photometry": 0.25, "spectra": 0.25}
WORKER = "worker"
KEYS = ("size", "num_cpus", "num_gpus", "memory_gib")
# A worker has two batches of a modality under way at most, so further actors would have nothing to do.
ACTORS_PER_WORKER = 2


@dataclass(frozen=True)
class Pool:
    """Actors of one kind: how many, and what each reserves (memory in bytes)."""

    name: str
    size: int
    num_cpus: float
    num_gpus: float = 0.0
    memory: float = 0.0

    def __str__(self) -> str:
        memory = f", {self.memory / 2**30:g} GiB" if self.memory else ""
        return f"{self.size} x {self.name} ({self.num_cpus:g} CPU, {self.num_gpus:g} GPU{memory})"


@dataclass(frozen=True)
class Node:
    """What a node has; memory in bytes, as far as Ray gives it away."""

    node_id: str
    cpus: float
    gpus: float
    memory: float = 0.0

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU, {self.gpus:g} GPU, {self.memory / 2**30:.1f} GiB"


def plan_pools(
    modalities: Sequence[str],
    device: str,
    threads: int,
    cpus: float,
    gpus: float,
    workers: int | None,
    wanted: Mapping[str, Mapping[str, float]] | None,
    shards: int | None = None,
) -> tuple[Pool, dict[str, Pool]]:
    """The workers and the pool of each modality.

    Parameters
    ----------
    modalities : sequence of str
        For which the model set has a network.
    device : str
        ``cpu`` or ``cuda``.
    threads : int
        CPU threads of a model actor.
    cpus, gpus : float
        Of the whole cluster.
    workers : int, optional
    wanted : mapping, optional
        ``{modality or "worker": {"size": …, "num_cpus": …, "num_gpus": …, "memory_gib": …}}``, any part of
        it.
    shards : int, optional
        Not done yet: no more workers than these, and no more actors than the workers can keep busy.

    Returns
    -------
    (Pool, dict of modality -> Pool)

    Raises
    ------
    UsageError
        For an unknown modality or key, a negative number or an empty pool.
    """
    wanted = wanted or {}
    for name, values in wanted.items():
        if name not in (*MODALITIES, WORKER) or not set(KEYS).issuperset(values):
            raise UsageError(
                f"A pool is one of {', '.join((*MODALITIES, WORKER))} with {', '.join(KEYS)}; given was "
                f"{name}: {dict(values)}."
            )
        if min(values.values(), default=0) < 0 or values.get("size", 1) < 1:
            raise UsageError(
                f"A pool needs a size of at least 1 and no negative number, given was {dict(values)}."
            )
    if workers and "size" in wanted.get(WORKER, {}):
        raise UsageError("The number of workers is given twice, by --workers and by --pool worker:size=….")

    def pool(name: str, size: int, num_cpus: float, num_gpus: float, most: int | None) -> Pool:
        values = wanted.get(name, {})
        size = int(values.get("size", size))
        return Pool(
            name,
            size if most is None else max(1, min(size, most)),
            float(values.get("num_cpus", num_cpus)),
            float(values.get("num_gpus", num_gpus)),
            float(values.get("memory_gib", 0.0)) * 2**30,
        )

    worker = pool(WORKER, workers or max(1, int(cpus) // 2), WORKER_CPUS[device], 0.0, shards)
    count = worker.size
    pools = {}
    for name in modalities:
        on_cpu = max(1, count // 4) if name == "spectra" else count  # few objects have a spectrum
        pools[name] = pool(
            name,
            max(1, int(gpus)) if device == "cuda" else on_cpu,
            MODEL_CPUS[device] * (threads if device == "cpu" else 1),
            GPU_SHARES[name] if device == "cuda" else 0.0,
            None if shards is None else ACTORS_PER_WORKER * count,
        )
    return worker, pools


def check_fit(pools: Sequence[Pool], nodes: Sequence[Node]) -> None:
    """Refuse pools that the nodes cannot hold: Ray itself would wait for ever without a word.

    An actor is on one node, and a fraction of a GPU on one GPU.

    Raises
    ------
    ClusterError
        It says what does not fit and what there is.
    """
    free_cpus = {node.node_id: node.cpus for node in nodes}
    free_memory = {node.node_id: node.memory for node in nodes}
    free_gpus = {node.node_id: [1.0] * int(node.gpus) for node in nodes}
    for pool in sorted(pools, key=lambda p: (-p.num_gpus, -p.num_cpus, -p.memory, p.name)):
        for number in range(pool.size):
            if any(_place(pool, node.node_id, free_cpus, free_gpus, free_memory) for node in nodes):
                continue
            asked = "; ".join(map(str, pools))
            there = "; ".join(map(str, nodes)) or "no node"
            raise ClusterError(
                f"The pools cannot be placed: actor {number + 1} of {pool.size} of '{pool.name}' finds no "
                f"room. Asked for: {asked}. The cluster has: {there}.",
                hint="Ask for fewer workers or smaller pools, or add nodes.",
            )


def _place(
    pool: Pool,
    node: str,
    cpus: dict[str, float],
    gpus: dict[str, list[float]],
    memory: dict[str, float],
) -> bool:
    """Take an actor's share off a node; False if it does not fit there."""
    slack = 1e-9
    if cpus[node] + slack < pool.num_cpus or memory[node] < pool.memory:
        return False
    if pool.num_gpus:
        if pool.num_gpus >= 1:
            whole = [i for i, free in enumerate(gpus[node]) if free >= 1.0]
            if len(whole) < math.ceil(pool.num_gpus):
                return False
            for i in whole[: math.ceil(pool.num_gpus)]:
                gpus[node][i] = 0.0
        else:
            # The fullest GPU that still has room, as a packer would.
            room = [i for i, free in enumerate(gpus[node]) if free + slack >= pool.num_gpus]
            if not room:
                return False
            gpus[node][min(room, key=lambda i: gpus[node][i])] -= pool.num_gpus
    cpus[node] -= pool.num_cpus
    memory[node] -= pool.memory
    return True


def set_environment() -> None:
    """Settings that Ray and its workers read from the environment; the user's own are left as they are."""
    # No network at run time, and no warning that turns into an error under -W error.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # A worker has a core or two. Ray tells so to OpenMP, BLAS and Arrow, and not to Polars, which would start
    # as many threads in every worker as the machine has cores.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")


def _own_token() -> None:
    """A token for a local Ray that stays in this process and its children.

    Without one, Ray writes ``~/.ray/auth_token``, and from then on every other Ray of the user demands it.
    """
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if not any(os.environ.get(name) for name in names) and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


class Connection:
    """A connection to Ray: the caller's, a cluster's, or a local one that ends with it.

    Parameters
    ----------
    address : str, optional
        ``auto``, ``host:port`` or ``ray://…``; None starts Ray on this machine.
    local_cpus : float
        CPUs that a local Ray is told to have, if these are more than the machine's: on one's own machine
        more actors than cores only share them.

    Raises
    ------
    ClusterError
        If Ray cannot be reached or started.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.local = False
        self._owned = False
        self._folder: str | None = None

    def open(self, local_cpus: float = 0.0) -> None:
        """Connect or start."""
        set_environment()
        if self.address is None:
            _own_token()
            # A laptop that slept: by default Ray gives up a node that is silent for a minute, and ends.
            os.environ.setdefault("RAY_health_check_failure_threshold", str(2**31 - 1))
        elif self.address != "auto" and "://" not in self.address:
            _knock(self.address)
        import ray

        if ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            self.local = True
            cpus = max(os.cpu_count() or 1, math.ceil(local_cpus))
            self._folder = _short_folder()
            options |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": cpus,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": self._folder,
            }
        else:
            options["address"] = self.address
        try:
            with _handlers_kept():
                ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            self._remove_folder()
            raise ClusterError(
                f"Ray at '{self.address or 'this machine'}' cannot be reached: {str(error).splitlines()[0]}.",
                hint="Check the address, or leave --address out to start Ray on this machine.",
            ) from error
        self._owned = True

    def nodes(self) -> list[Node]:
        """Living nodes with what they have in all."""
        import ray

        return [
            Node(n["NodeID"], *(n["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "memory")))
            for n in ray.nodes()
            if n["Alive"]
        ]

    def check(self) -> None:
        """Refuse to go on with a local Ray that has died.

        Nothing else tells: a local raylet is never given up for silence, and a process that cannot reach the
        GCS for a minute is ended by Ray, without an exception.

        Raises
        ------
        ClusterError
            If the raylet or the GCS that this process started is gone.
        """
        if not (self.local and self._owned):
            return
        from ray._private import worker

        node = worker._global_node
        dead = [kind for kind, _ in node.dead_processes()] if node is not None else ["node"]
        if found := sorted({*dead} & {"raylet", "gcs_server", "node"}):
            raise ClusterError(
                f"The Ray that was started on this machine has died ({', '.join(found)}).",
                hint="Look at the machine's memory, and run the same command again, with fewer workers.",
            )

    def close(self) -> None:
        """Disconnect; a local Ray ends."""
        if self._owned:
            import ray

            if self.local:
                _end_monitor()
            ray.shutdown()
            self._owned = False
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _end_monitor() -> None:
    """End the autoscaler of a local Ray: it has no work and ignores SIGTERM, and Ray would wait a second."""
    from ray._private import ray_constants, worker

    processes = worker._global_node.all_processes if worker._global_node is not None else {}
    for info in processes.get(ray_constants.PROCESS_TYPE_MONITOR, ()):
        info.process.kill()


def _short_folder() -> str:
    """Folder for a local Ray's session; its sockets need a path below 107 bytes.

    What processes of this user that were killed have left behind is removed on the way.
    """
    base = Path(tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_BASE else "/tmp")
    for old in base.glob("acb-ray-*-*"):
        pid = old.name.split("-")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(old, ignore_errors=True)
        except (ValueError, PermissionError):
            continue
    return tempfile.mkdtemp(prefix=f"acb-ray-{os.getpid()}-", dir=base)


def _knock(address: str) -> None:
    """A quick look whether anything listens, because Ray itself tries for a long while."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host or "127.0.0.1", int(port)), timeout=CONNECT_SECONDS):
            return
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"Ray at '{address}' cannot be reached: {error}.",
            hint="Give 'auto' or host:port of a head started with 'ray start --head'.",
        ) from error


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray installs its own SIGTERM handler; the run's has to stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
