"""What a nightly update costs in archives of growing size, for the same night.

    python -m benchmarks.nightly FOLDER [--objects 60] [--nights 40] [--sizes 1,4,10,40]

Every archive holds a simulated survey without its last night, and copies of it under other names at other
places (see ``benchmarks.scale``; without stamps). The night then comes, and the catalogue is updated; beside
it, everything is classified and built again. CPU seconds of this process, which on a loaded machine still say
something, and bytes of the archive that the shards read. The horizon is ``full`` alone: as the copies are of
the same dates, any other would end for all of them in the same night.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.store import open_catalog
from applecider_batch.engine.api import classify
from applecider_batch.engine.update import update
from applecider_batch.models.model_set import init_model_set
from applecider_batch.simulate import simulate
from benchmarks.scale import Copies

SETTINGS: dict[str, Any] = {"horizons": (None,), "device": "cpu", "progress": False}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return work(), round(time.process_time() - started, 2)


def _bytes_read(run: Path) -> int:
    return sum(json.loads(line)["bytes_read"] for line in (run / "metrics.jsonl").read_text().splitlines())


def measure(folder: Path, models: str, nights: list[str], size: int) -> dict[str, Any]:
    """One archive of so many times the survey, and the night."""
    place = folder / f"size-{size}"
    shutil.rmtree(place, ignore_errors=True)
    archive, catalogue, run, full = (str(place / name) for name in ("archive", "catalogue", "run", "full"))
    ingest(nights[:-1], archive)
    if size > 1:
        copies = Copies(Archive.open(archive), 31, False)
        copies.copies = size - 1
        ingest([copies], archive)
    classify(archive, models, run, **SETTINGS)
    build_catalog(run, catalogue)
    ingest(nights[-1:], archive)
    done, spent = _timed(lambda: update(archive, catalogue, models, progress=False))

    def everything() -> dict[str, Any]:
        classify(archive, models, full, **SETTINGS)
        return build_catalog(full, str(place / "whole"))

    whole, spent_on_all = _timed(everything)
    assert whole["content_sha256"] == open_catalog(catalogue)[1]["content_sha256"]
    return {
        "size": size,
        "objects": whole["objects"],
        "changed": done["objects_classified"],
        "update_cpu_s": spent,
        "full_cpu_s": spent_on_all,
        "update_bytes": done["bytes_read"],
        "full_bytes": _bytes_read(Path(full)),
    }


def main() -> None:
    """Measure every size; a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=60)
    parser.add_argument("--nights", type=int, default=40)
    parser.add_argument("--sizes", default="1,4,10,40")
    given = parser.parse_args()
    made = simulate(given.folder / "survey", n_objects=given.objects, n_nights=given.nights, seed=3)
    packets = made["packets_per_night"].values()
    nights = [str(night) for night, count in zip(made["nights"], packets, strict=True) if count]
    models = given.folder / "models"
    if not models.exists():
        init_model_set(models)
    print("| size | objects | changed | update, CPU s | all, CPU s | update reads, MB | all read, MB |")
    print("|---|---|---|---|---|---|---|")
    for size in map(int, given.sizes.split(",")):
        row = measure(given.folder, str(models), nights, size)
        megabytes = (f"{row[name] / 1e6:.2f}" for name in ("update_bytes", "full_bytes"))
        numbers = (str(row[name]) for name in ("size", "objects", "changed", "update_cpu_s", "full_cpu_s"))
        print("| " + " | ".join([*numbers, *megabytes]) + " |", flush=True)


if __name__ == "__main__":
    main()
