"""The same work on a tenth and on the whole: time an object, memory, resume, planning, Ray beside serial.

    python -m benchmarks.scale build    FOLDER --kind bare   --alerts 1000000 [--real ARCHIVE]
    python -m benchmarks.scale build    FOLDER --kind stamps --alerts 100000  [--real ARCHIVE]
    python -m benchmarks.scale classify FOLDER --kind bare
    python -m benchmarks.scale classify FOLDER --kind stamps
    python -m benchmarks.scale plan|resume|ray FOLDER --kind bare
    python -m benchmarks.scale page     FOLDER --out docs/scale.md

``build`` makes two archives, of that many alerts and of a tenth, by replication of a simulated survey and,
with ``--real``, of the objects with alerts of another archive: every copy has new objectIds and candids and
lies at another right ascension. The copies go through ``ingest`` as packets that are decoded already. Every
stage writes what it measured to ``FOLDER/results.json``, can be run again alone, and ``page`` makes the page
from them. Each command measured is a process of its own; on a loaded machine only CPU seconds say something.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.packets import PacketBatch
from applecider_batch.archive.read import Archive
from applecider_batch.digest import digest128, hash64
from applecider_batch.models.model_set import init_model_set
from applecider_batch.schema import load_table
from applecider_batch.simulate import simulate
from benchmarks.scale_page import write_page

SURVEY = {"n_objects": 200, "n_nights": 120, "seed": 11}
TURN_DEG = 137.50776405  # right ascension from one copy to the next; no multiple of it comes near another
SHARDS_PLANNED = 4096
OBJECTS_PER_SHARD = 500
OBJECTS_PER_BATCH = 100
LEFT_OUT = 100  # of so many commits one is removed before the resume
COMMAND = [sys.executable, "-c", "from applecider_batch.cli.main import main; main()"]
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
_LOW = 10**9  # the digits of a candid below the night and the exposure


class Copies:
    """Copies of the objects of an archive as a source of packets; the year keeps their names apart."""

    def __init__(self, base: Archive, year: int, stamps: bool) -> None:
        self._year = year
        whole = (0, 1 << 64)
        self._alerts = base.read_alerts(*whole)
        names = self._alerts.column("objectId")
        points = base.read_photometry(*whole)
        self._points = points.filter(pc.is_in(points.column("objectId"), value_set=pc.unique(names)))
        self._stamps = load_table("stamps").empty()
        if stamps:
            self._stamps = base.read_stamps(*whole, self._alerts.column("candid").to_pylist())
            with_stamps = pc.unique(self._stamps.column("objectId"))
            self._alerts = self._alerts.filter(pc.is_in(names, value_set=with_stamps))
            self._points = self._points.filter(
                pc.is_in(self._points.column("objectId"), value_set=with_stamps)
            )
        self._names = pc.unique(self._alerts.column("objectId"))
        candids = pa.chunked_array(
            [*self._alerts.column("candid").chunks, *self._points.column("candid").chunks]
        )
        self._candids = np.unique(pc.drop_null(candids).to_numpy())
        self.alerts, self.objects = self._alerts.num_rows, len(self._names)
        self.copies = 1
        self.n_bytes = 0
        self._base = base.snapshot.logical_digest

    @property
    def name(self) -> str:
        """How many copies."""
        return f"{self.copies} copies of {self._base}"

    @property
    def source_id(self) -> str:
        """Digest of what they are made from."""
        return digest128(self.name.encode())

    def batches(self) -> Iterator[PacketBatch]:
        """Some objects of a copy at a time."""
        empty = load_table("quarantine").empty()
        for number in range(self.copies):
            for start in range(0, self.objects, OBJECTS_PER_BATCH):
                chosen = self._names.slice(start, OBJECTS_PER_BATCH)
                alerts, points, stamps = (
                    self._copy(number, table.filter(pc.is_in(table.column("objectId"), value_set=chosen)))
                    for table in (self._alerts, self._points, self._stamps)
                )
                yield PacketBatch(alerts, points, stamps, empty, alerts.num_rows)

    def _copy(self, number: int, table: pa.Table) -> pa.Table:
        at = pc.index_in(table.column("objectId"), value_set=self._names).to_numpy()
        names = pa.array(_names(self._year, number * self.objects + np.arange(self.objects))).take(
            pa.array(at)
        )
        new: dict[str, Any] = {"objectId": names, "hash64": pa.array(hash64(names))}
        for column in ("candid", "known_candid"):
            if column in table.column_names:
                new[column] = self._candid(number, table.column(column))
        if "source_id" in table.column_names:
            new["source_id"] = pa.repeat(self.source_id, table.num_rows)
        if "ra" in table.column_names:
            ra = table.column("ra").to_numpy() + number * TURN_DEG
            new["ra"] = pa.array(ra % 360.0, from_pandas=True)
        if "packet_digest" in table.column_names:
            old = table.column("packet_digest").to_pylist()
            new["packet_digest"] = pa.array([digest128(f"{digest}:{number}".encode()) for digest in old])
        columns = {name: new.get(name, table.column(name)) for name in table.column_names}
        return pa.table(columns, schema=table.schema)

    def _candid(self, number: int, old: pa.ChunkedArray) -> pa.Array:
        """The same night and exposure, and a number that no other candid of any copy has."""
        values = pc.fill_null(old, 0).to_numpy()
        low = number * len(self._candids) + np.searchsorted(self._candids, values)
        return pa.array(values - values % _LOW + low % _LOW, mask=pc.is_null(old).to_numpy())


def _names(year: int, numbers: np.ndarray) -> np.ndarray:
    """objectIds of consecutive numbers, in ZTF's form."""
    digits = [_LETTERS[numbers // 26**place % 26] for place in range(6, -1, -1)]
    names = np.full(len(numbers), f"ZTF{year}")
    for digit in digits:
        names = np.char.add(names, digit)
    return names


def build(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both archives of a kind."""
    folder = arguments.folder
    base = folder / "base"
    if not (base / "archive.json").exists():
        nights = simulate(folder / "survey", **SURVEY)["nights"]
        ingest([str(night) for night in nights], str(base))
    if not (folder / "models").exists():
        init_model_set(folder / "models")
    bases = [Archive.open(str(base)), *([Archive.open(arguments.real)] if arguments.real else [])]
    sources = [Copies(archive, year, arguments.kind == "stamps") for year, archive in enumerate(bases, 21)]
    tenth = max(1, round(arguments.alerts / 10 / sum(source.alerts for source in sources)))
    found: dict[str, Any] = {}
    # The same objects in both, ten times as often.
    for name, copies in (("tenth", tenth), ("whole", 10 * tenth)):
        for source in sources:
            source.copies = copies
        url = _archive(arguments, name)
        shutil.rmtree(url, ignore_errors=True)
        seconds = time.monotonic(), time.process_time()
        answer = ingest(sources, str(url))
        found[name] = {
            "alerts": answer["stored"],
            "objects": sum(source.objects * source.copies for source in sources),
            "copies": copies,
            "seconds": round(time.monotonic() - seconds[0], 1),
            "cpu_seconds": round(time.process_time() - seconds[1], 1),
            "bytes": sum(part.bytes for part in Archive.open(str(url)).snapshot.parts),
            "peak_memory_bytes": _peak_of_this_process(),
        }
    return found


def classify(arguments: argparse.Namespace) -> dict[str, Any]:
    """A serial run over the tenth and one over the whole, each in a process of its own."""
    return {name: _classified(arguments, name, arguments.folder / "runs") for name in ("tenth", "whole")}


def _classified(arguments: argparse.Namespace, name: str, runs: Path, *options: str) -> dict[str, Any]:
    run = runs / f"{arguments.kind}-{name}"
    line = ["classify", "--archive", str(_archive(arguments, name)), "--models", _models(arguments)]
    line += ["--run", str(run), "--objects-per-shard", str(OBJECTS_PER_SHARD), "--device", "cpu", *options]
    answer, spent = _measured(line)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [entry for entry in map(json.loads, lines) if "seconds" in entry]
    steps: dict[str, float] = {}
    for entry in metrics:
        for step, seconds in entry["seconds"].items():
            steps[step] = steps.get(step, 0.0) + seconds
    return {
        "objects": answer["objects"],
        "rows": answer["rows"],
        "state": answer["state"],
        **spent,
        "shard_seconds": round(sum(steps.values()), 1),
        "seconds_by_step": {step: round(seconds, 1) for step, seconds in sorted(steps.items())},
    }


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """``plan`` of 4,096 shards over the whole, the first time and again."""
    archive = _archive(arguments, "whole")
    objects = _results(arguments)[f"build {arguments.kind}"]["whole"]["objects"]
    line = ["plan", "--archive", str(archive), "--models", _models(arguments), "--device", "cpu"]
    line += ["--objects-per-shard", str(max(1, objects // SHARDS_PLANNED))]
    shutil.rmtree(archive / "objects", ignore_errors=True)
    found = {}
    for name in ("first", "again"):
        answer, spent = _measured(line)
        found[name] = {"shards": answer["shards"], "objects": answer["objects"], **spent}
    return found


def resume(arguments: argparse.Namespace) -> dict[str, Any]:
    """One commit of a hundred removed from a copy of the whole run, which is then resumed with Ray."""
    run = arguments.folder / "runs" / f"{arguments.kind}-whole"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        again = Path(name) / run.name
        shutil.copytree(run, again, copy_function=os.link)
        for log in ("manifest.jsonl", "metrics.jsonl", "log.txt"):
            (again / log).unlink()
        commits = sorted((again / "commits").glob("*.json"))
        for commit in commits[::LEFT_OUT]:
            commit.unlink()
        found = _classified(arguments, "whole", Path(name), "--executor", "ray", "--workers", "1")
        lines = (again / "manifest.jsonl").read_text().splitlines()
        moments = {entry["state"]: entry["time"] for entry in map(json.loads, lines)}
    code = (
        "import time, ray\nfrom applecider_batch.engine.ray_cluster import Connection\n"
        "connection, start = Connection(None), time.monotonic()\nconnection.open()\n"
        "print(time.monotonic() - start)\nconnection.close()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
    )
    return {
        "shards": len(commits),
        "done_again": len(commits[::LEFT_OUT]),
        "total_seconds": found["seconds"],
        "ray_and_actors_seconds": round(moments["working"] - moments["start"], 2),
        "work_seconds": round(moments["complete"] - moments["working"], 2),
        "shard_seconds": found["shard_seconds"],
        "ray_init_seconds": round(float(done.stdout.split()[-1]), 2),
    }


def ray(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole with Ray and with the serial executor on every core, and held on one: objects/s and core."""
    everywhere = os.sched_getaffinity(0)
    workers = ["--workers", str(len(everywhere))]
    found: dict[str, Any] = {"cores": len(everywhere)}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for case, executor, cores, more in (
            ("serial", "serial", everywhere, []),
            ("serial_on_one", "serial", {min(everywhere)}, []),
            ("ray", "ray", everywhere, workers),
        ):
            runs = Path(name) / case
            runs.mkdir()
            os.sched_setaffinity(0, cores)  # the command inherits it
            answer = _classified(arguments, "whole", runs, "--executor", executor, *more)
            lines = (runs / f"{arguments.kind}-whole" / "manifest.jsonl").read_text().splitlines()
            moments = {entry["state"]: entry["time"] for entry in map(json.loads, lines)}
            seconds = moments["complete"] - moments["working"]
            found[case] = {
                **answer,
                "work_seconds": round(seconds, 1),
                "objects_per_s_and_core": round(answer["objects"] / seconds / len(cores), 2),
            }
    os.sched_setaffinity(0, everywhere)
    return found


def _measured(line: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A command's answer, and what it took: seconds, CPU seconds (with children waited for), peak memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    quiet = ["-q"] if line[0] == "classify" else []
    start = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, *line, *quiet, "--format", "json"], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {process.returncode}.")
    spent = {
        "seconds": round(time.monotonic() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
    }
    return json.loads(out), spent


def _peak_of_this_process() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _archive(arguments: argparse.Namespace, name: str) -> Path:
    return Path(arguments.folder / f"{arguments.kind}-{name}")


def _models(arguments: argparse.Namespace) -> str:
    return str(arguments.models or arguments.folder / "models")


def _results(arguments: argparse.Namespace) -> dict[str, Any]:
    file = arguments.folder / "results.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _note(arguments: argparse.Namespace, stage: str, found: Mapping[str, Any]) -> None:
    results = {**_results(arguments), stage: {**found, "load_average": os.getloadavg()[0]}}
    file = arguments.folder / "results.json"
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps(results, indent=1, sort_keys=True))
    beside.replace(file)


def main() -> None:
    """One stage."""
    stages = {"build": build, "classify": classify, "plan": plan, "resume": resume, "ray": ray}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*stages, "page"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=["bare", "stamps"], default="bare")
    parser.add_argument("--alerts", type=int, default=1_000_000)
    parser.add_argument("--real", help="an archive whose objects with alerts are copied, too")
    parser.add_argument("--models", help="model set; by default an untrained one of the main networks")
    parser.add_argument("--out", type=Path, default=Path("docs/scale.md"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "page":
        write_page(_results(arguments), arguments.out)
        return
    found = stages[arguments.stage](arguments)
    _note(arguments, f"{arguments.stage} {arguments.kind}", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
