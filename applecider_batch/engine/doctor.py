"""Looking over the machine: Python, packages, memory and disk, GPU, Ray, storage, clock; and what to do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from applecider_batch.errors import AppleciderError
from applecider_batch.storage import Store

OK, WARNING, FAILED = "ok", "warning", "failed"
PYTHON = (3, 11)
MEMORY_BYTES = 4 << 30
DISK_BYTES = 10 << 30
OPEN_FILES = 1024
CLOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes
    ----------
    check : str
        What was looked at.
    state : str
        ``ok``, ``warning`` (it works, with a limit) or ``failed`` (it does not).
    found : str
    advice : str
        What to do; empty if ``ok``.
    """

    check: str
    state: str
    found: str
    advice: str = ""


def examine(
    storage: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    address: str | None = None,
    start_ray: bool = True,
) -> dict[str, Any]:
    """All checks.

    Parameters
    ----------
    storage : str, optional
        A folder (any fsspec URL) to write to and read from.
    storage_options : mapping, optional
    address : str, optional
        Ray cluster to connect to; by default Ray is started on this machine.
    start_ray : bool
        Whether to look at Ray at all, which takes some seconds.

    Returns
    -------
    dict
        ``ok`` (nothing failed) and ``checks``.
    """
    checks = [python(), *packages(), memory(), disk(), open_files()]
    checks.append(guarded("gpu", gpu, "Mend the installation of torch."))
    if start_ray:
        checks.append(
            guarded("cluster", lambda: ray(address), "Start with --executor serial until Ray works.")
        )
    if storage is not None:
        place = Store(storage, storage_options)
        advice = "Check the URL, the credentials and --storage-option."
        checks.append(guarded("storage", lambda: store(place), advice))
        if checks[-1].state != FAILED:
            checks.append(guarded("clock", lambda: clock(place), advice))
    return {"ok": all(c.state != FAILED for c in checks), "checks": [asdict(check) for check in checks]}


def guarded(name: str, check: Callable[[], Check], advice: str) -> Check:
    """A check whose own failure is a finding."""
    try:
        return check()
    except AppleciderError as error:
        return Check(name, FAILED, error.message, error.hint or advice)
    except Exception as error:
        return Check(name, FAILED, f"{type(error).__name__}: {error}", advice)


def python() -> Check:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        return Check("python", FAILED, found, f"Install Python {PYTHON[0]}.{PYTHON[1]} or newer.")
    return Check("python", OK, found)


def packages() -> Iterator[Check]:
    """Every package that this one requires, extras aside."""
    for line in importlib.metadata.requires("applecider-batch") or []:
        requirement, _, marker = line.partition(";")
        if "extra" in marker:
            continue
        name = re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]
        least = re.search(r">=\s*([0-9.]+)", requirement)
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(f"package {name}", FAILED, "not installed", f"pip install '{requirement.strip()}'")
            continue
        if least and _numbers(found) < _numbers(least[1]):
            yield Check(f"package {name}", FAILED, found, f"pip install '{requirement.strip()}'")
        else:
            yield Check(f"package {name}", OK, found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def memory() -> Check:
    """Memory that is free now."""
    with open("/proc/meminfo") as lines:
        free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}["MemAvailable"]
    found = f"{free / 2**30:.1f} GiB available, {os.cpu_count()} CPUs"
    if free < MEMORY_BYTES:
        return Check("memory", WARNING, found, "Use smaller shards (--objects-per-shard) and one worker.")
    return Check("memory", OK, found)


def disk() -> Check:
    """Space for temporary files: ingest and compaction sort out of core."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < DISK_BYTES:
        return Check("disk", WARNING, found, "Set TMPDIR to a folder on a larger disk.")
    return Check("disk", OK, found)


def open_files() -> Check:
    """How many files a process may hold open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < OPEN_FILES:
        return Check("open files", WARNING, f"at most {limit}", f"Raise it: ulimit -n {OPEN_FILES}")
    return Check("open files", OK, f"at most {limit}")


def gpu() -> Check:
    """What torch sees."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return Check("gpu", OK, f"{', '.join(names)} (torch {torch.__version__})")
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        advice = "This torch has no CUDA: install one that has, or run on CPUs with --device cpu."
        return Check("gpu", WARNING, f"an NVIDIA driver, but torch {torch.__version__} is for CPUs", advice)
    return Check("gpu", OK, f"none; networks run on CPUs (torch {torch.__version__})")


def ray(address: str | None) -> Check:
    """Connect to a cluster, or start Ray here; run nothing but a look at the nodes."""
    from applecider_batch.engine.ray_cluster import Connection

    connection = Connection(address)
    start = time.monotonic()
    connection.open()
    try:
        nodes = connection.nodes()
    finally:
        connection.close()
    what = f"connected to {address}" if address else "started on this machine"
    held = f"{sum(n.cpus for n in nodes):g} CPUs, {sum(n.gpus for n in nodes):g} GPUs"
    found = f"{what} in {time.monotonic() - start:.1f} s: {len(nodes)} nodes, {held}"
    if not sum(node.cpus for node in nodes):
        return Check(
            "cluster", WARNING, found, "No node has a CPU; add nodes, or let it grow with --autoscale."
        )
    return Check("cluster", OK, found)


def store(place: Store) -> Check:
    """Write, create only once, list, read and remove a file."""
    name, content = f".doctor-{uuid.uuid4().hex}", os.urandom(1 << 16)
    start = time.monotonic()
    try:
        place.create_only(name, content)
        try:
            place.create_only(name, b"another")
        except FileExistsError:
            pass
        else:
            advice = "Commits need create-only writes (S3: conditional PUT); use a storage that has them."
            return Check("storage", FAILED, f"'{place.url}' lets a file be created twice", advice)
        if place.read_bytes(name) != content:
            return Check("storage", FAILED, f"'{place.url}' returned other bytes", "Do not use this storage.")
    finally:
        with contextlib.suppress(AppleciderError, OSError):
            place.delete(name)
    return Check(
        "storage", OK, f"'{place.url}' written, read and removed in {time.monotonic() - start:.2f} s"
    )


def clock(place: Store) -> Check:
    """This machine's clock against the storage's."""
    name = f".doctor-{uuid.uuid4().hex}"
    try:
        before = time.time()
        place.write_atomic(name, b"clock")
        details = place.fs.info(place.path(name))
    finally:
        with contextlib.suppress(AppleciderError, OSError):
            place.delete(name)
    moment = details.get("LastModified", details.get("mtime"))
    if moment is None:
        return Check("clock", OK, f"'{place.url}' does not tell the time")
    theirs = moment.timestamp() if isinstance(moment, datetime) else float(moment)
    skew = before - theirs
    if abs(skew) > CLOCK_SECONDS:
        found = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the storage"
        return Check(
            "clock", WARNING, found, "Synchronise this machine's clock (NTP); S3 refuses 15 minutes."
        )
    return Check("clock", OK, f"within {CLOCK_SECONDS:.0f} s of the storage's")
