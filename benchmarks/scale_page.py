"""docs/scale.md from what ``benchmarks.scale`` measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TITLES = {"bare": "Alerts without stamps", "stamps": "Alerts with stamps"}
HEAD = """# Scale

```
python -m benchmarks.scale build FOLDER --kind bare --alerts 1000000 --real ARCHIVE    # and the other stages
python -m benchmarks.scale page FOLDER
```

Archives made by replication of a simulated survey and of real objects with alerts: every copy has new
objectIds and candids and lies at another right ascension, so it passes through ingest, planning, features,
networks and commits like any other object. The tenth holds the same objects a tenth as often. The networks
are the main ones of an untrained model set; a batch has one CPU thread, and the serial executor computes two
batches at once where there are two cores. Each command is a process of its own. Where the
load average is above the number of processes measured, the machine was busy with other work: then seconds say
little and CPU seconds more. What is asked for is in the last column.
"""


def write_page(results: Mapping[str, Any], out: Path) -> None:
    """Write the page of the stages that were run."""
    sections = [HEAD]
    for kind, title in TITLES.items():
        made = [_built(results, kind), _classified(results, kind), _planned(results, kind)]
        made += [_resumed(results, kind), _ray(results, kind)]
        if any(made):
            sections += [f"## {title}\n", *(each for each in made if each)]
    out.write_text("\n".join(sections))


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _load(found: Mapping[str, Any]) -> str:
    return f"Load average at the end: {found['load_average']:.1f}.\n"


def _built(results: Mapping[str, Any], kind: str) -> str:
    found = results.get(f"build {kind}")
    if not found:
        return ""
    rows = [
        [
            name,
            f"{found[name]['alerts']:,}",
            f"{found[name]['objects']:,}",
            f"{found[name]['bytes'] / 1e6:,.0f}",
            f"{found[name]['seconds']:.0f}",
            f"{found[name]['cpu_seconds']:.0f}",
        ]
        for name in ("tenth", "whole")
    ]
    head = ["archive", "alerts", "objects", "MB", "seconds to ingest", "CPU seconds"]
    return _table(head, rows) + "\n" + _load(found)


def _classified(results: Mapping[str, Any], kind: str) -> str:
    found = results.get(f"classify {kind}")
    if not found:
        return ""
    tenth, whole = found["tenth"], found["whole"]

    def row(title: str, of: Any, unit: str, asked: str) -> list[str]:
        one, ten = of(tenth), of(whole)
        shown = (f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}" for value in (one, ten))
        return [title, *shown, f"{ten / one:.2f}", asked]

    rows = [
        row("seconds an object, whole command", lambda m: 1e3 * m["seconds"] / m["objects"], "ms", "≤ 1.15"),
        row("CPU an object, whole command", lambda m: 1e3 * m["cpu_seconds"] / m["objects"], "ms", ""),
        row("seconds an object, shards alone", lambda m: 1e3 * m["shard_seconds"] / m["objects"], "ms", ""),
        row("peak memory of the process", lambda m: m["peak_memory_bytes"] / 2**20, "MiB", "≤ 1.15"),
    ]
    head = ["classified, serial executor", "tenth", "whole", "whole / tenth", "asked for"]
    return _table(head, rows) + "\n" + _load(found)


def _planned(results: Mapping[str, Any], kind: str) -> str:
    found = results.get(f"plan {kind}")
    if not found:
        return ""
    first, again = found["first"], found["again"]
    return (
        f"`plan` of {again['shards']:,} shards ({again['objects']:,} objects): {again['seconds']:.2f} s "
        f"({again['cpu_seconds']:.2f} s of CPU; at most 3 s asked for), and the first time on a snapshot, "
        f"when its objects are counted, {first['seconds']:.2f} s "
        f"({first['cpu_seconds']:.2f} s of CPU). " + _load(found)
    )


def _resumed(results: Mapping[str, Any], kind: str) -> str:
    found = results.get(f"resume {kind}")
    if not found:
        return ""
    beyond = found["total_seconds"] - found["ray_init_seconds"] - found["shard_seconds"]
    return (
        f"Resume with Ray after {found['done_again']} of {found['shards']} commits were removed: "
        f"{found['total_seconds']:.1f} s in all, of which `ray.init` (timed alone) "
        f"{found['ray_init_seconds']:.1f} s and the shards {found['shard_seconds']:.1f} s: {beyond:.1f} s "
        "beyond these (at most 5 s asked for). Ray and the actors were ready after "
        f"{found['ray_and_actors_seconds']:.1f} s. " + _load(found)
    )


def _ray(results: Mapping[str, Any], kind: str) -> str:
    found = results.get(f"ray {kind}")
    if not found:
        return ""
    names = ("serial", "serial_on_one", "ray")
    serial, one, ray = (found[name]["objects_per_s_and_core"] for name in names)
    return (
        f"Objects a second and core, start-up aside: {ray:,.0f} with Ray on {found['cores']} cores, "
        f"{serial:,.0f} with the serial executor on the same ({ray / serial:.2f}; at least 0.9 asked for), "
        f"and {one:,.0f} with the serial executor held on one, the other idle ({ray / one:.2f}). "
        + _load(found)
    )
