"""Every stage of the way against a straightforward implementation, in one run.

    python -m benchmarks.throughput [--data DATA] [--rounds 5] [--stages FILE:POSITION,…] [--no-write]

DATA is a folder with real packets (``alerts/archive``) and light curves; without it a simulated survey stands
in, and the table says so. Every stage runs in a process of its own, so that its peak memory is its own; the
two ways take turns, and ratios are of neighbouring turns. Writes ``benchmarks/results.json`` and the table
of ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.stages import Stage
from benchmarks.stages.inputs import Inputs

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "performance.md"
FAMILIES = ("decoding", "features", "rows", "networks")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def factories() -> list[tuple[str, Callable[[Inputs], Stage]]]:
    """All stages in the order of the way, as (file:position, factory)."""
    modules = [(name, importlib.import_module(f"benchmarks.stages.{name}")) for name in FAMILIES]
    return [(f"{name}:{at}", make) for name, module in modules for at, make in enumerate(module.STAGES)]


def timed(work: Callable[[], int], clock: Callable[[], float]) -> tuple[float, int]:
    """Seconds and units of one turn."""
    start = clock()
    units = work()
    return clock() - start, units


def measure(stage: Stage, rounds: int) -> dict[str, Any]:
    """Turns of ours and the reference, and the ratios of their rates."""
    cores = os.sched_getaffinity(0)
    # On one core, that core's seconds: what else the machine does is left out.
    clock = time.process_time if stage.one_core else time.perf_counter
    if stage.one_core:
        os.sched_setaffinity(0, {min(cores)})
    try:
        if stage.same is not None:
            stage.same()
        stage.ours()  # warm caches, compiled code, imports
        rates: list[float] = []
        reference: list[float] = []
        for _ in range(rounds):
            seconds, units = timed(stage.ours, clock)
            rates.append(units / seconds)
            if stage.reference is not None:
                seconds, units = timed(stage.reference, clock)
                reference.append(units / seconds)
    finally:
        os.sched_setaffinity(0, cores)
    ratios = [ours / plain for ours, plain in zip(rates, reference, strict=False)]
    return {
        "stage": stage.name,
        "ratio_median": statistics.median(ratios) if ratios else None,
        "ratio_min": min(ratios, default=None),
        "ratio_max": max(ratios, default=None),
        "target": stage.target,
        "unit": stage.unit,
        "per_second": statistics.median(rates),
        "reference_per_second": statistics.median(reference) if reference else None,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "bound_by": stage.bound_by,
        "one_core": stage.one_core,
        "same_result": stage.same is not None,
        "notes": "; ".join(stage.notes),
    }


def in_own_process(key: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One stage in a process of its own; its row comes on the last line."""
    line = [sys.executable, "-m", "benchmarks.throughput", "--one", key]
    line += ["--work", str(work), "--rounds", str(arguments.rounds)]
    if arguments.data:
        line += ["--data", str(arguments.data)]
    done = subprocess.run(line, capture_output=True, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"The stage {key} failed:\n{done.stderr[-3000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{row['stage']}: {row['per_second']:,.1f} {row['unit']}/s", file=sys.stderr, flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| stage | per second | reference | ratio (min – max) | target | peak memory | bound by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "–"
        if row["ratio_median"] is not None:
            ratio = f"**{row['ratio_median']:.2f}** ({row['ratio_min']:.2f} – {row['ratio_max']:.2f})"
        plain = f"{row['reference_per_second']:,.0f}" if row["reference_per_second"] else "–"
        target = "–" if row["target"] is None else f"≥ {row['target']:g}"
        if row["target"] is not None and row["ratio_median"] < row["target"]:
            target += " (missed)"
        lines.append(
            f"| {row['stage']} | {row['per_second']:,.0f} {row['unit']} | {plain} | {ratio} | {target} | "
            f"{row['peak_rss_mib']:,} MiB | {row['bound_by']} |"
        )
    notes = [f"- *{row['stage']}*: {row['notes']}." for row in rows if row["notes"]]
    return "\n".join([*lines, "", *notes])


def machine() -> str:
    """Processor and versions, for the table."""
    import numpy
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].split(":")[1].strip() if names else platform.machine()
    versions = f"torch {torch.__version__}, NumPy {numpy.__version__}"
    return f"{len(names)} cores of {processor}, Python {platform.python_version()}, {versions}"


def write_page(rows: list[dict[str, Any]], said: str) -> None:
    """Put the table into the page, between its marks."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{said}\n\n{table(rows)}\n{END}{after}")


def main() -> None:
    """Run all stages, or one of them for the process that asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with real packets and light curves")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--stages", default="", help="only these, as FILE or FILE:POSITION of benchmarks/stages, with commas"
    )
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        make = dict(factories())[arguments.one]
        print(json.dumps(measure(make(Inputs(arguments.work, arguments.data)), arguments.rounds)))
        return
    with tempfile.TemporaryDirectory() as name:
        work = arguments.work or Path(name)
        keys = [key for key, _ in factories() if key.startswith(tuple(arguments.stages.split(",")))]
        rows = [in_own_process(key, arguments, work) for key in keys]
    kind = "real packets and light curves" if arguments.data else "a simulated survey only"
    said = f"{date.today().isoformat()}, {machine()}; inputs: {kind}; {arguments.rounds} rounds."
    print(said)
    print(table(rows))
    if not arguments.no_write:
        RESULTS.write_text(json.dumps({"said": said, "stages": rows}, indent=1) + "\n")
        write_page(rows, said)


if __name__ == "__main__":
    main()
