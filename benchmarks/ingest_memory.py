"""Ingest of a simulated survey: packets per second and the peak memory of the process.

python -m benchmarks.ingest_memory [--objects 1300] [--nights 60]      about 20,000 packets
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from applecider_batch.cli.main import main; main()"]


def main() -> None:
    """Simulate, ingest, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=1300)
    parser.add_argument("--nights", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        survey = Path(folder, "survey")
        line = [
            "simulate",
            str(survey),
            "--objects",
            str(arguments.objects),
            "--nights",
            str(arguments.nights),
        ]
        subprocess.run([*COMMAND, *line, "-q"], check=True, capture_output=True)
        simulated = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        start = time.monotonic()
        line = ["ingest", str(survey / "alerts"), "--archive", str(Path(folder, "archive")), "-q"]
        done = subprocess.run([*COMMAND, *line, "--format", "json"], check=True, capture_output=True)
        seconds = time.monotonic() - start
    answer = json.loads(done.stdout)
    # ru_maxrss is the largest of all children; the simulation's own peak is below that of ingest.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    sums = {key: answer[key] for key in ("packets_in", "stored", "duplicates", "quarantined")}
    print(json.dumps({**sums, "packets_per_second": round(sums["packets_in"] / seconds, 1)}))
    print(json.dumps({"simulate_peak_mib": simulated >> 10, "peak_mib": peak >> 10}))


if __name__ == "__main__":
    main()
