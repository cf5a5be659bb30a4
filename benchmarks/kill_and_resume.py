"""SIGKILL at random moments, then resume: the catalogue must be that of an undisturbed run.

    python -m benchmarks.kill_and_resume ARCHIVE MODELS [--executor serial|ray] [--kills 5] [--seed 0]

Each round starts ``classify``, waits a random time, and kills either the driver or, under Ray, one of its
processes (a shard worker or a model actor). Prints one line a kill, then both ``content_sha256``; the exit
code is 1 if they differ.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

COMMAND = [sys.executable, "-c", "from applecider_batch.cli.main import main; main()"]
WORKERS = ("ShardWorker", "ModelActor")
START_SECONDS = {False: 3.0, True: 9.0}  # until a session does its first shard, by whether Ray starts too


def main() -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("models")
    parser.add_argument("--executor", choices=["serial", "ray"], default="serial")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--objects-per-shard", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, rough = Path(folder, "calm"), Path(folder, "rough")
        start = time.monotonic()
        _classify(arguments, calm, "serial").wait()
        seconds = time.monotonic() - start
        print(f"undisturbed serial run: {seconds:.1f} s")
        kills = 0
        while kills < arguments.kills:
            run = _classify(arguments, rough, arguments.executor)
            kills += _kill_one(run, draw, seconds / (arguments.kills + 2), arguments.executor == "ray")
            if run.wait() == 0:
                break
        print(
            f"{kills} kills; last session ends with {_classify(arguments, rough, arguments.executor).wait()}"
        )
        digests = [_catalogue(run) for run in (calm, rough)]
    print(f"undisturbed  {digests[0]}\nkilled       {digests[1]}")
    return int(digests[0] != digests[1])


def _classify(arguments: argparse.Namespace, run: Path, executor: str) -> subprocess.Popen[bytes]:
    line = ["classify", "--archive", arguments.archive, "--models", arguments.models, "--run", str(run), "-q"]
    line += ["--executor", executor, "--objects-per-shard", str(arguments.objects_per_shard)]
    return subprocess.Popen([*COMMAND, *line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill_one(run: subprocess.Popen[bytes], draw: random.Random, seconds: float, ray: bool) -> int:
    """Kill one process within so many seconds of its first work; 0 if the run ended before."""
    time.sleep(START_SECONDS[ray] + draw.uniform(0.0, seconds))
    if run.poll() is not None:
        return 0
    victim, name = psutil.Process(run.pid), "driver"
    if ray and draw.random() < 0.6:
        children = [c for c in victim.children(recursive=True) if any(w in _title(c) for w in WORKERS)]
        if children:
            victim = draw.choice(sorted(children, key=lambda c: c.pid))
            name = _title(victim)
    victim.kill()
    print(f"killed {name}")
    return 1


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _catalogue(run: Path) -> str:
    out = run.with_name(f"{run.name}-catalogue")
    subprocess.run(
        [*COMMAND, "catalog", "build", str(run), "--out", str(out)], check=True, capture_output=True
    )
    done = subprocess.run(
        [*COMMAND, "catalog", "verify", str(out), "--format", "json"], check=True, capture_output=True
    )
    return str(json.loads(done.stdout)["content_sha256"])


if __name__ == "__main__":
    sys.exit(main())
