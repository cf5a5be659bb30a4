"""A Ray cluster of several nodes on one machine, whose processes can be killed one by one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

TITLES = {"worker": "ShardWorker", "model": "ModelActor"}
NODES = 2


class Cluster:
    """A head and nodes, each ``ray start --block`` in a process tree of its own; a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="acb-chaos-", dir="/tmp"))
        token = self.folder / "token"
        token.write_text("c0ffee00" * 8)
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *_python_path()]),
        }
        self.environment.pop("RAY_AUTH_TOKEN", None)
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._started = 0

    def __enter__(self) -> Cluster:
        try:
            port = self.address.rpartition(":")[2]
            options = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
            self.head = self._start([*options, f"--ray-client-server-port={free_port()}"])
            for _ in range(NODES):
                self.add_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in [*self.nodes, *([self.head] if hasattr(self, "head") else [])]:
            kill_tree(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(self) -> None:
        """Start another node with two CPUs and a fake GPU."""
        self.nodes.append(self._start([f"--address={self.address}", "--num-cpus=2", "--num-gpus=1"]))

    def kill_node(self, draw: random.Random) -> None:
        """End all processes of a node at once, and start another one in its place."""
        kill_tree(self.nodes.pop(draw.randrange(len(self.nodes))))
        self.add_node()

    def actors(self, kind: str) -> list[psutil.Process]:
        """Processes of the actors of a kind on these nodes."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.Error):
                found += [
                    c for c in psutil.Process(node.pid).children(recursive=True) if _is(c, TITLES[kind])
                ]
        return sorted(found, key=lambda process: process.pid)

    def _start(self, options: list[str]) -> subprocess.Popen[bytes]:
        self._started += 1
        log = self.folder / f"node-{self._started}.log"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            # Each node has an address of its own, as on real machines.
            f"--node-ip-address=127.0.0.{self._started}",
            f"--dashboard-agent-listen-port={free_port()}",
            *("--object-store-memory=100000000", *options),
        ]
        if "--head" in options:
            command.append(f"--temp-dir={self.folder}")
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            time.sleep(0.2)
        return process


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _is(process: psutil.Process, title: str) -> bool:
    try:
        return any(title in word for word in process.cmdline())
    except psutil.Error:
        return False
