"""All benchmarks that need no data of one's own, one after the other, on a simulated survey (``make bench``).

First :mod:`benchmarks.throughput`, which writes ``results.json`` and the table of ``docs/performance.md`` and
takes what is given here (``python -m benchmarks --data DATA``); then the others.

The others take real files and say how in their first lines: ``golden_table``, ``gate_table``,
``precision``, ``real_photometry``, ``real_spectra``, ``real_images``, ``missed_transients``, ``flaky_s3``,
``scale``;
``chaos`` is ``make chaos``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CLI = [sys.executable, "-c", "from applecider_batch.cli.main import main; main()"]


def main() -> None:
    """Every stage of the way; then simulate a survey and run each other benchmark on it."""
    _module("throughput", *sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run([*CLI, "simulate", str(folder / "survey"), "--objects", "150", "--nights", "40", "-q"])
        _run([*CLI, "ingest", str(folder / "survey" / "alerts"), "--archive", str(folder / "archive"), "-q"])
        _run([*CLI, "models", "init", str(folder / "models")])
        nights = sorted(str(night) for night in (folder / "survey" / "alerts").glob("*.tar.gz"))
        _module("decode", *nights)
        _module("ingest_memory")
        _module("crossmatch")
        for executor in ("serial", "ray"):
            places = [str(folder / "archive"), str(folder / "models")]
            _module("kill_and_resume", *places, "--executor", executor, "--objects-per-shard", "15")


def _module(name: str, *arguments: str) -> None:
    print(f"\n== {name}", flush=True)
    _run([sys.executable, "-m", f"benchmarks.{name}", *arguments], quiet=False)


def _run(command: list[str], quiet: bool = True) -> None:
    subprocess.run(command, check=True, capture_output=quiet)


if __name__ == "__main__":
    main()
