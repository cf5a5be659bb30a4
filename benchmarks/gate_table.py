"""The gate of real alerts against the types that catalogues give: ``python -m benchmarks.gate_table``.

Ingests alert files into a temporary archive, prepares every object as ``classify`` would (full history, no
networks) by the rules alone and with the learned gate of a model set, and counts the gates by kind of object.
The kind comes from a table with the columns objectId, simbad and vsx_type (and class5 where an own label
exists), the cross-matches that came with the alerts. It is no truth: a catalogue may be wrong, and most real
transients match nothing. With ``--held-out`` only objects on the test side of the ``hash`` split are counted:
give a set whose gate was trained with ``train gate --hold-out``.

Example
-------
python -m benchmarks.gate_table DATA/alerts/fink_parquet/night.parquet --index DATA/alerts/alert_index.parquet
--models SET --held-out
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import polars as pl
import pyarrow as pa

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.features.gate_model import Judges, LearnedGate
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.models.model_set import ModelSet
from applecider_batch.taxonomy import GATES
from applecider_batch.training.gate_labels import OTHER, UNTYPED, interval, kind_of
from applecider_batch.training.splits import development_part

LEARNED = ("supernova", "CV", "AGN", "TDE", "star")


def gates(files: list[Path], gate: LearnedGate | None) -> dict[str, pl.DataFrame]:
    """objectId, gate and reason of every object in the files, first episode, full history; by who judges."""
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "archive")
        ingest([str(file) for file in files], url)
        archive = Archive.open(url)
        shard = archive.read_shard(0, 1 << 64)
        found = {}
        for name, judges in (("rules", Judges()), ("learned gate", Judges(gate=gate))):
            if name == "rules" or gate is not None:
                rows = prepare_shard(
                    shard, [None], get_profile("paper"), snapshot_jd_max=archive.snapshot.jd_max,
                    modalities=set(), judges=judges,
                ).rows  # fmt: skip
                chosen = pl.DataFrame(
                    pl.from_arrow(rows.select(["objectId", "episode", "gate", "gate_reason"]))
                )
                found[name] = chosen.filter(pl.col("episode") <= 1)
    return found


def kinds(index: pl.DataFrame) -> dict[str, tuple[str, str]]:
    """Kind and group of every object of the index; of several rows the first that has a type."""
    known: dict[str, tuple[str, str]] = {}
    for row in index.iter_rows(named=True):
        kind = kind_of(row.get("simbad"), row.get("vsx_type"), row.get("class5") or row.get("type_raw"))
        if row["objectId"] not in known or known[row["objectId"]][0] in (UNTYPED, OTHER):
            known[row["objectId"]] = (kind, row.get("object_key") or row["objectId"])
    return known


def table(found: pl.DataFrame) -> str:
    """Markdown: kinds of object in rows, gates in columns, and the reasons below."""
    counts = found.group_by("kind", "gate").len()
    order = found.group_by("kind").len().sort("len", "kind", descending=[True, False])
    lines = [f"| kind | {' | '.join(GATES)} | objects |", "|---" * (len(GATES) + 2) + "|"]
    for kind, total in [*order.iter_rows(), ("all", found.height)]:
        own = counts if kind == "all" else counts.filter(pl.col("kind") == kind)
        cells = [int(own.filter(pl.col("gate") == gate)["len"].sum()) for gate in GATES]
        lines.append(f"| {kind} | {' | '.join(map(str, cells))} | {total} |")
    lines += ["", "| gate | reason | objects |", "|---|---|---|"]
    reasons = found.group_by("gate", "gate_reason").len().sort("gate", "len", descending=[False, True])
    lines += [f"| {gate} | {reason} | {count} |" for gate, reason, count in reasons.iter_rows()]
    return "\n".join(lines)


def comparison(found: dict[str, pl.DataFrame]) -> str:
    """Markdown: how many of each kind are taken for nothing else, with 95 % intervals."""
    lines = [f"| kind | objects | {' | '.join(f'{name} let through' for name in found)} |"]
    lines.append("|---" * (len(found) + 2) + "|")
    for kind in LEARNED:
        of_kind = {name: rows.filter(pl.col("kind") == kind) for name, rows in found.items()}
        n = next(iter(of_kind.values())).height
        cells = []
        for rows in of_kind.values():
            k = rows.filter(~pl.col("gate").is_in(["moving", "variable_star", "artefact"])).height
            low, high = interval(k, n)
            cells.append(f"{k} ({low:.2f} to {high:.2f})" if n else "")
        lines.append(f"| {kind} | {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="alert files: tarballs, Avro, Fink-layout Parquet"
    )
    parser.add_argument(
        "--index", required=True, type=Path, help="Parquet with objectId, simbad, vsx_type, class5"
    )
    parser.add_argument("--models", help="model set whose learned gate is compared with the rules")
    parser.add_argument("--held-out", action="store_true", help="only objects that --hold-out left out")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    gate = ModelSet.load(arguments.models, check_weights=False).learned_gate() if arguments.models else None
    known = kinds(pl.read_parquet(arguments.index))
    found = {}
    for name, rows in gates(arguments.files, gate).items():
        pairs = [known.get(object_id, (UNTYPED, object_id)) for object_id in rows["objectId"]]
        rows = rows.with_columns(pl.Series("kind", [kind for kind, _ in pairs]))
        if arguments.held_out:
            rows = rows.filter(pl.Series([development_part(group) == 2 for _, group in pairs]))
        found[name] = rows
        print(f"{name}\n\n{table(rows)}\n")
    print(comparison(found))


if __name__ == "__main__":
    main()
